"""What outputs are made of, and so judged by."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.parts import list_judged_outputs, list_parts

_DETECTOR = """
    a = Relu (x) logits = Tanh (x) scores = Sigmoid (logits)
    both = Concat <axis = 1> (a, scores) y = Transpose <perm = [1, 0]> (both)
"""

_SCALES = """
    a = Relu (x) b = Sigmoid (x) c = Abs (x) d = Tanh (x)
    fine = Concat <axis = 0> (a, b) coarse = Concat <axis = 0> ({}, {}) y = Concat <axis = 1> (fine, coarse)
"""

_WHOLE = {"ArgMax": "int64", "Not": "bool", "to = 7": "int64"}


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("y = Relu (x)", ["y"]),
        ("a = Relu (x) y = Softmax (a)", ["y", "a"]),
        ("a = Relu (x) b = Sigmoid (a) y = Transpose <perm = [1, 0]> (b)", ["y", "a"]),
        ("a = Relu (x) b = Transpose <perm = [1, 0]> (a) y = Tanh (b)", ["y"]),
        ("y = Sigmoid (x)", ["y"]),  # the input of the model is not judged
        (_DETECTOR, ["y", "a", "scores", "logits"]),
        ("a = Relu (x) s = Softmax (a) i = ArgMax (s) y = Identity (i)", ["s", "a"]),
        ("a = Relu (x) b = Tanh (x) c = Greater (a, b) y = Not (c)", ["a", "b"]),
        ("a = Relu (x) b = Round (a) y = Cast <to = 7> (b)", ["b"]),
    ],
)
def test_scores_are_judged_before_they_are_squashed_or_picked_and_parts_beside_the_whole(
    graph_of: Callable[..., Graph], body: str, outputs: list[str]
) -> None:
    kind = next((kind for operator, kind in _WHOLE.items() if operator in body), "float")
    model = graph_of(f"net (float[3, 3] x) => ({kind}[M, N] y) {{ {body} }}").model
    assert list(list_judged_outputs(model)) == outputs


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ("y = Relu (x)", ["y"]),
        ("a = Relu (x) y = Concat <axis = 0> (a, x)", ["a", "x"]),
        (_DETECTOR, ["a", "scores"]),
        (
            """a = Relu (x) b = Tanh (x) c = Sqrt (x) ab = Concat <axis = 0> (a, b)
            flat = Reshape <allowzero = 0> (ab, shape) y = Concat <axis = 0> (flat, c, a)""",
            ["a", "b", "c"],
        ),
        ("a = Relu (x) b = Tanh (x) y = Concat <axis = 0> (a, b, a, b, a, b, a, b)", ["a", "b"]),
        (_SCALES.format("c", "d"), ["a + c", "b + d"]),  # boxes and scores of two scales
        (_SCALES.format("b", "c"), ["a", "b", "c"]),  # one in two places
        (
            "a = Relu (x) b = Tanh (x) y = Concat <axis = 0> (a, b, a, b, a, b, a, b, a)",
            ["y"],
        ),  # a loop's steps
    ],
)
def test_parts_are_what_is_joined_last(graph_of: Callable[..., Graph], body: str, parts: list[str]) -> None:
    net = f"net (float[3, 3] x) => (float[M, N] y) <int64[2] shape = {{6, 3}}> {{ {body} }}"
    (output,) = graph_of(net).model.graph.outputs
    assert [" + ".join(str(item.name) for item in part) for part in list_parts(output)] == parts


@pytest.mark.parametrize("body", ["a = ArgMax (x)", "b = Relu (x) a = Shape (b)"])
def test_whole_numbers_of_what_is_given_and_sizes_are_not_judged(
    graph_of: Callable[..., Graph], body: str
) -> None:
    net = f"net (float[3, 3] x) => (int64[M] y) {{ {body} y = Concat <axis = 0> (a, a) }}"
    model = graph_of(net).model
    assert list_judged_outputs(model) == ()


def test_what_is_joined_again_and_again_is_looked_at_once(graph_of: Callable[..., Graph]) -> None:
    joins = " ".join(f"c{i + 1} = Concat <axis = 0> (c{i}, c{i})" for i in range(30))
    body = f"a = Relu (x) b = Tanh (x) c0 = Concat <axis = 0> (a, b) {joins} y = Concat <axis = 0> (c30, b)"
    model = graph_of(f"net (float[3, 3] x) => (float[M, N] y) {{ {body} }}").model
    (output,) = model.graph.outputs
    assert [[item.name for item in part] for part in list_parts(output)] == [["a"], ["b"]]
    assert set(list_judged_outputs(model)) == {"y", "a", "b", *(f"c{i}" for i in range(31))}
