"""Multiplications of every kind of layer, by hand."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import Mock

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.models.session import run
from trtq.pipeline.judge import macs
from trtq.pipeline.judge.macs import LayerWork, count_macs, count_work


def zeros(*shape: int) -> NDArray[np.float32]:
    return np.zeros(shape, np.float32)


def test_layers_are_counted_for_one_sample(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """net (float[N, 4, H, 8] x) => (float[N, 2, 5] y, float[a, b, c, d] t) {
          [conv] c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2], group = 2> (x, w)
          [up] t = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (c, u)
          [flat] f = Flatten (c)
          [gemm] g = Gemm <transB = 1> (f, v)
          [shaped] r = Reshape (g, s)
          [twice] m = MatMul (r, k)
          [other] y = MatMul (m, q)
        }""",
        w=zeros(6, 2, 3, 3), u=zeros(6, 3, 2, 2), v=zeros(6, 96), k=zeros(3, 3), q=zeros(3, 5),
        s=np.array([-1, 2, 3], np.int64),
    )  # fmt: skip
    feed = Feed({"x": zeros(2, 4, 8, 8)}, "a feed", 2)
    works = count_work(model, feed)
    assert works["conv"] == LayerWork(6 * 4 * 4 * (2 * 3 * 3), 4 * 8 * 8 + 6 * 2 * 3 * 3, 6 * 4 * 4)
    assert works["gemm"] == LayerWork(96 * 6, 96 + 6 * 96, 6)
    found = count_macs(model, feed)
    assert found == {
        "conv": 6 * 4 * 4 * (2 * 3 * 3),
        "up": 6 * 4 * 4 * (3 * 2 * 2),
        "gemm": 96 * 6,
        "twice": 2 * 3 * 3,
        "other": 2 * 3 * 5,
    }


@pytest.mark.parametrize(
    ("size", "body", "runs"),
    [
        ("N", "y = MatMul (x, w)", [1]),
        ("4", "y = MatMul (x, w)", [4]),  # no other batch
        ("N", "r = Reshape (x, fixed) m = MatMul (r, w) y = Reshape (m, fixed)", [1, 4]),  # nor here
    ],
)
def test_one_sample_is_run_where_the_model_takes_it(
    model_of: Callable[..., ir.Model], monkeypatch: pytest.MonkeyPatch, size: str, body: str, runs: list[int]
) -> None:
    model = model_of(
        f"net (float[{size}, 3] x) => (float[{size}, 3] y) {{ {body} }}",
        w=zeros(3, 3), fixed=np.array([4, 3], np.int64),
    )  # fmt: skip
    seen = Mock(wraps=run)
    monkeypatch.setattr(macs, "run", seen)
    assert [*count_macs(model, Feed({"x": zeros(4, 3)}, "a feed", 4)).values()] == [9]
    assert [len(call.args[2]["x"]) for call in seen.call_args_list] == runs


def test_a_transposed_first_operand_and_a_recurrent_layer(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        """net (float[7, 1, 3] x, float[4, 5] a) => (float[7, 1, 1, 2] y, float[5, 6] g) {
          [lstm] y = LSTM <hidden_size = 2> (x, w, r)
          [gemm] g = Gemm <transA = 1> (a, b)
        }""",
        w=zeros(1, 8, 3), r=zeros(1, 8, 2), b=zeros(4, 6),
    )  # fmt: skip
    feed = Feed({"x": zeros(7, 1, 3), "a": zeros(4, 5)}, "a feed", 1)
    assert count_macs(model, feed) == {"lstm": 7 * (8 * 3 + 8 * 2), "gemm": 5 * 6 * 4}


def test_a_model_without_layers_has_none(model_of: Callable[..., ir.Model]) -> None:
    model = model_of("net (float[N] x) => (float[N] y) { y = Relu (x) }")
    assert count_macs(model, Feed({"x": zeros(2)}, "a feed", 2)) == {}
