"""Tests of models with layers in NVFP4: what they compute, and that TensorRT-RTX runs them so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checked_qdq import ranges_to
from made_up import random_array
from numpy.typing import NDArray
from opset_23 import needs_opset_23

from trtq.calibrators.ranges import Channels, Range, Ranges
from trtq.models.session import open_session, run
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.coverage import measure_coverage
from trtq.pipeline.formats import FP16, NVFP4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.graph.fp4 import emulate_fp4
from trtq.pipeline.graph.load import Graph, load_as_it_is
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.switchable import build_switchable, open_switchable
from trtq.pipeline.rewrite.mixed import quantize_graph
from trtq.pipeline.rewrite.qdq import quantize
from trtq.pipeline.rewrite.qparams import choose_block_qparams, quantize_array

pytestmark = needs_opset_23
E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn
AMAX = 4.0
LAYERS = {
    "matmul": ("float[N, 64] x", "MatMul (x, w)", (64, 32)),
    "of three axes": ("float[N, 5, 64] x", "MatMul (x, w)", (64, 32)),
    "of four axes": ("float[N, 3, 5, 64] x", "MatMul (x, w)", (64, 32)),
    "of open axes": ("float[N, H, W, 64] x", "MatMul (x, w)", (64, 32)),
    "gemm": ("float[N, 64] x", "Gemm (x, w)", (64, 32)),
    "gemm with transB": ("float[N, 64] x", "Gemm <transB = 1> (x, w)", (32, 64)),
}
SIZES = {"N": 4, "H": 3, "W": 2}


def in_nvfp4(model: ir.Model) -> tuple[ir.Model, Placement]:
    """Returns the model with all layers that take it in NVFP4; every activation has the same range."""
    placement = place(model, form=NVFP4, force=["."])
    result = quantize(model, placement, ranges_to(dict.fromkeys(placement.activations, AMAX)))
    onnx.checker.check_model(ir.to_proto(result))
    return result, placement


def run_emulated(model: ir.Model, **feed: NDArray[Any]) -> NDArray[Any]:
    emulated = emulate_fp4(model)
    assert emulated is not None
    names = [str(model.graph.outputs[0].name)]
    return np.asarray(run(open_session(emulated, optimize=False), names, feed)[0])


def layer_of(graph_of: Callable[..., Graph], kind: str) -> Graph:
    x, call, shape = LAYERS[kind]
    text = f"g ({x}) => (float[M] y) {{ [layer] h = {call} y = Relu (h) }}".replace("float[M]", "float")
    return graph_of(text, min_opset=23, w=random_array(*shape))


def shape_of(graph: Graph) -> tuple[int, ...]:
    return tuple(dim if isinstance(dim, int) else SIZES[str(dim)] for dim in graph.inputs[0].shape)


def blocks_by_numpy(x: NDArray[np.float32]) -> NDArray[Any]:
    shared, blocks = np.float32(AMAX / 2688), x.reshape(-1, 16)
    shared = np.nextafter(shared, np.float32(1)) if float(shared) < AMAX / 2688 else shared
    amax = np.abs(blocks).max(axis=1, keepdims=True)
    scales = np.minimum(amax / np.float32(6) / shared, np.float32(448)).astype(E4M3).astype(np.float32)
    scales = scales * shared
    steps = np.clip(blocks / scales, -6, 6).astype(E2M1).astype(np.float32)
    return np.asarray((steps * scales).reshape(x.shape))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_computes_what_its_codes_say(graph_of: Callable[..., Graph], kind: str) -> None:
    graph = layer_of(graph_of, kind)
    model, placement = in_nvfp4(graph.model)
    assert [str(node.scheme) for node in placement.quantized] == ["nvfp4 x nvfp4"]
    x = np.random.default_rng(0).standard_normal(shape_of(graph)).astype(np.float32)
    weight = random_array(*LAYERS[kind][2])
    axis = 1 if "transB" in kind else 0
    qparams = choose_block_qparams(weight, Encoding(NVFP4, PerBlock(axis, 16)), "float32")
    held = qparams.decode(quantize_array(weight, qparams))
    wanted = np.maximum(blocks_by_numpy(x).astype(np.float64) @ (held.T if axis else held), 0)
    found = run_emulated(model, x=x)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert model.opset_imports == {"": 23, "trt": 1}
    assert model.ir_version == 11


def test_readers_of_one_activation_share_its_codes(graph_of: Callable[..., Graph]) -> None:
    text = """g (float[N, 64] x) => (float[N, 32] y, float[N, 32] z) {
      [one] y = MatMul (x, w) [two] z = MatMul (x, v) }"""
    graph = graph_of(text, min_opset=23, w=random_array(64, 32), v=random_array(64, 32))
    model, _ = in_nvfp4(graph.model)
    assert sum(node.op_type == "TRT_FP4DynamicQuantize" for node in model.graph) == 1


def test_biases_make_up_for_what_the_weights_lose(graph_of: Callable[..., Graph]) -> None:
    graph = layer_of(graph_of, "of four axes")
    x = (np.random.default_rng(0).uniform(0.5, 1, (64, 3, 5, 64))).astype(np.float32)
    placement = place(graph.model, form=NVFP4, force=["."])
    ranges = ranges_to({"x": AMAX})
    means = tuple(x.reshape(-1, 64).mean(axis=0).tolist())
    corrected = Ranges(ranges.tensors, "made", "0" * 64, "none", 1, channels={"x": Channels(mean=means)})
    (wanted,) = run(open_session(graph.model, optimize=False), ["y"], {"x": x})
    before, after = (
        np.abs((run_emulated(quantize(graph.model, placement, item), x=x) - wanted).mean(axis=(0, 1, 2)))
        for item in (ranges, corrected)
    )
    assert after.sum() < before.sum() / 2


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_that_is_switched_computes_what_it_computes_for_good(
    graph_of: Callable[..., Graph], kind: str
) -> None:
    graph = layer_of(graph_of, kind)
    placement = place(graph.model, form=NVFP4, force=["."])
    ranges = Ranges({"x": Range(AMAX, -AMAX, AMAX)}, "made", "0", "none", 1)
    x = np.random.default_rng(0).standard_normal(shape_of(graph)).astype(np.float32)
    switchable = open_switchable(graph.model, placement, ranges)
    for is_on, wanted in (
        (True, run_emulated(in_nvfp4(graph.model)[0], x=x)),
        (False, run(open_session(graph.model, optimize=False), ["y"], {"x": x})[0]),
    ):
        found = switchable.session.run(None, {"x": x, "trtq_switch_0_nvfp4": np.array(is_on)})[0]
        np.testing.assert_array_equal(found, wanted)
    made = build_switchable(graph.model, placement, ranges)
    assert any(node.op_type == "TRT_FP4DynamicQuantize" for node in made.graph.all_nodes())


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_tensorrt_runs_a_layer_in_fp4(graph_of: Callable[..., Graph], tmp_path: Path, kind: str) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    graph = layer_of(graph_of, kind)
    placement = place(graph.model, form=NVFP4, force=["."])
    mixed = quantize_graph(graph, placement, ranges_to({"x": AMAX}), rest=FP16)
    assert mixed.kept_fp32 == ()
    ir.save(mixed.model, tmp_path / "m.onnx")
    shape = shape_of(graph)
    request = BuildRequest(
        tmp_path / "m.onnx", {"x": InputSpec(shape, shape, shape)}, compute_capabilities=("12.0",)
    )
    built = BACKENDS["tensorrt-rtx"].build(request)
    for model in (mixed.model, load_as_it_is(tmp_path / "m.onnx")):
        covered = measure_coverage(find_quantized_layers(model), built)
        assert covered.layers_realized == {"nvfp4": 1}, built.kernels
