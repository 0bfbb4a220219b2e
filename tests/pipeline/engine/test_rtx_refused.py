"""Tests of what the real builder of TensorRT-RTX refuses, and in whose words that is told."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.engine.backend import BuildRequest, BuiltEngine
from trtq.pipeline.engine.rtx import TensorRtRtx

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
PathOf = Callable[..., Path]


def _build(path: Path) -> BuiltEngine:
    return TensorRtRtx().build(BuildRequest(path))


@needs_rtx
@pytest.mark.parametrize(
    ("text", "weights", "told"),
    [
        (
            "g (int8[1, 4, 8, 8] x) => (int32[1, 8, 6, 6] y) { [integers] y = ConvInteger (x, w) }",
            {"w": np.ones((8, 4, 3, 3), np.int8)},
            r"node 'integers' \(ConvInteger\): this operator is not supported$",
        ),
        (
            "g (float[8] x) => (float[N] y) { [distinct] y = Unique (x) }",
            {},
            r"node 'distinct' \(Unique\): this operator is not supported$",
        ),
        (
            "g (float[2, 4] x) => (int64[2, N] y) { [where] y = NonZero (x) }",
            {},
            r"node 'where' \(NonZero\): .*NonZero plugin .*was not found",
        ),
        (
            """g (float[8] x) => (float[N] y, float[M] z) {
                [first] y = Unique (x)
                [second] z = Unique (x)
            }""",
            {},
            r"node 'first' \(Unique\): this operator is not supported; node 'second' \(Unique\): this",
        ),
        (
            """g (float[8] x) => (float[8] y) {
                [q] a = QuantizeLinear (x, s, z)
                y = DequantizeLinear (a, s, z)
            }""",
            {"s": np.asarray(0.05, np.float32), "z": np.asarray(3, np.int8)},
            r"node 'q' \(QuantizeLinear\): .*Non-zero zero point is not supported",
        ),
    ],
)
def test_what_the_parser_refuses_is_named(
    text: str, weights: dict[str, NDArray[Any]], told: str, path_of: PathOf
) -> None:
    with pytest.raises(ModelError, match=rf"^TensorRT-RTX does not take this model: {told}"):
        _build(path_of(text, opset=17, **weights))


@needs_rtx
def test_more_than_eight_refusals_are_counted(path_of: PathOf) -> None:
    outputs = ", ".join(f"float[N{i}] y{i}" for i in range(11))
    nodes = "\n".join(f"[node{i}] y{i} = Unique (x)" for i in range(11))
    with pytest.raises(ModelError, match=r"node 'node7' \(Unique\): .*; and 3 more$"):
        _build(path_of(f"g (float[8] x) => ({outputs}) {{ {nodes} }}"))


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"hello world"])
def test_a_file_that_the_parser_takes_for_an_empty_network_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="does not take this model: the network has no outputs"):
        _build(path)


@needs_rtx
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Input file cannot be found, .*absent\.onnx"):
        _build(tmp_path / "absent.onnx")
