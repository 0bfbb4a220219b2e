"""Tests of the rows that meet a weight: their products are what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.judge.columns import gather_columns


@pytest.mark.parametrize(
    ("attributes", "weight", "shape"),
    [
        ("", (6, 4, 3, 3), (2, 4, 7, 8)),
        ("pads = [1, 0, 2, 1], strides = [2, 1]", (6, 4, 3, 2), (2, 4, 7, 8)),
        ("dilations = [2, 1], group = 2", (6, 2, 2, 3), (2, 4, 7, 8)),
        ("group = 4, pads = [1, 1, 1, 1]", (4, 1, 3, 3), (1, 4, 5, 5)),
        ('auto_pad = "SAME_UPPER", strides = [2, 3]', (6, 4, 3, 2), (2, 4, 7, 8)),
        ('auto_pad = "SAME_LOWER"', (6, 4, 2, 4), (2, 4, 7, 8)),
        ('auto_pad = "VALID"', (6, 4, 2, 4), (2, 4, 7, 8)),
        ("pads = [2, 2]", (6, 4, 5), (2, 4, 9)),
    ],
)
def test_the_columns_of_a_convolution_times_the_weight_are_its_outputs(
    model_of: Callable[..., ir.Model],
    outputs_of: Callable[..., list[NDArray[np.float32]]],
    attributes: str,
    weight: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    array, values = random_array(*shape), random_array(*weight)
    sizes = ", ".join(map(str, shape))
    anything = ", ".join(["N", "M", "H", "W"][: len(shape)])
    call = f"Conv <{attributes}> (x, w)" if attributes else "Conv (x, w)"
    model = model_of(f"net (float[{sizes}] x) => (float[{anything}] y) {{ y = {call} }}", w=values)
    (wanted,) = outputs_of(model, feed={"x": array})
    (node,) = model.graph
    rows = gather_columns(array, node, values, 10**6)
    found = np.einsum("grk,gok->rgo", rows, values.reshape(rows.shape[0], -1, rows.shape[2]))
    found = np.sort(found.reshape(len(found), -1), axis=0)
    np.testing.assert_allclose(
        found, np.sort(np.moveaxis(wanted, 1, -1).reshape(-1, weight[0]), axis=0), rtol=1e-4, atol=1e-4
    )


def test_the_rows_of_a_product_are_some_of_its_own(model_of: Callable[..., ir.Model]) -> None:
    model = model_of(
        "net (float[2, 9, 4] x) => (float[2, 9, 3] y) { y = MatMul (x, w) }", w=random_array(4, 3)
    )
    array = random_array(2, 9, 4)
    (node,) = model.graph
    rows = gather_columns(array, node, random_array(4, 3), 5)
    assert rows.shape == (1, 5, 4)
    assert {tuple(row) for row in rows[0]} <= {tuple(row) for row in array.reshape(-1, 4)}
    np.testing.assert_array_equal(rows, gather_columns(array, node, random_array(4, 3), 5))
