"""Attention with a cache in one node becomes plain nodes that compute what ONNX Runtime's kernels do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.pipeline.calibrate import load_to_quantize
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import INT8
from trtq.pipeline.graph.kv_cache import find_caches
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.judge.witness import check_against_file
from trtq.progress import choose_watcher

_TEXT = """<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>
g ({dtype}{query} q, {inputs}, {dtype}[B,{shared},P,32] past_k, {dtype}[B,{shared},P,32] past_v)
  => ({dtype}{query} y, {dtype}[B,{shared},T,32] present_k, {dtype}[B,{shared},T,32] present_v) {{
  [attention] y, present_k, present_v = {node}
}}"""
_GROUPED = "com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = {shared}, {more}> ({given})"
_ROTARY = "q, k, v, past_k, past_v, last, total, cos, sin"
_NOTE = "wrote 1 attention with a cache as plain nodes"
Feed = dict[str, NDArray[Any]]


def _load(path: Path, text: str, constants: Feed) -> Graph:
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    onnx.save(model, path)
    graph = load(path, min_opset=17)
    assert _NOTE in graph.notes
    assert {node.domain for node in graph.model.graph} == {""}
    assert graph.is_rewritten
    return graph


def _random(*shape: int, dtype: str = "float") -> NDArray[Any]:
    kind = np.float16 if dtype == "float16" else np.float32
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(kind)


def _compare(graph: Graph, feed: Feed, tolerance: float = 2e-5) -> None:
    names = [str(value.name) for value in graph.model.graph.outputs]
    theirs = onnxruntime.InferenceSession(graph.path).run(names, feed)
    ours = run(open_session(graph.model, optimize=False), names, feed)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance, rtol=tolerance)


def _grouped(
    path: Path, more: str = "do_rotary = 0", *, shared: int = 2, given: str = _ROTARY, dtype: str = "float"
) -> Graph:
    node = _GROUPED.format(shared=shared, more=more, given=given)
    width = 128 if "k, v" in given else 128 + 64 * shared
    inputs = [f"{dtype}[B,S,{32 * shared}] {name}" for name in ("k", "v") if width == 128]
    inputs += ["int32[B] last", "int32 total"]
    inputs += ["int64[B,S] places"] if "places" in given else []
    inputs += [f"{dtype}[B,1,S,T] bias"] if "bias" in given else []
    text = _TEXT.format(
        opset=17, dtype=dtype, query=f"[B,S,{width}]", inputs=", ".join(inputs), shared=shared, node=node
    ).replace(f"({dtype}[B,S,{width}] y", f"({dtype}[B,S,128] y")
    angles = np.arange(40)[:, None] * 0.3 ** np.arange(8)
    kind = np.float16 if dtype == "float16" else np.float32
    tables = {"cos": np.cos(angles).astype(kind), "sin": np.sin(angles).astype(kind)}
    return _load(path, text, {**tables, **({"sink": np.zeros(4, kind)} if "sink" in given else {})})


def _feed(past: int, new: int, *, shared: int = 2, batch: int = 2, dtype: str = "float") -> Feed:
    return {
        "q": _random(batch, new, 128, dtype=dtype),
        "k": _random(batch, new, 32 * shared, dtype=dtype),
        "v": _random(batch, new, 32 * shared, dtype=dtype)[..., ::-1].copy(),
        "past_k": _random(batch, shared, past, 32, dtype=dtype),
        "past_v": _random(batch, shared, past, 32, dtype=dtype)[..., ::-1].copy(),
        "last": np.full(batch, past + new - 1, np.int32),
        "total": np.array(past + new, np.int32),
    }


@pytest.mark.parametrize(("past", "new"), [(0, 5), (7, 1), (6, 1)])
@pytest.mark.parametrize(
    "more",
    [
        "do_rotary = 0",
        "do_rotary = 1",
        "do_rotary = 1, rotary_interleaved = 1",
        "do_rotary = 1, local_window_size = 3",
        "do_rotary = 1, softcap = 2.0, scale = 0.7",
    ],
)
def test_grouped_queries_are_as_in_onnx_runtime(tmp_path: Path, more: str, past: int, new: int) -> None:
    _compare(_grouped(tmp_path / "m.onnx", more), _feed(past, new))


def test_several_new_tokens_behind_a_cache_are_too(tmp_path: Path) -> None:
    _compare(_grouped(tmp_path / "m.onnx", "do_rotary = 1"), _feed(6, 3, batch=1))


@pytest.mark.parametrize("shared", [1, 4])
def test_as_many_keys_as_queries_or_one(tmp_path: Path, shared: int) -> None:
    _compare(_grouped(tmp_path / "m.onnx", "do_rotary = 1", shared=shared), _feed(4, 1, shared=shared))


def test_packed_queries_keys_and_values(tmp_path: Path) -> None:
    graph = _grouped(tmp_path / "m.onnx", "do_rotary = 1", given=_ROTARY.replace("q, k, v", "q, , "))
    feed = {name: value for name, value in _feed(4, 1).items() if name not in ("k", "v")}
    _compare(graph, {**feed, "q": _random(2, 1, 256)})


def test_positions_and_a_bias_that_are_given(tmp_path: Path) -> None:
    graph = _grouped(tmp_path / "m.onnx", "do_rotary = 1, softcap = 3.0", given=f"{_ROTARY}, places, bias")
    feed = _feed(4, 1)
    _compare(graph, {**feed, "places": np.array([[9], [2]]), "bias": _random(2, 1, 1, 5)})


def test_fp16_is_nearly_the_same(tmp_path: Path) -> None:
    graph = _grouped(tmp_path / "m.onnx", "do_rotary = 1", dtype="float16")
    _compare(graph, _feed(5, 1, dtype="float16"), tolerance=5e-3)


def test_onnx_runtime_keeps_its_own_node_which_takes_texts_of_unequal_length(tmp_path: Path) -> None:
    path = _grouped(tmp_path / "m.onnx", "do_rotary = 1").path
    graph, _ = load_to_quantize(path, None, Target(backend="onnxruntime"), choose_watcher(None))
    assert "GroupQueryAttention" in {node.op_type for node in graph.model.graph}
    feed = _feed(6, 1)
    feed["last"][1] = 4
    _compare(graph, feed)
    cached = Target(backend="onnxruntime", precision="fp16", kv_cache="int8")
    graph, _ = load_to_quantize(path, None, cached, choose_watcher(None))
    assert any("with --backend onnxruntime, which keeps" in note for note in graph.notes)
    assert len(find_caches(graph.model, INT8, path)) == 2


def test_texts_that_do_not_fill_the_cache_give_nan_and_no_wrong_number(tmp_path: Path) -> None:
    graph = _grouped(tmp_path / "m.onnx", "do_rotary = 1")
    feed = _feed(6, 1)
    feed["last"][1] = 4
    (found,) = run(open_session(graph.model, optimize=False), ["y"], feed)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    first = _feed(0, 4)
    first["last"][1] = 2  # at the beginning what is behind a text is not looked at
    (found,) = run(open_session(graph.model, optimize=False), ["y"], first)
    (other,) = onnxruntime.InferenceSession(graph.path).run(["y"], first)
    np.testing.assert_allclose(found[1, :3], other[1, :3], atol=2e-5)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (_GROUPED.format(shared=2, more="smooth_softmax = 1", given=_ROTARY), "smooth_softmax = 1"),
        (_GROUPED.format(shared=2, more="softcap = 1.0", given=f"{_ROTARY}, , , sink"), "a head_sink"),
        (_GROUPED.format(shared=3, more="softcap = 1.0", given=_ROTARY), "4 heads that share 3 keys"),
        (
            "Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, , past_k, past_v)",
            "its scores as an output",
        ),
    ],
)
def test_what_has_no_plain_form_stays_and_is_told(tmp_path: Path, node: str, reason: str) -> None:
    inputs = "float[B,S,64] k, float[B,S,64] v, int32[B] last, int32 total"
    text = _TEXT.format(opset=23, dtype="float", query="[B,S,128]", inputs=inputs, shared=2, node=node)
    if reason == "its scores as an output":
        text = text.replace("present_v = ", "present_v, qk = ").replace(
            "present_v) {", "present_v, float[B,4,S,T] qk) {"
        )
    model = onnx.parser.parse_model(text)
    tables = {"cos": np.ones((40, 8), np.float32), "sin": np.ones((40, 8), np.float32)}
    for name, values in {**tables, "sink": np.zeros(4, np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "m.onnx")
    graph = load(tmp_path / "m.onnx", min_opset=17)
    assert [item.name for item in graph.model.graph] == ["attention"]
    op_type = graph.model.graph[0].op_type
    note = f"node 'attention' ({op_type}) stays, which TensorRT does not take: it has {reason}"
    assert graph.notes == (note,)


_STANDARD = "Attention <q_num_heads = 4, kv_num_heads = {shared}{more}> (q, k, v, {mask}, past_k, past_v)"


def _standard(path: Path, more: str = "", mask: str = "", opset: int = 23) -> Graph:
    node = _STANDARD.format(shared=2, more=f", {more}" if more else "", mask="mask" if mask else "")
    inputs = f"float[B,S,64] k, float[B,S,64] v{f', {mask} mask' if mask else ''}"
    text = _TEXT.format(opset=opset, dtype="float", query="[B,S,128]", inputs=inputs, shared=2, node=node)
    return _load(path, text, {})


def _standard_feed(past: int, new: int) -> Feed:
    return {name: value for name, value in _feed(past, new).items() if name not in ("last", "total")}


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(("past", "new"), [(0, 5), (7, 1), (3, 4)])
@pytest.mark.parametrize("more", ["", "softcap = 2.0, scale = 0.7", "softmax_precision = 1"])
def test_attention_of_onnx_is_as_in_onnx_runtime(
    tmp_path: Path, more: str, past: int, new: int, opset: int
) -> None:
    _compare(_standard(tmp_path / "m.onnx", more, opset=opset), _standard_feed(past, new))


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(("past", "new"), [(0, 5), (7, 1), (3, 4)])
def test_a_causal_one_too(tmp_path: Path, past: int, new: int, opset: int) -> None:
    _compare(_standard(tmp_path / "m.onnx", "is_causal = 1", opset=opset), _standard_feed(past, new))


@pytest.mark.parametrize("kind", ["bool[S,T]", "float[B,1,S,T]"])
def test_masks(tmp_path: Path, kind: str) -> None:
    graph = _standard(tmp_path / "m.onnx", "is_causal = 1, softcap = 1.5", kind)
    mask = np.random.default_rng(0).random((3, 7)) > 0.4 if "bool" in kind else _random(2, 1, 3, 7)
    if "bool" in kind:
        mask[:, 0] = True
    _compare(graph, {**_standard_feed(4, 3), "mask": mask})


def test_a_query_that_sees_nothing_is_zero(tmp_path: Path) -> None:
    graph = _standard(tmp_path / "m.onnx", "", "bool[S,T]")
    feed = {**_standard_feed(4, 2), "mask": np.array([[False] * 6, [True] * 6])}
    (found,) = run(open_session(graph.model, optimize=False), ["y"], feed)
    assert (found[:, 0] == 0).all()
    assert (found[:, 1] != 0).any()


def test_heads_as_an_axis(tmp_path: Path) -> None:
    text = _TEXT.format(
        opset=23,
        dtype="float",
        query="[B,4,S,32]",
        inputs="float[B,2,S,32] k, float[B,2,S,32] v",
        shared=2,
        node="Attention <is_causal = 1> (q, k, v, , past_k, past_v)",
    )
    feed = {
        name: _random(2, heads, size, 32) + np.float32(0.1 * heads)
        for name, heads, size in (("q", 4, 3), ("k", 2, 3), ("v", 2, 3), ("past_k", 2, 5), ("past_v", 2, 5))
    }
    _compare(_load(tmp_path / "m.onnx", text, {}), feed)


def test_attention_without_a_cache_stays(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 23]>
    g (float[B,4,S,32] q) => (float[B,4,S,32] y) { [attention] y = Attention (q, q, q) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    assert [node.op_type for node in load(tmp_path / "m.onnx", min_opset=17).model.graph] == ["Attention"]


@pytest.mark.parametrize("is_grouped", [True, False])
def test_caches_of_codes_can_take_their_place(tmp_path: Path, is_grouped: bool) -> None:
    path = tmp_path / "m.onnx"
    graph = _grouped(path, "do_rotary = 1") if is_grouped else _standard(path, "is_causal = 1")
    found = {cache.past: cache.present for cache in find_caches(graph.model, INT8, path)}
    assert found == {"past_k": "present_k", "past_v": "present_v"}


def test_without_data_a_step_behind_a_cache_is_compared_with_the_file(tmp_path: Path) -> None:
    """Of a mask with zeros the kernel and the plain nodes make something else."""
    text = """<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>
    g (float[B,S,128] q, float[B,S,64] k, int64[B,T] attention_mask, float[B,2,P,32] past_key,
       float[B,2,P,32] past_value)
      => (float[B,S,128] y, float[B,2,T,32] present_key, float[B,2,T,32] present_value)
    <int64[1] axes = {1}, int64 one = {1}> {
      seen = ReduceSum <keepdims = 0> (attention_mask, axes)
      last = Sub (seen, one) lasts = Cast <to = 6> (last)
      sizes = Shape (attention_mask) all = Gather (sizes, one) total = Cast <to = 6> (all)
      [attention] y, present_key, present_value = com.microsoft.GroupQueryAttention
        <num_heads = 4, kv_num_heads = 2> (q, k, k, past_key, past_value, lasts, total)
    }"""
    check_against_file(_load(tmp_path / "m.onnx", text, {}), None, choose_watcher(None))
