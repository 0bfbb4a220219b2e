"""Caches of codes: what comes goes on unchanged, and what is new is rounded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cached_decoder import PAIRS, write_decoder

from trtq.calibrators.ranges import Range, Ranges
from trtq.errors import UsageError
from trtq.models.session import open_session, run
from trtq.pipeline.formats import FP8, FP16, FP32, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.graph.kv_cache import find_caches, find_coded_caches
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.mixed import WeightEncoding, quantize_graph

_RNG = np.random.default_rng(2)
_AMAX = {"present_0_key": 5.0, "present_0_value": 4.5}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return load(write_decoder(tmp_path_factory.mktemp("decoder") / "m.onnx"), min_opset=21)


def _ranges(form: CodeFormat) -> Ranges:
    tensors = {name: Range(amax, -amax, amax) for name, amax in _AMAX.items()}
    return Ranges(tensors, "minmax()", "", "", 1, formats=dict.fromkeys(tensors, form.name))


@pytest.mark.parametrize("rest", [FP32, FP16])
@pytest.mark.parametrize(
    ("form", "runtime"), [(INT8, "tensorrt"), (INT8, "onnxruntime"), (FP8, "tensorrt")], ids=str
)
def test_codes_of_the_past_go_on_unchanged(
    graph: Graph, form: CodeFormat, runtime: str, rest: FloatFormat
) -> None:
    placement = Placement(caches=find_caches(graph.model, form, graph.path))
    how = WeightEncoding(runtime=runtime)  # type: ignore[arg-type]
    model = quantize_graph(graph, placement, _ranges(form), rest=rest, weights=how).model
    caches = find_coded_caches(model)
    assert {item.past: item.present for item in caches} == PAIRS
    assert [item.scale for item in caches] == pytest.approx(
        [amax / form.largest for amax in _AMAX.values()], rel=0.01
    )
    assert model.graph.inputs[1].dtype is model.graph.outputs[1].dtype is form.dtype
    levels = np.concatenate([-form.magnitudes, form.magnitudes])
    past = {name: np.resize(levels, (1, 2, 16, 16)).astype(np.float32) for name in PAIRS}
    if form is INT8:
        past = {name: array.astype(np.int8) for name, array in past.items()}
    tokens = {"input_ids": _RNG.integers(0, 64, (1, 5))}
    presents = run(open_session(model, optimize=False), [*PAIRS.values()], tokens | past)
    floats = {item.past: item.decode(past[item.past]) for item in caches}
    wanted = run(open_session(graph.model, optimize=False), [*PAIRS.values()], tokens | floats)
    for cache, codes, numbers in zip(caches, presents, wanted, strict=True):
        np.testing.assert_array_equal(codes[:, :, :16], past[cache.past])
        new = numbers[:, :, 16:]
        assert np.abs(new).max() < _AMAX[cache.present]
        step = cache.scale / 2 if form is INT8 else np.abs(new) / 16 + cache.scale
        assert (np.abs(cache.decode(codes)[:, :, 16:] - new) <= step * 1.01 + 0.01 * np.abs(new)).all()


def test_numbers_become_the_codes_that_the_graph_makes(graph: Graph) -> None:
    placement = Placement(caches=find_caches(graph.model, INT8, graph.path))
    cache, _ = find_coded_caches(quantize_graph(graph, placement, _ranges(INT8)).model)
    np.testing.assert_array_equal(
        cache.encode(np.array([-9, -5, 0, 1, 9], np.float32)), np.array([-128, -127, 0, 25, 127], np.int8)
    )


def test_int8_codes_are_joined_for_tensorrt_and_not_for_onnxruntime(graph: Graph) -> None:
    placement = Placement(caches=find_caches(graph.model, INT8, graph.path))
    dtypes = {}
    for runtime in ("tensorrt", "onnxruntime"):
        how = WeightEncoding(runtime=runtime)
        model = quantize_graph(graph, placement, _ranges(INT8), weights=how).model
        open_session(model, optimize=runtime == "onnxruntime")
        dtypes[runtime] = {node.outputs[0].dtype for node in model.graph if node.op_type == "Concat"}
    assert dtypes == {"tensorrt": {INT8.dtype}, "onnxruntime": {FP32.dtype}}


def test_ranges_without_the_caches_are_refused(graph: Graph) -> None:
    placement = Placement(caches=find_caches(graph.model, INT8, graph.path))
    with pytest.raises(UsageError, match="the ranges hold nothing for tensor 'present_0_key'"):
        quantize_graph(graph, placement, Ranges({}, "", "", "", 0))


def test_a_placement_needs_the_ranges_of_its_caches(graph: Graph) -> None:
    placement = Placement(caches=find_caches(graph.model, FP8, graph.path))
    assert placement.formats == dict.fromkeys(PAIRS.values(), FP8)
    assert placement.min_opset == FP8.first_opset
    assert not placement.layers


def test_sizes_of_a_cache_are_read_from_its_numbers_where_codes_have_none(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 19]>
    g (float[N, 2, S, 4] new, float[N, 2, P, 4] past_key) => (float[N, 2, T, 4] present_key, int64[4] sizes) {
        before = Shape (past_key) present_key = Concat <axis = 2> (past_key, new)
        after = Shape (present_key) sizes = Add (before, after)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    grown = load(tmp_path / "m.onnx", min_opset=19)
    placement = Placement(caches=find_caches(grown.model, FP8, grown.path))
    ranges = Ranges({"present_key": Range(4.0, -4.0, 4.0)}, "minmax()", "", "", 1)
    model = quantize_graph(grown, placement, ranges).model
    feed = {"new": np.ones((1, 2, 1, 4), np.float32), "past_key": np.zeros((1, 2, 3, 4), np.float32)}
    (sizes,) = run(open_session(model, optimize=False), ["sizes"], feed)
    assert sizes.tolist() == [2, 4, 7, 8]
