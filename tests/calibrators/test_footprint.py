"""Tests of what a model takes beside the observed tensors, and of the sentence about it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.calibrators import footprint
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.footprint import count_open_bytes, count_run_bytes
from trtq.calibrators.observe import PassControl, observe

TEXT = """<ir_version: 9, opset_import: ["" : 17]> net (float[N,M,500] x) => (float[N,M,5] y)
{ a = MatMul(x, w)  b = Add(a, bias)  y = MatMul(b, v) }"""
ARRAYS = {"x": np.ones((1, 40, 500), np.float32)}


def _model() -> ir.Model:
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("w", (500, 500)), ("bias", (500,)), ("v", (500, 5))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _list_notes(memory: int | None) -> list[str]:
    notes = list[str]()
    batches = Batches(lambda: iter([Feed(ARRAYS, "memory", 1)]), "memory", 1, feed_samples=1)
    observe(_model(), ["b"], batches, control=PassControl(memory_bytes=memory, note=notes.append))
    return notes


def test_weights_of_layers_count_twice_and_the_largest_layer_is_that_of_the_data() -> None:
    assert count_open_bytes(_model()) == 4 * (2 * 250_000 + 500 + 2 * 2_500)
    assert count_run_bytes(_model(), ARRAYS) == 4 * 2 * 40 * 500
    assert count_run_bytes(_model(), {"x": np.ones((2, 7, 500), np.float32)}) == 4 * 2 * 2 * 7 * 500


def test_a_model_that_takes_more_than_the_calibration_memory_is_told_at_once() -> None:
    assert _list_notes(1_000_000)[0] == (
        "the model alone takes about 2.2 MB of memory: 2.0 MB for its weights as ONNX Runtime holds them, "
        "160.0 kB for its largest layer; the calibration memory of 1.0 MB is for the observed tensors beside "
        "it"
    )
    assert not _list_notes(10_000_000)
    assert not _list_notes(None)


def test_a_model_that_takes_more_than_is_free_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "find_free_bytes", lambda: 2_000_000)
    for memory in (None, 10_000_000):
        (note,) = _list_notes(memory)
        assert note.endswith("; only 2.0 MB are free, so the process may be killed")
