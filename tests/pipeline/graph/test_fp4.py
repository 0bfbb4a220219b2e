"""Tests of NVFP4 in plain operators, against numpy with ml_dtypes' numbers of 4 and 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from opset_23 import needs_opset_23

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.graph.fp4 import emulate_fp4
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.graph.opset import infer_shapes

pytestmark = needs_opset_23
E2M1, E4M3 = ml_dtypes.float4_e2m1fn, ml_dtypes.float8_e4m3fn


def quantized_by_numpy(x: NDArray[Any], shared: np.float32, dtype: type = np.float32) -> NDArray[Any]:
    """Returns what NVFP4 makes of an activation, with scales that a DequantizeLinear makes in the dtype."""
    blocks = x.astype(np.float32).reshape(-1, 16)
    wanted = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(6) / shared
    scales = np.minimum(wanted, np.float32(448)).astype(E4M3).astype(np.float32) * shared
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steps = np.where(scales > 0, np.clip(blocks / scales, -6, 6), 0)
    factors = scales.astype(dtype).astype(np.float32)
    return np.asarray((steps.astype(E2M1).astype(np.float32) * factors).reshape(x.shape))


def model_of_fp4(
    shared: NDArray[Any],
    weight: tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None = None,
    *,
    axis: int = -1,
    block: int = 16,
    casts: bool = False,
    typed: bool = True,
) -> ir.Model:
    """Returns a model that gives an activation behind NVFP4, or its product with a weight of NVFP4."""
    constant = ir.DataType.from_numpy(shared.dtype)
    x = ir.val("x", constant, ("n", 64))
    g = ir.val("g", const_value=ir.tensor(shared))
    quantize = ir.node(
        "TRT_FP4DynamicQuantize",
        [x, g],
        {"axis": axis, "block_size": block, "scale_type": 17},
        domain="trt",
        num_outputs=2,
        name="quantize",
    )
    codes, scales = quantize.outputs
    codes.name, scales.name = "codes", "scales"
    if typed:
        codes.type, scales.type = (
            ir.TensorType(ir.DataType.FLOAT4E2M1),
            ir.TensorType(ir.DataType.FLOAT8E4M3FN),
        )
    nodes = [quantize, ir.node("DequantizeLinear", [scales, g], name="widen_scales")]
    if casts:
        nodes.append(ir.node("Cast", [nodes[-1].outputs[0]], {"to": int(ir.DataType.FLOAT)}, name="cast"))
    blocks = {"axis": axis, "block_size": block}
    nodes.append(ir.node("DequantizeLinear", [codes, nodes[-1].outputs[0]], blocks, name="widen"))
    held, initializers = nodes[-1].outputs[0], [g]
    if weight is not None:
        names = ("w", "w_scales", "w_shared")
        parts = [ir.val(name, const_value=ir.tensor(part)) for name, part in zip(names, weight, strict=True)]
        initializers += parts
        nodes.append(ir.node("DequantizeLinear", parts[1:], name="widen_weight_scales"))
        along = {"axis": 0, "block_size": 16}
        nodes.append(
            ir.node("DequantizeLinear", [parts[0], nodes[-1].outputs[0]], along, name="widen_weight")
        )
        nodes.append(ir.node("MatMul", [held, nodes[-1].outputs[0]], name="layer"))
    output = nodes[-1].outputs[0]
    output.name, output.type, output.shape = "y", ir.TensorType(constant), ir.Shape(["n", None])
    opsets = {"": 23, "trt": 1}
    graph = ir.Graph([x], [output], nodes=nodes, initializers=initializers, opset_imports=opsets, name="g")
    model = ir.Model(graph, ir_version=11)
    ir.passes.common.NameFixPass()(model)
    return model


def run_emulated(model: ir.Model, x: NDArray[Any]) -> NDArray[Any]:
    emulated = emulate_fp4(model)
    assert emulated is not None
    infer_shapes(emulated)
    return np.asarray(run(open_session(emulated, optimize=False), ["y"], {"x": x})[0])


def _draw_values() -> NDArray[np.float32]:
    """Returns 102,400 values: of all sizes, on numbers and halfway between them, zeros and huge ones."""
    rng = np.random.default_rng(0)
    x = (rng.standard_t(3, (1600, 64)) * 10.0 ** rng.integers(-6, 3, (1600, 1))).astype(np.float32)
    x[:200] = rng.integers(-24, 25, (200, 64)) / np.float32(4)  # ties wherever the scale is a power of two
    x[:200, ::16] = 6
    x[200:220], x[220:230, :16] = 0, 1e30
    x[230:240, 16:32] = 1e-38
    return x


def test_it_equals_numpy_in_all_of_100_000_values() -> None:
    x = _draw_values()
    assert x.size >= 100_000
    for shared in map(np.float32, (1, 2.0**-4, 0.0123, 3.7, 1e-5)):
        found = run_emulated(model_of_fp4(np.asarray(shared)), x)
        np.testing.assert_array_equal(found, quantized_by_numpy(x, shared))


def test_it_equals_numpy_in_fp16_too() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((100, 64)).astype(np.float16)
    shared = np.float16(0.0021)
    wanted = quantized_by_numpy(x, np.float32(shared), np.float16).astype(np.float16)
    found = run_emulated(model_of_fp4(np.asarray(shared)), x)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("typed", [False, True])
def test_a_file_from_elsewhere_is_run(tmp_path: Path, casts: bool, typed: bool) -> None:
    rng = np.random.default_rng(2)
    x, codes = rng.standard_normal((8, 64)).astype(np.float32), rng.choice([-3, -0.5, 0, 1, 6], (64, 24))
    scales, shared = rng.uniform(0.1, 400, (4, 24)).astype(E4M3), np.float32(2e-4)
    parts = codes.astype(E2M1), scales, np.asarray(shared)
    model = model_of_fp4(np.asarray(np.float32(1e-3)), parts, casts=casts, typed=typed)
    ir.save(model, tmp_path / "m.onnx")
    runnable, is_changed = read_runnable(tmp_path / "m.onnx")
    assert is_changed
    assert {node.domain for node in runnable.graph} == {""}
    found = run(open_session(runnable, optimize=False), ["y"], {"x": x})[0]
    weight = codes * PerBlock(0, 16).spread(scales.astype(np.float32) * shared, codes.shape)
    wanted = quantized_by_numpy(x, np.float32(1e-3)) @ weight.astype(np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_model_without_it_is_left_as_it_is() -> None:
    x = ir.val("x", ir.DataType.FLOAT, (2,))
    node = ir.node("Neg", [x])
    model = ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10)
    assert emulate_fp4(model) is None


def test_what_is_no_nvfp4_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"node 'quantize' .* has axis 0, block_size 16 and a constant scale"
    ):
        emulate_fp4(model_of_fp4(np.asarray(np.float32(1)), axis=0))
    with pytest.raises(ModelError, match=r"has axis -1, block_size 32 and a constant scale; .* blocks of 16"):
        emulate_fp4(model_of_fp4(np.asarray(np.float32(1)), block=32))
    computed = model_of_fp4(np.asarray(np.float32(1)))
    (quantize, *_), x = computed.graph, computed.graph.inputs[0]
    quantize.replace_input_with(1, x)
    with pytest.raises(ModelError, match="block_size 16 and a computed scale"):
        emulate_fp4(computed)
    float_scales = model_of_fp4(np.asarray(np.float32(1)))
    widen = float_scales.graph[2]
    widen.replace_input_with(1, float_scales.graph.initializers["g"])
    with pytest.raises(
        ModelError, match=r"node 'widen' \(DequantizeLinear\) reads codes of FP4; what can be"
    ):
        emulate_fp4(float_scales)
    wrong = np.ones((64, 2), E2M1), np.ones((2, 2), E4M3), np.ones((), np.float32)
    with pytest.raises(ModelError, match=r"node 'widen_weight' .* scales are FP8 behind a DequantizeLinear"):
        emulate_fp4(model_of_fp4(np.asarray(np.float32(1)), wrong))
    foreign = model_of_fp4(np.asarray(np.float32(1)))
    other = ir.val("other", const_value=ir.tensor(np.ones((4, 4), E4M3)))
    foreign.graph.initializers.add(other)
    foreign.graph[1].replace_input_with(0, other)
    with pytest.raises(ModelError, match=r"node 'widen' .* reads codes of FP4"):
        emulate_fp4(foreign)
