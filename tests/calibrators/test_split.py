"""Tests of feeds in parts: which may be split, and what a part holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from made_up import batches_of

from trtq.calibrators.batches import Feed
from trtq.calibrators.split import is_splittable, split_feed


def _model(inputs: str) -> ir.Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> net ({inputs}) => (float[N, 2] y) {{ y = Relu (x) }}'
    return ir.from_onnx_text(text)


@pytest.mark.parametrize(
    ("inputs", "feed_samples", "expected"),
    [
        ("float[N, 2] x", 4, True),
        ("float[N, 2] x", None, False),  # the samples may not be run apart
        ("float[4, 2] x", 4, False),
        ("float[N, 2] x, float[1, 2] z", 4, False),
        ("float[N, 2] x, float z", 4, False),
    ],
)
def test_samples_run_apart_where_every_batch_axis_is_open(
    inputs: str, feed_samples: int | None, expected: bool
) -> None:
    batches = replace(batches_of([np.zeros((4, 2), np.float32)]), feed_samples=feed_samples)
    assert is_splittable(_model(inputs), batches) == expected


def test_a_part_has_its_samples_and_their_names_without_a_copy() -> None:
    x, labels = np.arange(10, dtype=np.float32).reshape(5, 2), np.arange(5)
    feed = Feed({"x": x, "labels": labels}, "feed", 5, ("a", "b", "c", "d", "e"))
    parts = [*split_feed(_model("float[N, 2] x"), feed, 2)]
    assert [part.num_samples for part in parts] == [2, 2, 1]
    assert [part.names for part in parts] == [("a", "b"), ("c", "d"), ("e",)]
    assert np.concatenate([part.arrays["x"] for part in parts]).tolist() == x.tolist()
    assert all([*part.arrays] == ["x"] and np.shares_memory(part.arrays["x"], x) for part in parts)
