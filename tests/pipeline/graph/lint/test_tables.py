"""Lint of quantized embeddings and of weights in blocks, and what TensorRT-RTX makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.quantized import find_quantized_layers

_RNG = np.random.default_rng(0)
_TEXT = """g (int64[2,8] i) => (float[2,8,96] y) {{
    td = DequantizeLinear{} (t, ts)
    e = Gather (td, i)
    wd = DequantizeLinear{} (w, ws)
    [fc] y = MatMul (e, wd)
}}"""


def _codes(*shape: int, bits: int = 8) -> NDArray[Any]:
    codes = _RNG.integers(-7, 8, shape)
    return codes.astype(np.int8 if bits == 8 else ml_dtypes.int4)


def _scales(*shape: int) -> NDArray[np.float32]:
    return np.full(shape, 0.02, np.float32)


@pytest.mark.parametrize(
    ("attributes", "scales", "asked"),
    [("", (), "int8"), ("<axis = 0>", (200,), "int8-weights"), ("<axis = 1>", (64,), "int8-weights")],
)
def test_rows_of_a_table_are_codes_if_all_have_one_scale(
    model_of: Callable[..., ir.Model],
    build_rtx: Callable[..., dict[str, set[str]]],
    attributes: str,
    scales: tuple[int, ...],
    asked: str,
) -> None:
    text = _TEXT.format(attributes, "<axis = 1>")
    weights = {"t": _codes(200, 64), "ts": _scales(*scales), "w": _codes(64, 96), "ws": _scales(96)}
    model = model_of(text, opset=21, ir_version=10, **weights)
    assert lint(model) == ()
    assert [layer.asked for layer in find_quantized_layers(model)] == [asked]
    kernels = build_rtx(model)
    in_int8 = any(name.startswith("fc") and "Int8" in types for name, types in kernels.items())
    assert in_int8 is (asked == "int8")


def test_a_table_and_a_weight_in_blocks_are_taken(
    model_of: Callable[..., ir.Model], build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    text = _TEXT.format("<axis = 1, block_size = 32>", "<axis = 0, block_size = 32>")
    table, weight = _codes(200, 64, bits=4), _codes(64, 96, bits=4)
    model = model_of(text, opset=21, ir_version=10, t=table, ts=_scales(200, 2), w=weight, ws=_scales(2, 96))
    assert lint(model) == ()
    assert build_rtx(model)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size", "found"), [(64, []), (32, [("blocks", "wrong", "fc")])])
def test_several_blocks_beside_8_bits_are_computed_wrongly(
    model_of: Callable[..., ir.Model], bits: int, size: int, found: list[tuple[str, str, str]]
) -> None:
    """The builder takes it: a gemm of the bare codes, and one Mul of the product with the scales of all."""
    text = f"""g (float[N,64] x) => (float[N,96] y) {{
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      wd = DequantizeLinear <axis = 0, block_size = {size}> (w, ws)
      [fc] y = MatMul (d, wd)
    }}"""
    weights = {"w": _codes(64, 96, bits=bits), "ws": _scales(64 // size, 96)}
    model = model_of(text, opset=21, ir_version=10, s=np.float32(0.1), z=np.int8(0), **weights)
    assert [(item.rule, item.effect, item.node) for item in lint(model)] == found
