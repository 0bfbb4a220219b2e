"""Tests of a loaded model against its file: what is refused, what is told, and when nothing is run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from recording_watcher import RecordingWatcher

from trtq.calibrators.sources import make_random_batches
from trtq.errors import ModelError
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.onnx_file import read_model
from trtq.pipeline.judge import witness
from trtq.pipeline.judge.witness import check_against_file, measure_sqnr, open_reference

_TWO_LAYERS = """g (float[N,3,6,6] x) => (float[N,K] y, int64[N,1] best) {
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w) [norm] b = BatchNormalization(c, one, zero, zero, one)
    [act] r = Relu(b) [pool] p = GlobalAveragePool(r) [flat] y = Flatten(p) [top] best = ArgMax<axis = 1>(y)
}"""
"""Of opset 11 it is raised, and its BatchNormalization folded."""


@pytest.fixture
def recording_watcher() -> RecordingWatcher:
    return RecordingWatcher()


@pytest.fixture
def loaded(graph_of: Callable[..., Graph]) -> Graph:
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
    return graph_of(_TWO_LAYERS, opset=11, w=weight, one=ones, zero=zeros)


def _change(graph: Graph, op_type: str, change: Callable[[ir.Node], None]) -> Graph:
    model = graph.model.clone()
    change(next(node for node in model.graph if node.op_type == op_type))
    return replace(graph, model=model)


def _data(graph: Graph, count: int = 2) -> Any:
    return make_random_batches(graph.inputs, {"x": (8, 3, 6, 6)}, count)


def test_a_model_that_was_loaded_as_it_is_passes(loaded: Graph, recording_watcher: RecordingWatcher) -> None:
    assert loaded.is_rewritten
    check_against_file(loaded, _data(loaded), recording_watcher)
    check_against_file(loaded, None, recording_watcher)
    assert recording_watcher.warnings == []


def test_the_file_is_not_parsed_again_where_the_outputs_are_alike(
    loaded: Graph, recording_watcher: RecordingWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def read_counted(path: Path) -> ir.Model:
        read.append(path)
        return read_model(path)

    monkeypatch.setattr(witness, "read_model", read_counted)
    check_against_file(loaded, _data(loaded), recording_watcher)
    assert read == []


def test_the_node_is_named_that_computes_something_else(loaded: Graph) -> None:
    def change(node: ir.Node) -> None:
        node.op_type = "Softplus"

    match = (
        r"node 'act' \(Relu\) gives something else than in .*onnx itself once trtq has loaded it "
        r"\(-?\d+\.\d dB SQNR at output 'y', on random numbers\); export the model with opset 19 or newer, "
        r"without what trtq rewrites: raised the opset from 11 to 19; folded 1 BatchNormalization"
    )
    with pytest.raises(ModelError, match=match):
        check_against_file(_change(loaded, "Relu", change), None, RecordingWatcher())


def test_a_folded_layer_is_told_by_the_node_behind_it(loaded: Graph) -> None:
    def change(node: ir.Node) -> None:
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])

    with pytest.raises(ModelError, match=r"node 'act' \(Relu\) gives something else than in"):
        check_against_file(_change(loaded, "Conv", change), _data(loaded), RecordingWatcher())


def test_another_shape_is_told(loaded: Graph) -> None:
    def change(node: ir.Node) -> None:
        node.attributes["pads"] = ir.AttrInt64s("pads", [1, 1, 1, 1])
        node.op_type = "MaxPool"
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", [3, 3])

    with pytest.raises(
        ModelError, match=r"node 'pool' \(GlobalAveragePool\) .* \(of another shape at output"
    ):
        check_against_file(_change(loaded, "GlobalAveragePool", change), None, RecordingWatcher())


def test_nothing_is_run_where_nothing_was_rewritten(
    graph_of: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a session was opened")

    graph = graph_of("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=19)
    assert not graph.is_rewritten
    monkeypatch.setattr(witness, "open_session", fail)
    check_against_file(graph, None, RecordingWatcher())


def test_what_cannot_be_run_is_told(
    graph_of: Callable[..., Graph], recording_watcher: RecordingWatcher
) -> None:
    text = "g (float[2,3,4] x, float[3] b) => (float[2,3,4] y) { y = Add<axis = 1, broadcast = 1>(x, b) }"
    graph = graph_of(text, opset=6)
    check_against_file(graph, None, recording_watcher)
    (warning,) = recording_watcher.warnings
    told = (
        r"is not compared with .* itself, and is the reference of every comparison: ONNX Runtime cannot load"
    )
    assert re.search(told, warning)


def test_a_model_that_draws_random_numbers_is_told(
    graph_of: Callable[..., Graph], recording_watcher: RecordingWatcher
) -> None:
    text = "g (float[N,3] x) => (float[N,3] y) { r = RandomNormalLike(x) y = Add(x, r) }"
    check_against_file(graph_of(text, opset=11), None, recording_watcher)
    assert recording_watcher.warnings[0].endswith("(RandomNormalLike) draws random numbers")


def test_made_up_inputs_that_the_file_does_not_take_are_told(
    graph_of: Callable[..., Graph], recording_watcher: RecordingWatcher
) -> None:
    text = "g (float[N,3] x, int64[2] n) => (float[A,B] y) { r = Reshape(x, n) y = Softmax<axis = 1>(r) }"
    check_against_file(graph_of(text, opset=11), None, recording_watcher)
    told = "itself: it was tried on random numbers, and ONNX Runtime cannot run the model"
    assert told in recording_watcher.warnings[0]


def test_a_model_that_needs_too_much_memory_is_told(
    loaded: Graph, recording_watcher: RecordingWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "find_free_bytes", lambda: 0)
    check_against_file(loaded, None, recording_watcher)
    told = f"the loaded model is not compared with {loaded.path} itself: there is too little memory"
    assert recording_watcher.warnings == [told]


def test_a_few_samples_are_read(loaded: Graph) -> None:
    seen = []

    def read(feeds: Any) -> Any:
        for feed in feeds:
            seen.append(feed.num_samples)
            yield feed

    data = _data(loaded, 5).changed(read)
    check_against_file(loaded, data, RecordingWatcher())
    assert seen == [8]


def test_a_tie_is_no_other_meaning(loaded: Graph, recording_watcher: RecordingWatcher) -> None:
    model = loaded.model.clone()
    edit, conv = GraphEditor(model), model.graph[0]
    assert conv.inputs[1] is not None
    assert conv.inputs[1].const_value is not None
    weight = conv.inputs[1].const_value.numpy()
    edit.set_constant(conv, 1, "tied", np.broadcast_to(weight[:1], weight.shape).copy())  # all channels tie
    tied = loaded.path.with_name("tied.onnx")
    ir.save(model, tied)
    flat = next(node for node in model.graph if node.op_type == "Flatten")
    assert flat.inputs[0] is not None
    nudge = edit.add_constant("nudge", np.array([0, 0, 0, 1e-6], np.float32).reshape(4, 1, 1))
    nudged = edit.insert("Add", [flat.inputs[0], nudge], like=flat.inputs[0], output="nudged")
    flat.replace_input_with(0, nudged)
    check_against_file(replace(loaded, path=tied, model=model), None, recording_watcher)
    assert recording_watcher.warnings == [
        f"output 'best' differs from that of {tied} on random numbers, and only from where values tie but "
        f"for rounding: what follows is not compared"
    ]


@pytest.mark.parametrize(
    ("theirs", "ours", "wanted"),
    [
        ([1, 2], [1, 2], np.inf),
        ([10, 0], [10, 1], 20.0),
        ([0, 0], [0, 1e-9], np.inf),
        ([3e-6, 1e-6], [3.1e-6, 1e-6], np.inf),
        ([0, 0], [0, 1], -np.inf),
        ([np.inf, np.nan, 3], [np.inf, np.nan, 3], np.inf),
        ([np.inf, 1], [1, 1], -np.inf),
        ([1e200, 0], [1e200, 1e199], 20.0),
    ],
)
def test_the_ratio_of_signal_and_difference(theirs: list[float], ours: list[float], wanted: float) -> None:
    assert measure_sqnr(np.array(theirs), np.array(ours)) == pytest.approx(wanted)


def test_a_file_of_an_opset_before_7_is_run_raised(path_of: Callable[..., Path]) -> None:
    text = "g (float[2,3,4] x, float[3] b) => (float[2,3,4] y) { y = Add<axis = 1, broadcast = 1>(x, b) }"
    feed = {"x": np.zeros((2, 3, 4), np.float32), "b": np.array([1, 2, 3], np.float32)}
    found = np.asarray(open_reference(path_of(text, opset=6)).run(None, feed)[0])
    np.testing.assert_array_equal(found[0], [[1] * 4, [2] * 4, [3] * 4])


def test_a_bf16_file_is_run_in_fp32(tmp_path: Path, recording_watcher: RecordingWatcher) -> None:
    weight = ir.tensor(np.eye(3, dtype=np.float32).astype(ml_dtypes.bfloat16), name="w")
    model = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 17]> '
        "g (bfloat16[N,3] x, bfloat16[3,3] w) => (bfloat16[N,3] y) { m = MatMul(x, w) y = Softmax(m) }"
    )
    given = model.graph.inputs.pop(1)
    given.const_value = weight
    model.graph.initializers.add(given)
    ir.save(model, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=19)
    assert graph.is_rewritten
    check_against_file(graph, None, recording_watcher)
    assert recording_watcher.warnings == []
    changed = _change(graph, "Softmax", lambda node: setattr(node, "op_type", "LogSoftmax"))
    with pytest.raises(ModelError, match=r"\(Softmax\) gives something else than in"):
        check_against_file(changed, None, recording_watcher)


def test_another_file_that_cannot_be_run_is_refused(path_of: Callable[..., Path]) -> None:
    path = path_of("g (double[N] x) => (double[N] y) { y = Celu(x) }", opset=12)
    with pytest.raises(ModelError, match="ONNX Runtime cannot load the model"):
        open_reference(path)


def test_a_model_that_would_take_more_memory_than_it_may_is_not_run(
    loaded: Graph, recording_watcher: RecordingWatcher
) -> None:
    check_against_file(loaded, None, recording_watcher, most_bytes=100)
    (told,) = recording_watcher.warnings
    assert told.endswith("itself: running both would take 896 bytes of memory")
