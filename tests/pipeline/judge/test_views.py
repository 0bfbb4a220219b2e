"""Outputs as they are judged: the samples first, and what a Concat joins apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from trtq.models.session import open_session
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.onnx_file import read_model
from trtq.pipeline.judge.views import Key, create_views, find_sample_axes


def see(graph: Graph, x: NDArray[np.float32]) -> dict[Key, NDArray[np.float32]]:
    """Returns the views of what the model computes of an input."""
    session = open_session(graph.model, optimize=False)
    names = [item.name for item in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"x": x}), strict=True))
    return create_views(graph.model).see(outputs, {"x": x}, len(x))


_BOXES = "boxes = Relu (x) scores = Sigmoid (x)"
_INPUT = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("body", "boxes", "scores"),
    [
        ("y = Concat <axis = 1> (boxes, scores)", (2, 3, 4), (2, 3, 4)),
        ("y = Concat <axis = 2> (boxes, scores)", (2, 3, 4), (2, 3, 4)),
        ("j = Concat <axis = 1> (boxes, scores) y = Transpose <perm = [0, 2, 1]> (j)", (2, 4, 3), (2, 4, 3)),
        ("j = Concat <axis = 2> (boxes, scores) y = Reshape <allowzero = 0> (j, flat)", (2, 12), (2, 12)),
        ("j = Concat <axis = 1> (boxes, x) y = Concat <axis = 1> (j, scores)", (2, 3, 4), (2, 3, 4)),
        ("j = Concat <axis = 1> (boxes, scores) y = Concat <axis = 1> (boxes, j)", (2, 6, 4), (2, 3, 4)),
        (
            """j = Concat <axis = 2> (boxes, scores) s = Shape (x) n = Slice (s, zero, one)
            f = Concat <axis = 0> (n, minus) y = Reshape <allowzero = 0> (j, f)""",
            (2, 12),
            (2, 12),
        ),
    ],
)
def test_each_joined_tensor_is_a_part(
    graph_of: Callable[..., Graph], body: str, boxes: tuple[int, ...], scores: tuple[int, ...]
) -> None:
    graph = graph_of(f"""
        net (float[N, 3, 4] x) => (float y)
        <int64[2] flat = {{0, -1}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] minus = {{-1}}>
        {{ {_BOXES} {body} }}
    """)
    seen = see(graph, _INPUT)
    assert {key[1] for key in seen} == {"", "boxes", "scores"}
    assert seen["y", "boxes"].shape == boxes
    assert seen["y", "scores"].shape == scores
    assert set(seen["y", "boxes"].ravel()) == set(np.maximum(_INPUT, 0).ravel())
    assert np.allclose(np.sort(seen["y", "scores"].ravel()), 1 / (1 + np.exp(-_INPUT.ravel())), atol=1e-4)


def test_what_is_given_is_no_part_of_its_own(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("net (float[N, 3] x) => (float[N, 6] y) { a = Tanh (x) y = Concat <axis = 1> (x, a) }")
    x = np.ones((2, 3), np.float32)
    seen = see(graph, x)
    assert {key: value.shape for key, value in seen.items()} == {("y", ""): (2, 6), ("y", "a"): (2, 3)}
    assert np.array_equal(seen["y", "a"], np.tanh(x))


def test_what_no_node_computes_any_part_of_is_seen_as_a_whole(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        "net (float[2, 3] x) => (float[3, 3] y) <float[1, 3] token = {1, 2, 3}>"
        "{ y = Concat <axis = 0> (token, x) }"
    )
    assert see(graph, np.ones((2, 3), np.float32)).keys() == {("y", "")}


def test_a_constant_that_is_joined_is_no_part(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        "net (float[2, 3] x) => (float[3, 3] y) <float[1, 3] token = {1, 2, 3}>"
        "{ a = Tanh (x) y = Concat <axis = 0> (token, a) }"
    )
    seen = see(graph, np.ones((2, 3), np.float32))
    assert seen["y", "a"].shape == (1, 2, 3)  # an output without an axis for samples is one row


def test_the_parts_of_a_batch_of_another_size_are_found(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        "net (float[N, M] x) => (float[N, K] y) { a = Tanh (x) b = Relu (x) y = Concat <axis = 1> (a, b) }"
    )
    views = create_views(graph.model)
    for shape in ((2, 3), (1, 3), (4, 5)):
        x = np.ones(shape, np.float32)
        found = views.see({"y": np.concatenate([np.tanh(x), x], axis=1)}, {"x": x}, len(x))
        assert np.array_equal(found["y", "b"], x)


def test_parts_whose_sizes_differ_in_feeds_of_one_output_shape_are_kept_apart(
    graph_of: Callable[..., Graph],
) -> None:
    graph = graph_of(
        "net (float[N, A] x, float[N, B] z) => (float[N, 8] y)"
        "{ a = Tanh (x) b = Relu (z) y = Concat <axis = 1> (a, b) }"
    )
    views = create_views(graph.model)
    for size in (3, 5):
        x, z = np.ones((2, size), np.float32), 7 * np.ones((2, 8 - size), np.float32)
        found = views.see({"y": np.concatenate([np.tanh(x), z], axis=1)}, {"x": x, "z": z}, 2)
        assert np.array_equal(found["y", "b"], z)


def test_the_parts_of_one_output_are_not_those_of_another(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("""
        net (float[N, 3] x) => (float[N, 6] y, float[N, 12] z) {
            a = Tanh (x) b = Relu (x) c = Neg (x) d = Abs (x)
            y = Concat <axis = 1> (a, b)
            ac = Concat <axis = 1> (a, c) bd = Concat <axis = 1> (b, d)
            z = Concat <axis = 1> (ac, bd)
        }
    """)
    seen = see(graph, np.ones((2, 3), np.float32))
    assert [part for output, part in seen if output == "y"] == ["", "a", "b"]
    assert [part for output, part in seen if output == "z"] == ["", "a + b", "c + d"]


def test_a_part_whose_type_onnx_does_not_infer_is_one_too(path_of: Callable[..., Path]) -> None:
    path = path_of("""
        net (float[N, 3] x) => (float[N, 6] y)
        { a = com.microsoft.Gelu (x) b = Relu (x) y = Concat <axis = 1> (a, b) }
    """)
    proto = onnx.load(path)
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, path)
    x = np.ones((2, 3), np.float32)
    found = create_views(read_model(path)).see({"y": np.ones((2, 6), np.float32)}, {"x": x}, 2)
    assert [part for _, part in found] == ["", "a", "b"]


def test_a_candidate_of_another_length_has_no_parts(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of(
        "net (float[N, 3] x) => (float[N, 6] y) { a = Tanh (x) y = Concat <axis = 1> (a, a, x) }"
    )
    views, x = create_views(graph.model), np.ones((2, 3), np.float32)
    assert list(views.see({"y": np.ones((2, 8), np.float32)}, {"x": x}, 2)) == [("y", "")]


def test_outputs_that_are_not_joined_are_seen_as_they_are(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("net (float[N, 3] x) => (float[N, 3] y) { y = Tanh (x) }")
    assert {key: value.shape for key, value in see(graph, np.ones((2, 3), np.float32)).items()} == {
        ("y", ""): (2, 3)
    }


def test_the_axis_of_the_samples_is_known_by_its_name(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("net (float[N, 5, 3] x) => (float[5, N, 3] y) { y = Transpose <perm = [1, 0, 2]> (x) }")
    x = np.arange(30, dtype=np.float32).reshape(2, 5, 3)
    assert find_sample_axes(graph.model) == {"y": 1}
    assert np.array_equal(see(graph, x)["y", ""], x)


def test_without_a_name_the_first_axis_is_that_of_the_samples(graph_of: Callable[..., Graph]) -> None:
    graph = graph_of("net (float[2, 5, 3] x) => (float[5, 2, 3] y) { y = Transpose <perm = [1, 0, 2]> (x) }")
    assert find_sample_axes(graph.model) == {}


@pytest.mark.parametrize(
    ("shape", "times"),
    [
        ("one = Constant <value_ints = [1, 3, 4]> () shape = Identity (one)", 1),
        ("shape = Shape (x)", 1),
        ("n = ReduceMax <keepdims = 0> (x) m = Cast <to = 7> (n) o = Mul (m, no) shape = Max (o, ones)", 3),
    ],
)
def test_parts_are_found_again_only_where_values_decide_their_sizes(
    graph_of: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch, shape: str, times: int
) -> None:
    graph = graph_of(f"""
        net (float[N, 3, 4] x) => (float y) <int64[3] no = {{0, 0, 0}}, int64[3] ones = {{1, 3, 4}}> {{
          {shape} wide = Expand (x, shape)
          boxes = Relu (wide) scores = Sigmoid (wide) y = Concat <axis = 1> (boxes, scores)
        }}
    """)
    views = create_views(graph.model)
    assert views.labels is not None
    assert set(views.open_sizes) == ({"y"} if times > 1 else set())
    compute = Mock(wraps=views.labels._compute)
    monkeypatch.setattr(views.labels, "_compute", compute)
    other = _INPUT + 1
    for x in (_INPUT, _INPUT, other, other, _INPUT):
        seen = views.see({"y": np.concatenate([x, x], axis=1)}, {"x": x}, len(x))
        assert {key[1] for key in seen} == {"", "boxes", "scores"}
    assert compute.call_count == times
