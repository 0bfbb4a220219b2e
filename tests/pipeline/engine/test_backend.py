"""Tests of what a kernel says of its precision."""

from __future__ import annotations

import pytest

from trtq.pipeline.engine.backend import Built, Kernel

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
    assert kernel.is_int8
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
    assert not kernel.is_int8
    assert kernel.operands == operands


@pytest.mark.parametrize("kind", ["kgen", "runtime_fusion", "shape_call"])
def test_a_generated_kernel_that_reads_int8_computes_in_float(kind: str) -> None:
    assert not Kernel("k", kind, ("node",), (_I, _I), (_I,)).is_int8


def test_an_engine_has_the_builder_s_usual_reason() -> None:
    assert "no INT8 kernel for this shape" in Built(b"plan", ()).usual_reason
