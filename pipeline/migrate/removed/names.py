"""What TensorRT 10 and 11 removed, and what to do instead.

The Python names are the difference between NVIDIA's own wheels, recorded class by class in
`tests/data/tensorrt_removed.txt`: 10.16.1.11 against 11.0.0.114 (11.4.0.106 lacks the same names) and 8.6.1
against 10.0.1. A test holds the tables to it. What a removed class had, and what a layer inherits from
`ILayer`, is not repeated. The flags of trtexec are the difference between its option parser
(`samples/common/sampleOptions.cpp` of NVIDIA/TensorRT) at the tags v8.6.1, v10.0.1, v10.16, v11.0 and v11.1;
those of Polygraphy are what 0.53.6 answers by setting one of the removed names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Removed:
    """Something that TensorRT no longer has.

    Attributes:
        name: As people know it: "BuilderFlag.INT8", "trtexec --int8", "CreateConfig(int8=)".
        since: The first release without it: "10.0" or "11.0".
        advice: What to do instead.
    """

    name: str
    since: str
    advice: str


_CALIBRATOR = (
    "build with `trtq build model.onnx --int8 --calib-data DATA` (explicit Q/DQ), or carry the old cache "
    "over with `trtq migrate model.onnx calibration.cache`"
)
_INT8 = "put Q/DQ nodes into the model: `trtq build model.onnx --int8 --calib-data DATA` does, and builds it"
_FP16 = "type the ONNX model in FP16: `trtq build model.onnx --fp16` writes model.fp16.onnx"
_TYPED = "type the ONNX model itself (Cast and Q/DQ nodes): TensorRT 11 computes in the types of the file"
_BEST = (
    "`trtq build model.onnx --int8 --calib-data DATA` makes INT8 where it was asked for and FP16 elsewhere"
)
_LAYER = (
    "layers take the types of the model's tensors: `trtq build --skip REGEX` leaves nodes unquantized, "
    "`--keep-fp32 REGEX` keeps nodes FP32; in a network made by hand use add_cast"
)
_RANGE = (
    "ranges are Q/DQ scales in the model: write them with `trtq quantize model.onnx --ranges "
    "ranges.json`, or carry a calibration cache over with `trtq migrate model.onnx calibration.cache`"
)
_PLATFORM = (
    "drop the question: the types stand in the model; the report of `trtq build` says what runs in INT8"
)
_BATCH = "create_network(0): every network has explicit batch"
_ALGORITHM = (
    "keep the timing cache (ITimingCache, BuilderFlag.EDITABLE_TIMING_CACHE) to fix the choice of kernels"
)
_PLUGIN_REGISTRY = "get_creator and all_creators, which know the V3 plugins too"
_DROP = "drop it: TensorRT no longer asks for it"
_TACTICS = "drop it: TensorRT 11 does not call cuBLAS, cuBLASLt or cuDNN itself"
_TENSOR_IO = (
    "tensors go by name: num_io_tensors, get_tensor_name, get_tensor_mode, get_tensor_shape, "
    "get_tensor_dtype, set_input_shape, set_tensor_address, execute_async_v3"
)
_SERIALIZED = "build_serialized_network, then Runtime.deserialize_cuda_engine"
_ONNX = "export the model to ONNX: trt.OnnxParser is the one parser left; then `trtq build model.onnx`"
_RNN = "a Loop in the network, or LSTM/GRU nodes in the ONNX model"
_FULLY_CONNECTED = "add_matrix_multiply and, for the bias, add_elementwise"
_WORKSPACE = (
    "config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, num_bytes); `trtq build --workspace 4G`"
)
_BATCH_SIZE = (
    "an optimization profile whose shapes have the batch dimension; `trtq build --max-shapes x:32x3x224x224`"
)


def _instead(*names: str) -> str:
    return f"use {' or '.join(names)}"


def _each(advice: str, names: str, owner: str = "") -> dict[str, str]:
    return {f"{owner}.{name}" if owner else name: advice for name in names.split()}


_PYTHON: Mapping[str, Mapping[str, str]] = {
    "11.0": {
        **_each(
            _CALIBRATOR,
            "CalibrationAlgoType IInt8Calibrator IInt8EntropyCalibrator IInt8EntropyCalibrator2 "
            "IInt8LegacyCalibrator IInt8MinMaxCalibrator QuantizationFlag",
        ),
        **_each(
            _CALIBRATOR,
            "int8_calibrator get_calibration_profile set_calibration_profile clear_quantization_flag "
            "get_quantization_flag set_quantization_flag quantization_flags",
            "IBuilderConfig",
        ),
        **_each(
            _ALGORITHM,
            "IAlgorithm IAlgorithmContext IAlgorithmIOInfo IAlgorithmSelector IAlgorithmVariant "
            "IBuilderConfig.algorithm_selector BuilderFlag.REJECT_EMPTY_ALGORITHMS",
        ),
        "BuilderFlag.INT8": _INT8,
        "BuilderFlag.FP16": _FP16,
        **_each(_TYPED, "BF16 FP4 FP8 INT4", "BuilderFlag"),
        **_each(_LAYER, "OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS", "BuilderFlag"),
        "BuilderFlag.WEIGHTLESS": _instead("BuilderFlag.STRIP_PLAN"),
        **_each(_PLATFORM, "platform_has_fast_fp16 platform_has_fast_int8 platform_has_tf32", "Builder"),
        **_each(
            _LAYER,
            "precision precision_is_set reset_precision set_output_type output_type_is_set reset_output_type",
            "ILayer",
        ),
        "INormalizationLayer.compute_precision": _TYPED,
        **_each(_RANGE, "dynamic_range set_dynamic_range reset_dynamic_range", "ITensor"),
        **_each(_RANGE, "get_dynamic_range get_tensors_with_dynamic_range set_dynamic_range", "Refitter"),
        "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": _BATCH,
        "ICudaEngine.has_implicit_batch_dimension": "drop the question: every engine has explicit batch",
        "ICudaEngine.create_execution_context_without_device_memory": _instead(
            "create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)"
        ),
        "ICudaEngine.device_memory_size": _instead("device_memory_size_v2"),
        "ICudaEngine.get_device_memory_size_for_profile": _instead("get_device_memory_size_for_profile_v2"),
        "ICudaEngine.weight_streaming_budget": _instead("weight_streaming_budget_v2"),
        "ICudaEngine.minimum_weight_streaming_budget": _instead(
            "weight_streaming_budget_v2; the smallest is 0"
        ),
        "IExecutionContext.all_shape_inputs_specified": _instead(
            "infer_shapes(), which names what is missing"
        ),
        "OnnxParser.supports_model": _instead(
            "supports_model_v2 with num_subgraphs", "`trtq inspect model.onnx`"
        ),
        "OnnxParser.parse_with_weight_descriptors": _instead(
            "parse", "load_model_proto with load_initializer"
        ),
        "SubGraphCollection": _instead("supports_model_v2, num_subgraphs and get_subgraph_nodes"),
        "IStreamReader": _instead("IStreamReaderV2"),
        **_each(_PLUGIN_REGISTRY, "get_plugin_creator plugin_creator_list", "IPluginRegistry"),
        **_each(_DROP, "MULTIDEVICE_RUNTIME_10_16 PROFILE_SHARING_0806", "PreviewFeature"),
        **_each(_TACTICS, "CUBLAS CUBLAS_LT CUDNN", "TacticSource"),
    },
    "10.0": {
        "Builder.build_engine": _SERIALIZED,
        "Builder.max_batch_size": _BATCH_SIZE,
        "ICudaEngine.max_batch_size": _BATCH_SIZE,
        "IBuilderConfig.max_workspace_size": _WORKSPACE,
        "IBuilderConfig.min_timing_iterations": _instead("avg_timing_iterations"),
        "BuilderFlag.ENABLE_TACTIC_HEURISTIC": _instead("config.builder_optimization_level = 2"),
        "BuilderFlag.STRICT_TYPES": _TYPED,
        "NetworkDefinitionCreationFlag.EXPLICIT_PRECISION": _TYPED,
        "INetworkDefinition.has_explicit_precision": _DROP,
        "EngineCapability.DEFAULT": _instead("EngineCapability.STANDARD"),
        "EngineCapability.SAFE_DLA": _instead("EngineCapability.DLA_STANDALONE"),
        "EngineCapability.SAFE_GPU": _instead("EngineCapability.SAFETY"),
        "ProfilingVerbosity.DEFAULT": _instead("ProfilingVerbosity.LAYER_NAMES_ONLY"),
        "ProfilingVerbosity.VERBOSE": _instead("ProfilingVerbosity.DETAILED"),
        **_each(
            _DROP,
            "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805 FASTER_DYNAMIC_SHAPES_0805",
            "PreviewFeature",
        ),
        **_each(_instead("PaddingMode.EXPLICIT_ROUND_DOWN"), "PaddingMode.CAFFE_ROUND_DOWN"),
        **_each(_instead("PaddingMode.EXPLICIT_ROUND_UP"), "PaddingMode.CAFFE_ROUND_UP"),
        "ResizeMode": _instead("InterpolationMode"),
        "SliceMode": _instead("SampleMode"),
        "SampleMode.DEFAULT": _instead("SampleMode.STRICT_BOUNDS"),
        **_each(
            _ONNX,
            "CaffeParser IBlobNameToTensor ICaffePluginFactoryV2 UffInputOrder UffParser FieldCollection "
            "FieldMap FieldType shutdown_protobuf_library",
        ),
        **_each(_RNN, "IRNNv2Layer RNNDirection RNNGateType RNNInputMode RNNOperation LayerType.RNN_V2"),
        "INetworkDefinition.add_rnn_v2": _RNN,
        **_each(
            _FULLY_CONNECTED,
            "IFullyConnectedLayer LayerType.FULLY_CONNECTED INetworkDefinition.add_fully_connected",
        ),
        **{
            f"INetworkDefinition.{name}": _instead(f"{name}_nd")
            for name in ("add_convolution", "add_deconvolution", "add_padding", "add_pooling")
        },
        **{
            f"{owner}.{name}": _instead(f"{name}_nd")
            for owner, names in (
                ("IConvolutionLayer", ("dilation", "kernel_size", "padding", "stride")),
                ("IDeconvolutionLayer", ("kernel_size", "padding", "stride")),
                ("IPaddingLayer", ("pre_padding", "post_padding")),
                ("IPoolingLayer", ("padding", "stride", "window_size")),
            )
            for name in names
        },
        **_each(
            _TENSOR_IO,
            "binding_is_input get_binding_bytes_per_component get_binding_components_per_element "
            "get_binding_dtype get_binding_format get_binding_format_desc get_binding_index "
            "get_binding_name get_binding_shape get_binding_vectorized_dim get_location get_profile_shape "
            "get_profile_shape_input is_execution_binding is_shape_binding num_bindings",
            "ICudaEngine",
        ),
        **_each(
            _TENSOR_IO,
            "execute execute_async execute_async_v2 get_binding_shape get_shape get_strides "
            "set_binding_shape set_shape_input",
            "IExecutionContext",
        ),
    },
}

NOT_CHECKED: Mapping[str, str] = _each(
    "a method for the user to override, or of no use to a script",
    "IGpuAllocator.free IOutputAllocator.notify_shape IOutputAllocator.reallocate_output "
    "IOutputAllocator.tensorrt_version IPluginCreator.tensorrt_version",
)
"""Names of the recorded difference that are not looked for, with the reason."""

RECEIVERS: Mapping[str, str] = {
    "Builder": r"builder",
    "IBuilderConfig": r"config|cfg|builder",
    "ICudaEngine": r"engine",
    "IExecutionContext": r"context|ctx",
    "ILayer": r"layer$|^l$",
    "ITensor": r"tensor",
    "OnnxParser": r"parser",
}
"""How people call an object of a class: it tells the members below apart where the class is not known."""

AMBIGUOUS: Collection[str] = _each(
    "read off real scripts, and the record's last section",
    "build_engine dilation dynamic_range execute execute_async get_location get_profile_shape get_shape "
    "get_strides has_implicit_batch_dimension kernel_size max_batch_size max_workspace_size padding "
    "post_padding pre_padding precision set_shape_input stride supports_model window_size",
)
"""Members that other classes, TensorRT's or a user's, often have too."""

NAMES: Mapping[str, Removed] = {
    name: Removed(name, since, advice) for since, table in _PYTHON.items() for name, advice in table.items()
}
"""Every Python name: "IInt8Calibrator", "BuilderFlag.INT8", "IBuilderConfig.int8_calibrator"."""

_ENUMERATIONS = re.compile(r"\w+(Flag|Feature|Source|Capability|Verbosity|Mode|Type)$")


def _members() -> Mapping[str, Sequence[tuple[str, Removed]]]:
    members: dict[str, list[tuple[str, Removed]]] = defaultdict(list)
    for name, removed in NAMES.items():
        owner, _, member = name.rpartition(".")
        if owner and not _ENUMERATIONS.match(owner):
            members[member].append((owner, removed))
    return dict(members)


MEMBERS: Mapping[str, Sequence[tuple[str, Removed]]] = _members()
"""The members that objects had: name -> the classes that had it."""

SIGNATURES: Mapping[str, Removed] = {
    name: Removed(
        f"INetworkDefinition.{name} without output_type",
        "11.0",
        f"say the type: {name}(input, scale, {example})",
    )
    for name, example in (("add_quantize", "trt.int8"), ("add_dequantize", "trt.float32"))
}
"""Calls that need a third argument since: the overload without it is gone."""

_TRTEXEC: Mapping[str, Mapping[str, str]] = {
    "11.0": {
        "int8": _INT8,
        "fp16": _FP16,
        "best": _BEST,
        **_each(_TYPED, "bf16 fp8 int4"),
        "calib": "carry the cache over: `trtq migrate model.onnx calibration.cache`",
        **_each(_CALIBRATOR, "calibProfile minShapesCalib optShapesCalib maxShapesCalib"),
        **_each(_LAYER, "layerPrecisions layerOutputTypes precisionConstraints"),
        "restricted": "drop it",
        "weightless": _instead("--stripWeights"),
    },
    "10.0": {
        "workspace": "--memPoolSize=workspace:1024 (MiB); `trtq build --workspace 1G`",
        "explicitBatch": "drop it: every network has explicit batch",
        "explicitPrecision": "drop it: Q/DQ nodes in the model say it",
        "buildOnly": _instead("--skipInference"),
        **_each("--minShapes, --optShapes and --maxShapes with the batch dimension", "batch maxBatch"),
        "heuristic": _instead("--builderOptimizationLevel=2"),
        "minTiming": _instead("--avgTiming"),
        "nvtxMode": _instead("--profilingVerbosity=detailed"),
        **_each(_ONNX, "deploy model output uff uffInput uffNHWC"),
    },
}

TRTEXEC: Mapping[str, Removed] = {
    f"--{flag}": Removed(f"trtexec --{flag}", since, advice)
    for since, table in _TRTEXEC.items()
    for flag, advice in table.items()
}
"""Flags of NVIDIA's trtexec."""

_POLYGRAPHY_TOPICS = {
    "int8": _INT8,
    "fp16": _FP16,
    **_each(_TYPED, "bf16 fp8"),
    "precision_constraints": _LAYER,
}

POLYGRAPHY: Mapping[str, Removed] = {
    flag: Removed(f"polygraphy {flag}", "11.0", advice)
    for flag, advice in {
        **{f"--{name.replace('_', '-')}": advice for name, advice in _POLYGRAPHY_TOPICS.items()},
        **_each(
            _CALIBRATOR,
            "--calibration-cache --calib-base-cls --calibration-base-class --quantile --regression-cutoff "
            "--quantization-flags",
        ),
        "--layer-precisions": _LAYER,
        **_each(_ALGORITHM, "--save-tactics --save-tactic-replay --load-tactics --load-tactic-replay"),
    }.items()
}
"""Options of Polygraphy's command line that set what TensorRT 11 lacks."""

CREATE_CONFIG: Mapping[str, Removed] = {
    keyword: Removed(f"CreateConfig({keyword}=)", "11.0", advice)
    for keyword, advice in {
        **_POLYGRAPHY_TOPICS,
        **_each(_CALIBRATOR, "calibrator quantization_flags"),
        "algorithm_selector": _ALGORITHM,
    }.items()
}
"""Arguments of Polygraphy's CreateConfig that set what TensorRT 11 lacks."""

POLYGRAPHY_CALLS: Mapping[str, Removed] = {
    name: Removed(f"polygraphy {name}", "11.0", advice)
    for name, advice in {
        "Calibrator": _CALIBRATOR,
        **_each(_LAYER, "SetLayerPrecisions set_layer_precisions"),
    }.items()
}
"""What `polygraphy.backend.trt` has that cannot work without what TensorRT 11 lacks."""
