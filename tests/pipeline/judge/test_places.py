"""The places of a picture are found through what keeps them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from trtq.pipeline.judge.places import find_places

_WEIGHTS = {"w": np.ones((4, 3, 1, 1), np.float32), "two": np.array(2, np.float32)}


@pytest.mark.parametrize(
    ("body", "places"),
    [
        ("y = Conv (x, w)", (2, 3)),
        ("c = Conv (x, w) s = Sigmoid (c) y = Mul (two, s)", (2, 3)),
        ("c = Conv (x, w) y = Transpose <perm = [0, 2, 3, 1]> (c)", (1, 2)),
        ("c = Conv (x, w) d = Relu (c) y = Concat <axis = 1> (d, x)", (2, 3)),
        ("c = Conv (x, w) y = Concat <axis = 2> (c, c)", ()),  # parts with units of their own
        ("c = Conv (x, w) y = Softmax <axis = 2> (c)", ()),
        ("y = MatMul (x, x)", ()),
        ("y = Relu (x)", ()),
    ],
)
def test_the_axes_of_places_are_those_behind_the_channels(
    body: str, places: tuple[int, ...], model_of: Callable[..., ir.Model]
) -> None:
    model = model_of(f"g (float[2,3,8,8] x) => (float y) {{ {body} }}", **_WEIGHTS)
    assert find_places(model) == ({"y": places} if places else {})
