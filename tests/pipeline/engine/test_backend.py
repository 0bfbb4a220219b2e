"""Tests of what a kernel says of its precision, and of the builder's options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trtq.errors import UsageError
from trtq.pipeline.engine.backend import BuilderOptions, BuiltEngine
from trtq.pipeline.engine.kernels import Kernel

_I, _F, _H = "Int8", "Float", "Half"


@pytest.mark.parametrize(
    ("kind", "inputs", "constants"),
    [
        ("correlation", (_I,), (_I, _F, _F)),
        ("gemm", (_I,), (_I,)),
        ("gemm", (_I, _I), ()),
        ("gemm", (_I, _I), (_F, _F)),
        ("correlation", (_I, _H), (_I, _F)),
    ],
)
def test_int8_with_int8_is_int8(kind: str, inputs: tuple[str, ...], constants: tuple[str, ...]) -> None:
    kernel = Kernel("k", kind, ("node",), inputs, constants)
    assert kernel.multiplies_in == "int8"
    assert kernel.operands == (_I, _I)


@pytest.mark.parametrize(
    ("kind", "inputs", "constants", "operands"),
    [
        ("correlation", (_F,), (_F, _F), (_F, _F)),
        ("correlation", (_F, _F), (_F,), (_F, _F)),
        ("correlation", (_H,), (_I,), (_H, _I)),
        ("gemm", (_I,), (_F, _F), (_I, _F)),
        ("gemm", (_I,), (), (_I,)),
        ("gemm", (), (_I,), (_I,)),
        ("shape_call", (), (), ()),
    ],
)
def test_anything_else_is_not(
    kind: str, inputs: tuple[str, ...], constants: tuple[str, ...], operands: tuple[str, ...]
) -> None:
    kernel = Kernel("k", kind, ("node",), inputs, constants)
    assert not kernel.multiplies_in
    assert kernel.operands == operands


@pytest.mark.parametrize("kind", ["kgen", "runtime_fusion", "shape_call"])
def test_a_generated_kernel_that_reads_int8_computes_in_float(kind: str) -> None:
    assert not Kernel("k", kind, ("node",), (_I, _I), (_I,)).multiplies_in


def test_an_engine_has_the_builder_s_usual_reason() -> None:
    assert "no kernel for it as asked" in BuiltEngine(b"plan", ()).usual_reason


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"optimization_level": 6}, r"^the builder's optimization level is 0 to 5, got 6$"),
        ({"optimization_level": -1}, r"^the builder's optimization level is 0 to 5, got -1$"),
        (
            {"hardware_compatibility": "ampere"},
            r"^hardware compatibility must be one of none, ampere\+, same-compute-capability, got 'ampere'$",
        ),
        ({"timing_cache": Path("/absent/t.cache")}, r"^there is no folder /absent for the timing cache$"),
    ],
)
def test_options_that_no_builder_has_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        BuilderOptions(**options)


def test_a_timing_cache_may_be_new_and_in_the_current_folder() -> None:
    assert BuilderOptions(Path("new.cache")).timing_cache == Path("new.cache")


@pytest.mark.parametrize(
    ("name", "kind", "inputs", "constants", "found"),
    [
        ("layer_myl0_1", "gemm", ("FP8",), ("FP8", "Float", "Float"), "fp8"),
        ("layer_myl0_2", "gemm", ("FP8", "FP8"), ("Float", "Float"), "fp8"),
        ("layer_myl0_2", "gemm", ("FP4E2M1", "FP8"), ("FP4E2M1", "Float", "Float", "FP8"), "nvfp4"),
        ("_gemm_mha_v2_myl0_3", "kgen", ("FP8", "FP8", "FP8"), (), "fp8"),
        ("_gemm_mha_v2_myl0_3", "kgen", ("Int8", "Int8", "Int8"), (), "int8"),
        ("_gemm_mha_v2_myl0_3", "kgen", ("Half", "Half", "Half"), (), ""),
        ("__myl_CastMulFc_myl0_2", "runtime_fusion", ("FP8", "Half"), (), ""),
        ("layer_myl0_1", "gemm", ("Half", "Half"), ("Float", "Float"), ""),
    ],
)
def test_a_product_is_in_the_format_of_both_its_factors(
    name: str, kind: str, inputs: tuple[str, ...], constants: tuple[str, ...], found: str
) -> None:
    """As TensorRT-RTX 1.7.1 told them of FP8, NVFP4 and attention."""
    assert Kernel(name, kind, ("node",), inputs, constants).multiplies_in == found


def test_only_what_multiplies_reads_a_weight() -> None:
    fused = Kernel("CastMulCastFc", "runtime_fusion", ("node",), ("Half",), ("Int4", "Half"))
    assert fused.reads == {"Half", "Int4"}
    assert Kernel("CastMul", "kgen", ("node",), (), ("Half", "Int4")).reads == frozenset()
