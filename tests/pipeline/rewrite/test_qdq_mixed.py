"""Layers of one model in different formats: each reads its tensor in its own, and runs in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.models.session import open_session, run
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.rewrite.precision import to_fp16
from trtq.pipeline.rewrite.qdq import quantize

_NET = """
net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {
  [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w0)
  r = Relu (a)
  [left] l = Conv <pads = [1, 1, 1, 1]> (r, w1)
  [right] t = Conv <pads = [1, 1, 1, 1]> (r, w1)
  [join] s = Add (l, t)
  u = Relu (s)
  [tail] y = Conv <pads = [1, 1, 1, 1]> (u, w2)
}"""
_CLIPPED, _SEEN = 3.0, 5.0


@pytest.fixture
def model(model_of: Callable[..., ir.Model]) -> ir.Model:
    weights = {f"w{index}": random_array(16, 16, 3, 3) / 12 for index in range(3)}
    return model_of(_NET, **weights)


def ranges_of(placement: Placement) -> Ranges:
    """Ranges chosen for INT8, which clip."""
    tensors = {name: Range(_CLIPPED, -1.0, _SEEN) for name in placement.activations}
    return Ranges(tensors, "made", "0", "none", 1)


def mixed(model: ir.Model, scale_dtype: str = "float32") -> tuple[ir.Model, Placement]:
    placement = place(model, forms={"right": FP8, "stem": FP8})
    return quantize(model, placement, ranges_of(placement), scale_dtype=scale_dtype), placement


def scale_of(node: ir.Node, place: int) -> float:
    pair = node.inputs[place]
    assert pair is not None
    producer = pair.producer()
    assert producer is not None
    scale = producer.inputs[1]
    assert scale is not None
    assert scale.const_value is not None
    return float(scale.const_value.numpy())


def test_each_layer_has_its_format_and_what_joins_them_that_of_its_convolution(model: ir.Model) -> None:
    _, placement = mixed(model)
    forms = {
        node.name: dict(node.scheme.inputs)[node.activations[0][0]].format for node in placement.quantized
    }
    assert forms == {"stem": FP8, "left": INT8, "right": FP8, "join": INT8, "tail": INT8}
    weights = {
        node.name: node.held_weight.encoding.format for node in placement.quantized if node.held_weight
    }
    assert weights == {"stem": FP8, "left": INT8, "right": FP8, "tail": INT8}
    assert placement.min_opset == 19
    assert placement.activations == ("x", "r", "t", "u")


def test_a_tensor_read_in_two_formats_gets_a_pair_for_each(model: ir.Model) -> None:
    """That of INT8 clips where its range says so, that of FP8 holds all that was seen."""
    made, _ = mixed(model)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    nodes = {node.name: node for node in made.graph}
    assert scale_of(nodes["left"], 0) == pytest.approx(_CLIPPED / 127)
    assert scale_of(nodes["right"], 0) == pytest.approx(_SEEN / 448)
    assert {"r_QuantizeLinear", "r_QuantizeLinear_1"} <= nodes.keys()
    assert nodes["left"].inputs[1] is not nodes["right"].inputs[1]  # one weight, in two formats


def test_a_mixture_computes_what_its_layers_do_alone(model: ir.Model) -> None:
    """Each layer adds the error that it adds where it is the only one in its format."""
    x = {"x": np.clip(random_array(2, 16, 8, 8), -1, 1)}
    plain = place(model)
    made, placement = mixed(model)

    def outputs(result: ir.Model) -> NDArray[Any]:
        return run(open_session(result, optimize=False), ["y"], x)[0]

    wanted = outputs(model)
    error = np.abs(outputs(made) - wanted).max()
    assert 0 < error < 0.1 * np.abs(wanted).max()
    all_int8 = outputs(quantize(model, plain, ranges_of(plain)))
    assert not np.array_equal(outputs(made), all_int8)
    part = replace(placement, quantized=tuple(node for node in placement.quantized if node.name == "left"))
    alone = replace(plain, quantized=tuple(node for node in plain.quantized if node.name == "left"))
    np.testing.assert_array_equal(
        outputs(quantize(model, part, ranges_of(plain))), outputs(quantize(model, alone, ranges_of(plain)))
    )


def test_a_rescaled_tensor_holds_all_that_was_seen_in_another_format(model: ir.Model) -> None:
    """Channels that the layer before is scaled by are scaled for all that read them."""
    placement = place(model, forms={"right": FP8})
    channels = {"r": Channels(scale=(2.0,) * 16, amax=1.5, largest=4.0)}
    made = quantize(model, placement, replace(ranges_of(placement), channels=channels))
    nodes = {node.name: node for node in made.graph}
    assert scale_of(nodes["left"], 0) == pytest.approx(1.5 / 127)
    assert scale_of(nodes["right"], 0) == pytest.approx(4.0 / 448)


def test_neighbours_in_different_formats_run_in_theirs(
    model: ir.Model, build_rtx: Callable[..., dict[str, set[str]]]
) -> None:
    made, _ = mixed(model, "float16")
    infer_shapes(made)
    half, kept = to_fp16(made)
    assert kept == ()
    kernels = build_rtx(half)
    for layer, dtype in (("stem", "FP8"), ("left", "Int8"), ("right", "FP8"), ("tail", "Int8")):
        found = [types for name, types in kernels.items() if layer in name.replace("+", "_").split("_")]
        assert any(dtype in types for types in found), (layer, kernels)
