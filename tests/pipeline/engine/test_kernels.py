"""Tests of what engines tell of their kernels: the builder's log and the engine inspector's JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trtq.pipeline.engine.kernels import Kernel, list_nodes, parse_inspector, parse_log

# From TensorRT-RTX 1.7.1, shortened; the node names were chosen to be hard to read.
_TENSOR = (
    "{{ Name: {}, Dimensions: [2,8], Strides: [8,1], StrideOrder: [1,0], Datatype: {}, Format: (NHWC) F }}"
)
_LAYERS = "\n".join([
    "Layers:",
    "Name: __myl_MulMinMaxRounCast_myl0_0, LayerType: kgen, "
    f"Inputs: [ {_TENSOR.format('x', 'Float')}], Constants: [ {_TENSOR.format('__mye899', 'Float')}], "
    f"Outputs: [ {_TENSOR.format('__mye735c.1_2_myl0', 'Int8')}], "
    "TacticName: __myl_MulMinMaxRounCast_0x18a3becb7052e374b67eb99aa1896c0b, StreamId: 0, "
    "Metadata: [ONNX Layer: QuantizeLinear_0]",
    "Name: block [0], a b/Conv: x_myl0_1, LayerType: correlation, "
    f"Inputs: [ {_TENSOR.format('__mye735c.1_2_myl0', 'Int8')}], "
    f"Constants: [ {_TENSOR.format('__mye850', 'Int8')}, {_TENSOR.format('__mye855', 'Float')}], "
    f"Outputs: [ {_TENSOR.format('__myln_k_arg__bb1_3_myl0', 'Float')}], "
    "TacticName: __myelin_CASK_STUB, StreamId: 0, "
    "Metadata: [ONNX Layer: block [0], a b/Conv: x]\x1f[ONNX Layer: Metadata: [odd], Name: größe]"
    "\x1f [Other: word]\x1f[ONNX Layer: DequantizeLinear_1]",
    "Name: __mye403_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], "
    "TacticName: shape, StreamId: 0",
    "",
    "I/O Tensors:",
    " Name: x, IOMode: Input, DataType: Float, Dimensions: [2,8], Location: Device",
])  # fmt: skip


def test_kernels_are_read_with_any_name() -> None:
    quantize, conv, shape = parse_log(_LAYERS)
    assert (quantize.name, quantize.kind) == ("__myl_MulMinMaxRounCast_myl0_0", "kgen")
    assert (quantize.nodes, quantize.inputs, quantize.constants) == (
        ("QuantizeLinear_0",),
        ("Float",),
        ("Float",),
    )
    assert (conv.name, conv.kind) == ("block [0], a b/Conv: x_myl0_1", "correlation")
    assert conv.nodes == ("block [0], a b/Conv: x", "Metadata: [odd], Name: größe", "DequantizeLinear_1")
    assert (conv.inputs, conv.constants, conv.multiplies_in) == (("Int8",), ("Int8", "Float"), "int8")
    assert (shape.kind, shape.nodes, shape.inputs, shape.constants) == ("shape_call", (), (), ())


def test_no_message_has_no_kernels() -> None:
    assert list(parse_log("")) == []


# The engine inspector


def _tensor(name: str, told: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": told}


def _parsed(*layers: Any) -> list[Kernel]:
    return list(parse_inspector(json.dumps({"Layers": layers, "Bindings": ["x", "y"]})))


# As TensorRT 8.6 and 10 tell of a convolution, shortened.
_INT8 = "Thirty-two wide channel vectorized row major Int8 format"
_CONV = {
    "Name": "conv1 + relu1",
    "LayerType": "CaskConvolution",
    "Inputs": [_tensor("Reformatted Input Tensor 0 to conv1 + relu1", _INT8)],
    "Outputs": [_tensor("relu1", _INT8)],
    "ParameterType": "Convolution",
    "Kernel": [3, 3],
    "Groups": 1,
    "Weights": {"Type": "Int8", "Count": 36864},
    "Bias": {"Type": "Float", "Count": 64},
    "HasResidual": 0,
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
    "TacticValue": "0x1f2e3d4c5b6a7988",
    "StreamId": 0,
}


def test_an_int8_convolution_is_read_by_its_formats_and_weights() -> None:
    (conv,) = _parsed({**_CONV, "Metadata": "[ONNX Layer: conv1]\x1f[ONNX Layer: relu1]"})
    assert conv == Kernel("conv1 + relu1", "CaskConvolution", ("conv1", "relu1"), ("Int8",), ("Int8",))
    assert conv.multiplies_in == "int8"


@pytest.mark.parametrize("weights", ["Half", "Float"])
def test_weights_of_another_dtype_are_no_int8_whatever_the_input(weights: str) -> None:
    (conv,) = _parsed({**_CONV, "Weights": {"Type": weights, "Count": 36864}})
    assert conv.constants == (weights,)
    assert not conv.multiplies_in


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ("Row major linear FP32", "Float"),
        ("Row major linear FP16 format", "Half"),
        ("Channel major FP16 format where channel % 8 == 0", "Half"),
        ("Channel major INT8 format where channel % 16 == 0", "Int8"),
        ("Four wide channel vectorized row major Int8 format", "Int8"),
        ("Row major Int8 format", "Int8"),
        ("Row major linear Int32", "Int32"),
        ("Half", "Half"),
        ("BF16", "BFloat16"),
        ("BFloat16", "BFloat16"),
        ("FP8", "FP8"),
        ("Int64", "Int64"),
        ("UInt8", "UInt8"),
        ("Bool", "Bool"),
        ("N/A due to dynamic shapes", "N/A due to dynamic shapes"),
    ],
)
def test_formats_spell_dtypes(told: str, dtype: str) -> None:
    (layer,) = _parsed({"Name": "a", "LayerType": "Reformat", "Inputs": [_tensor("x", told)]})
    assert layer.inputs == (dtype,)


@pytest.mark.parametrize("key", ["Format/Datatype", "Datatype", "DataType"])
def test_the_datatype_stands_under_any_of_its_names(key: str) -> None:
    tensor = {"Name": "x", "Format": "Row major linear FP32", key: "Int8"}
    (layer,) = _parsed({"Name": "a", "LayerType": "gemm", "Inputs": [tensor]})
    assert layer.inputs == ("Int8",)


@pytest.mark.parametrize(
    ("tactic", "is_int8"),
    [
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage3_warpsize2x2x1_tensor16x8x32", True),
        ("sm80_xmma_fprop_implicit_gemm_i8f32_i8i32_f32_nhwckrsc_nhwc_tilesize96x64x64", True),
        ("sm75_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32", True),
        ("ampere_int8x4_icudnn_int8x4_128x128_relu_xregs_small_nn_v1", True),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x64", False),
        ("__myl_MulMinMaxRounCast_0x18a3becb7052e374b67eb99aa1896c0b", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("residual", [[], [_tensor("skip", "Half")]])
def test_where_no_weights_are_told_the_tactic_tells(
    tactic: str, is_int8: bool, residual: list[dict[str, Any]]
) -> None:
    layer = {"Name": "fc_myl0_3", "LayerType": "fusion", "Inputs": [_tensor("x", "Int8"), *residual]}
    (found,) = _parsed({**layer, "TacticName": tactic, "Metadata": "[ONNX Layer: fc]"})
    assert (found.multiplies_in == "int8") == is_int8


def test_constants_of_a_fused_layer_are_read() -> None:
    layer = {"Name": "fc_myl0_3", "LayerType": "gemm", "Inputs": [_tensor("x", "Int8")]}
    (found,) = _parsed({**layer, "Constants": [_tensor("w", "Int8"), _tensor("b", "Float")]})
    assert found.constants == ("Int8", "Float")
    assert found.multiplies_in == "int8"


@pytest.mark.parametrize("between", ["\x1f", "\x1e", "\x1f "])
def test_metadata_names_the_nodes(between: str) -> None:
    told = between.join(["[ONNX Layer: /a/Conv [0]]", "[ONNX Layer: größe]", "[Other: b]"])
    (layer,) = _parsed({**_CONV, "Metadata": told})
    assert layer.nodes == ("/a/Conv [0]", "größe")


def test_metadata_of_nodes_only_needs_no_separator() -> None:
    assert list(list_nodes("[ONNX Layer: a][ONNX Layer: b]")) == ["a", "b"]


@pytest.mark.parametrize("metadata", [{}, {"Metadata": ""}])
def test_without_metadata_the_name_tells_the_nodes(metadata: dict[str, str]) -> None:
    (layer,) = _parsed({**_CONV, "Name": "/a/Conv + /a/Relu || /b/Conv + /b/Relu", **metadata})
    assert layer.nodes == ("/a/Conv", "/a/Relu", "/b/Conv", "/b/Relu")


def test_control_characters_may_stand_unescaped() -> None:
    text = (
        '{"Layers": [{"Name": "a", "LayerType": "gemm", "Metadata": "[ONNX Layer: a]\x1f[ONNX Layer: b]"}]}'
    )
    (layer,) = parse_inspector(text)
    assert layer.nodes == ("a", "b")


def test_engines_of_a_lower_verbosity_tell_nothing() -> None:
    assert _parsed("conv1 + relu1", "pool") == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{}",
        '{"Layers": null}',
        '{"Layers": {"Name": "a"}}',
        '{"Layers": [null, 1]}',
    ],
)
def test_what_is_no_description_tells_nothing(text: str) -> None:
    assert list(parse_inspector(text)) == []


def test_a_layer_that_tells_nothing_is_unknown() -> None:
    (layer,) = _parsed({"Name": "a", "Inputs": None, "Weights": "Int8", "Constants": {}})
    assert layer == Kernel("a", "", ("a",), (), ())
    assert not layer.multiplies_in
