"""Caches of codes as a part of a build: what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trtq.errors import UsageError
from trtq.models.spec import AccuracySpec
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16
from trtq.pipeline.quantize.kv_cache import refuse_kv_cache

_TYPED = Strategy("explicit", "", FP16, is_typed=True)


@dataclass(frozen=True)
class _Free:
    name: str = "tensorrt"

    def version(self) -> str:
        return "8.6"


def test_a_builder_that_picks_precisions_itself_is_refused() -> None:
    free = Strategy("explicit", "", FP16, is_typed=False)
    with pytest.raises(
        UsageError,
        match=r"^--kv-cache int8 needs a builder that takes .* backend tensorrt of version 8\.6 picks",
    ):
        refuse_kv_cache(Target(kv_cache="int8"), _Free(), free, AccuracySpec())  # type: ignore[arg-type]
    refuse_kv_cache(Target(), _Free(), free, AccuracySpec())  # type: ignore[arg-type]


def test_fp8_is_for_gpus_that_have_it() -> None:
    backend = BACKENDS["tensorrt-rtx"]
    with pytest.raises(
        UsageError, match=r"^--kv-cache fp8 needs GPUs of compute capability 8\.9 .* or take --kv-cache int8$"
    ):
        refuse_kv_cache(Target(kv_cache="fp8"), backend, _TYPED, AccuracySpec())
    ada = Target(kv_cache="fp8", compute_capabilities=("8.9",))
    refuse_kv_cache(ada, backend, _TYPED, AccuracySpec())


def test_the_speed_is_not_judged() -> None:
    with pytest.raises(
        UsageError, match=r"^--min-speedup times both models on the same inputs, which --kv-c"
    ):
        refuse_kv_cache(
            Target(kv_cache="int8"), BACKENDS["onnxruntime"], _TYPED, AccuracySpec(min_speedup=1.1)
        )
