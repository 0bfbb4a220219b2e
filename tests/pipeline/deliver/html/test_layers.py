"""Tests of what is shown of layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from int8_encodings import int8_along

from trtq.pipeline.deliver.html.layers import summarize_layers, weight_sqnr_db
from trtq.pipeline.formats import NVFP4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.qparams import choose_block_qparams, choose_weight_qparams, quantize_array


@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_the_ratio_of_a_weight_is_that_of_its_codes(axis: int | None) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    qparams = choose_weight_qparams(weight, int8_along(axis), "float32")
    again = qparams.decode(quantize_array(weight, qparams))
    wanted = 10 * np.log10((weight.astype(np.float64) ** 2).sum() / ((weight - again) ** 2).sum())
    assert weight_sqnr_db(weight, int8_along(axis)) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_ratio_of_a_weight_in_blocks_is_that_of_its_codes(axis: int) -> None:
    weight = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    encoding = Encoding(NVFP4, PerBlock(axis, 16))
    qparams = choose_block_qparams(weight, encoding, "float32")
    error = weight - qparams.decode(quantize_array(weight, qparams))
    wanted = 10 * np.log10((weight.astype(np.float64) ** 2).sum() / (error**2).sum())
    assert 20 < wanted < 24
    assert weight_sqnr_db(weight, encoding) == pytest.approx(wanted, rel=1e-9)


def test_a_large_weight_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 30)).astype(np.float32)
    whole = weight_sqnr_db(weight, int8_along(0))
    monkeypatch.setattr("trtq.pipeline.deliver.html.layers._ELEMENTS_AT_ONCE", 64)
    assert weight_sqnr_db(weight, int8_along(0)) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("weight", [np.zeros((2, 3), np.float32), np.array([[127.0, 64.0], [-127.0, 3.0]])])
def test_a_weight_that_loses_nothing_has_no_ratio(
    weight: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    assert weight_sqnr_db(weight, int8_along(0)) is None


def test_layers_tell_what_they_read(model_of: Callable[..., ir.Model]) -> None:
    rng = np.random.default_rng(0)
    model = model_of(
        """a (float[1,16,4,4] x) => (float[1,16,4,4] y) {
            [first] h = Conv <kernel_shape = [1,1]> (x, w)
            [again] g = Conv <kernel_shape = [1,1]> (h, w)
            [sum] y = Add (g, x)
        }""",
        w=rng.standard_normal((16, 16, 1, 1)).astype(np.float32),
    )
    layers = summarize_layers(model, place(model))
    assert [(layer.name, layer.op_type, layer.rule, layer.tensors) for layer in layers] == [
        ("first", "Conv", "weighted-input", ("x",)),
        ("again", "Conv", "weighted-input", ("h",)),
        ("sum", "Add", "residual-add", ("x",)),
    ]
    first, again, add = (layer.weight_sqnr_db for layer in layers)
    assert first is not None
    assert 35 < first < 50
    assert (again, add) == (first, None)
