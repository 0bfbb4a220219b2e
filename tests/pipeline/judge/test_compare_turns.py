"""Models of large weights are compared one after another, and the numbers are the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import batches_of

from trtq.calibrators.batches import Batches
from trtq.models.frugal import FrugalSession
from trtq.pipeline.engine.backends import choose_backend
from trtq.pipeline.judge import compare, opened
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.recall import RecallingSession

_PAIRS = [("int8", "fp32"), ("int8", "fp16"), ("fp16", "fp32")]
_LINEAR = "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }"
_WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def models(path_of: Callable[..., Path]) -> dict[str, Path]:
    steps = {"fp16": 64.0, "fp32": 0.0, "int8": 3.0}
    weights = {name: np.round(_WEIGHT * step) / step if step else _WEIGHT for name, step in steps.items()}
    return {name: path_of(_LINEAR, w=weight + 0.1) for name, weight in weights.items()}


@pytest.fixture
def data() -> Batches:
    arrays = np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)
    return replace(batches_of(list(arrays)), content="digest")


@pytest.fixture
def num_open(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sessions of files were open after each was opened."""
    found, alive, open_one = list[int](), list[weakref.ref[Any]](), opened._open

    def open_and_count(*args: Any, **options: Any) -> Any:
        session = open_one(*args, **options)
        alive.append(weakref.ref(session.session if isinstance(session, FrugalSession) else session))
        found.append(sum(item() is not None for item in alive))
        return session

    monkeypatch.setattr(opened, "_open", open_and_count)
    return found


def test_small_models_are_open_together(models: dict[str, Path], data: Batches, num_open: list[int]) -> None:
    compare_models(models, _PAIRS, data)
    assert num_open == [1, 2, 3]


@pytest.mark.parametrize("limit", ["saves_memory", "_LARGE_BYTES", "_HUGE_BYTES"])
def test_one_model_is_open_at_a_time_where_memory_matters(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], data: Batches, num_open: list[int], limit: str
) -> None:
    wanted = compare_models(models, _PAIRS, data)
    num_open.clear()
    if limit.startswith("_"):
        monkeypatch.setattr(opened, limit, 1)
    assert compare_models(models, _PAIRS, data, saves_memory=limit == "saves_memory") == wanted
    assert num_open == [1, 1, 1]


def test_an_engine_is_opened_behind_the_models(
    models: dict[str, Path], data: Batches, num_open: list[int]
) -> None:
    engine = choose_backend("onnxruntime").model_runner(models["int8"], "engine")
    pairs = [("engine", "fp32"), *_PAIRS]
    found = compare_models(models, pairs, data, engines=[engine], saves_memory=True)
    assert num_open == [1, 1, 1]
    assert {item.candidate for item in found.outputs} == {"engine", "int8", "fp16"}


def test_models_whose_outputs_are_too_large_to_keep_are_open_together(
    monkeypatch: pytest.MonkeyPatch, models: dict[str, Path], data: Batches, num_open: list[int]
) -> None:
    wanted = compare_models(models, _PAIRS, data)
    num_open.clear()
    num_bytes = 3 * 2 * 3 * 4
    monkeypatch.setattr(compare, "MOST_BYTES", 2 * num_bytes - 1)  # of the two that are run before the last
    assert compare_models(models, _PAIRS, data, saves_memory=True) == wanted
    assert num_open == [1, 1, 2], "the reference is kept, and the others are not run twice"
    num_open.clear()
    forgetful = partial(RecallingSession, most_bytes=num_bytes - 1)
    monkeypatch.setattr(compare, "RecallingSession", forgetful)
    assert compare_models(models, _PAIRS, data, saves_memory=True) == wanted
    assert num_open == [1, 2, 3]


def test_data_that_may_differ_the_next_time_is_not_run_ahead(
    models: dict[str, Path], data: Batches, num_open: list[int]
) -> None:
    read: list[int] = []

    def count() -> Iterator[Any]:
        read.append(1)
        return data.read()

    compare_models(models, _PAIRS, replace(data, read=count, content=None), saves_memory=True)
    assert num_open == [1, 2, 3]
    assert len(read) == 2
