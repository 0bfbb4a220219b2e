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
