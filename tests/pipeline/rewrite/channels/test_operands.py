"""Tests of weights by their input channels, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.models import tensors
from trtq.models.session import open_session, run
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.operands import read_constant
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.channels.operands import (
    add_to_bias,
    by_input,
    find_padding,
    follow_output,
    has_input_channels,
    is_depthwise,
    is_padded,
    num_input_channels,
)

_CONV = "net (float[N, {c}, 4, 4] x) => (float[N, {o}, m, k] y) {{ [layer] y = Conv <{a}> (x, w) }}"
_PRODUCT = "net (float[N, 6] x) => (float[N, 4] y) {{ [layer] y = {node} (x, w) }}"
LAYERS = [
    (_CONV.format(c=6, o=4, a="kernel_shape = [3, 3]"), (4, 6, 3, 3)),
    (_CONV.format(c=6, o=4, a="kernel_shape = [1, 1], group = 2"), (4, 3, 1, 1)),
    (_CONV.format(c=6, o=12, a="kernel_shape = [3, 3], group = 6"), (12, 1, 3, 3)),
    (_PRODUCT.format(node="MatMul"), (6, 4)),
    (_PRODUCT.format(node="Gemm <transB = 1>"), (4, 6)),
    (_PRODUCT.format(node="Gemm"), (6, 4)),
]


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _answer(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    (found,) = run(open_session(model, optimize=False), ["y"], {"x": x})
    return np.asarray(found)


def _layer(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.name == "layer")


def _image(text: str, vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns an input that is constant in every channel."""
    if "Conv" not in text:
        return vector[None]
    return np.broadcast_to(vector[None, :, None, None], (1, vector.size, 4, 4)).copy()


@pytest.mark.parametrize(("text", "shape"), LAYERS)
def test_a_constant_input_gives_what_the_layer_makes_of_it(
    graph_of: Callable[..., Graph], text: str, shape: tuple[int, ...]
) -> None:
    graph = graph_of(text, w=_random(*shape))
    node, vector = _layer(graph.model), _random(6)
    assert num_input_channels(node) == 6
    ours = follow_output(read_constant(node.inputs[1]).astype(np.float64), vector, node)
    theirs = _answer(graph.model, _image(text, vector))
    theirs = theirs[0, :, 0, 0] if theirs.ndim == 4 else theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("text", "shape"), LAYERS)
def test_weights_times_a_vector_undo_a_division_of_the_input(
    graph_of: Callable[..., Graph], text: str, shape: tuple[int, ...]
) -> None:
    weight, scale = _random(*shape), np.array([0.5, 2, 4, 1, 0.25, 8])  # powers of two: exact
    plain = graph_of(text, w=weight)
    scaled = graph_of(text, w=(weight * by_input(scale, _layer(plain.model))).astype(np.float32))
    x = _random(2, 6, 4, 4) if "Conv" in text else _random(2, 6)
    divisor = scale.reshape(1, 6, *(1,) * (x.ndim - 2)).astype(np.float32)
    np.testing.assert_array_equal(_answer(plain.model, x), _answer(scaled.model, x / divisor))


@pytest.mark.parametrize(
    ("text", "weight"),
    [
        ("net (float[6, N] x) => (float[N, 4] y) { [layer] y = Gemm <transA = 1> (x, w) }", (6, 4)),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm <alpha = 1e6> (x, w) }", (6, 4)),
        ("net (float[6, N] x) => (float[4, N] y) { [layer] y = MatMul (w, x) }", (4, 6)),
        ("net (float[3, N, 6] x) => (float[3, N, 4] y) { [layer] y = MatMul (x, w) }", (3, 6, 4)),
    ],
)
def test_products_of_other_forms_have_no_input_channels(
    graph_of: Callable[..., Graph], text: str, weight: tuple[int, ...]
) -> None:
    graph = graph_of(text, w=_random(*weight))
    (layer,) = place(graph.model).quantized
    assert not has_input_channels(layer, _layer(graph.model))


@pytest.mark.parametrize(
    ("attributes", "padded"),
    [
        ("kernel_shape = [3, 3]", False),
        ("kernel_shape = [3, 3], pads = [0, 0, 0, 0]", False),
        ("kernel_shape = [3, 3], pads = [0, 1, 0, 0]", True),
        ('kernel_shape = [3, 3], auto_pad = "SAME_UPPER"', True),
        ('kernel_shape = [3, 3], auto_pad = "VALID"', False),
    ],
)
def test_padding_is_seen(graph_of: Callable[..., Graph], attributes: str, padded: bool) -> None:
    graph = graph_of(_CONV.format(c=6, o=4, a=attributes), w=_random(4, 6, 3, 3))
    assert is_padded(_layer(graph.model)) == padded


@pytest.mark.parametrize(
    ("one", "other", "pads"),
    [
        ("pads = [1, 0, 1, 0]", "pads = [1, 0, 1, 0]", (1, 0, 1, 0)),
        ("pads = [0, 0, 0, 0]", "group = 1", ()),
        ("pads = [1, 1, 1, 1]", "pads = [0, 1, 1, 1]", None),
        ("pads = [1, 1, 1, 1]", "group = 1", None),
        ('auto_pad = "SAME_UPPER"', 'auto_pad = "SAME_UPPER"', None),
        ('auto_pad = "VALID"', "group = 1", ()),
    ],
)
def test_layers_share_a_padding_that_is_known_and_the_same(
    graph_of: Callable[..., Graph], one: str, other: str, pads: tuple[int, ...] | None
) -> None:
    layers = [
        _layer(
            graph_of(_CONV.format(c=6, o=4, a=f"kernel_shape = [3, 3], {item}"), w=_random(4, 6, 3, 3)).model
        )
        for item in (one, other)
    ]
    assert find_padding(layers) == pads


def test_a_convolution_of_one_input_channel_a_group_is_depthwise(graph_of: Callable[..., Graph]) -> None:
    for index, (text, shape) in enumerate(LAYERS):
        assert is_depthwise(_layer(graph_of(text, w=_random(*shape)).model)) == (index == 2)
        assert not is_padded(_layer(graph_of(text, w=_random(*shape)).model))


@pytest.mark.parametrize(
    ("text", "num_nodes"),
    [
        ("net (float[N, 6, 4, 4] x) => (float[N, 4, 2, 2] y) { [layer] y = Conv (x, w3, b) }", 1),
        ("net (float[N, 6, 4, 4] x) => (float[N, 4, 2, 2] y) { [layer] y = Conv (x, w3) }", 1),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm (x, w, b) }", 1),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm (x, w) }", 1),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm <beta = 0.5> (x, w, b) }", 1),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm <beta = 0.5> (x, w) }", 2),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = Gemm <beta = 0.0> (x, w) }", 2),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] y = MatMul (x, w) }", 2),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] a = MatMul (x, w) [s] y = Add (b, a) }", 2),
        ("net (float[N, 6] x) => (float[N, 4] y) { [layer] a = MatMul (x, w) [s] y = Sub (a, b) }", 3),
        ("net (float[3, 6] x) => (float[3, 4] y) { [layer] a = MatMul (x, w) [s] y = Add (a, m) }", 3),
        (
            "net (float[N, 6] x) => (float[N, 4] y) "
            "{ [layer] a = MatMul (x, w) [s] c = Add (a, b) [t] y = Mul (a, c) }",
            4,
        ),
    ],
)
def test_a_constant_is_added_to_what_the_layer_makes(
    graph_of: Callable[..., Graph], text: str, num_nodes: int
) -> None:
    weights = {"w": _random(6, 4), "w3": _random(4, 6, 3, 3), "b": _random(4), "m": _random(3, 4)}
    graph = graph_of(
        text,
        **{
            name: array
            for name, array in weights.items()
            if f"{name})" in text or f" {name}," in text or f"({name}," in text
        },
    )
    x = _random(3, 6, 4, 4) if "Conv" in text else _random(3, 6)
    added = np.array([1.0, -2.0, 0.5, 3.0])
    shape = (4, 1, 1) if "Conv" in text else (4,)
    wanted = _layer_output(graph.model, x) + added.reshape(shape)
    add_to_bias(GraphEditor(graph.model), _layer(graph.model), added)
    assert len(graph.model.graph) == num_nodes
    ours = _answer(graph.model, x)
    np.testing.assert_allclose(ours, _rest(text, wanted, weights), rtol=1e-5, atol=1e-5)
    assert [value.name for value in graph.model.graph.outputs] == ["y"]


def _layer_output(model: ir.Model, x: NDArray[np.float32]) -> NDArray[np.float32]:
    tapped = model.clone()
    tapped.graph.outputs[:] = [_layer(tapped).outputs[0]]
    name = str(_layer(tapped).outputs[0].name)
    (found,) = run(open_session(tapped, optimize=False), [name], {"x": x})
    return np.asarray(found)


def _rest(text: str, a: NDArray[np.float32], weights: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Returns what the nodes behind the layer make of its output."""
    if "Sub" in text:
        return a - weights["b"]
    if "Mul (a, c)" in text:
        return a * (a + weights["b"])
    if "Add (a, m)" in text:
        return a + weights["m"]
    return a + weights["b"] if "Add" in text else a


@pytest.mark.parametrize("piece", [1, 10, 1 << 18])
@pytest.mark.parametrize(
    ("shape", "factor_shape"),
    [((5, 4), (1, 4)), ((5, 4), (5, 1)), ((3, 2, 2), (3, 1, 1)), ((4,), (4,)), ((), ())],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_constant_is_scaled_in_float64_whatever_fits_a_piece(
    monkeypatch: pytest.MonkeyPatch,
    piece: int,
    shape: tuple[int, ...],
    factor_shape: tuple[int, ...],
    dtype: type,
) -> None:
    rng = np.random.default_rng(0)
    values: NDArray[Any] = rng.standard_normal(shape).astype(dtype)
    factor = np.asarray(rng.random(factor_shape))
    monkeypatch.setattr(tensors, "PIECE", piece)
    made = tensors.scale_tensor(ir.tensor(values), factor).numpy()
    expected: NDArray[Any] = (values.astype(np.float64) * factor).astype(dtype)
    assert (made.dtype, made.shape, made.tolist()) == (expected.dtype, shape, expected.tolist())
