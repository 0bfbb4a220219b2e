"""Gram matrices for GPTQ that cannot be used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError, ModelError
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight
from trtq.pipeline.rewrite.weights.gram import quantize_by_gptq

TEXT = "g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }"
GPTQ = WeightScheme("int4", "gptq")


def batches(value: float) -> Batches:
    feed = Feed({"x": np.full((2, 64), value, np.float32)}, "calib.npz, samples 0 to 1", 2)
    return Batches(lambda: iter([feed]), "calib.npz", 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_products_that_are_not_finite_are_refused(model_of: Callable[..., ir.Model], value: float) -> None:
    model = model_of(TEXT, opset=21, w=np.ones((64, 64), np.float32))
    with pytest.raises(
        DataError, match=r"tensor 'x' has values in calib\.npz, samples 0 to 1 that are not fin"
    ):
        quantize_by_gptq(
            model, group_by_weight(model, choose_weights(model, GPTQ)), batches(value), "float32"
        )


def test_a_weight_that_is_not_finite_is_refused(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(TEXT, opset=21, w=np.full((64, 64), np.inf, np.float32))
    with pytest.raises(ModelError, match="weight 'w' has 4096 values that are infinite"):
        quantize_by_gptq(model, group_by_weight(model, choose_weights(model, GPTQ)), batches(1.0), "float32")
