"""A TensorRT that records: the names of its bindings that trtq uses, and a plan that is what was asked for.

`names_of` gives the names as version 8.6, 10 or 11 has them; the fixture `tensorrt_module` makes a module of
them, which a child process can import too. It parses with onnx, calls the calibrator in TensorRT's order, and
swallows the calibrator's exceptions as the bindings do. Setting what a version does not have fails.
"""

from __future__ import annotations

import ctypes
import json
import struct
import traceback
from enum import IntEnum
from typing import Any

from recorded_network import (
    DataType,
    ILogger,
    INetworkDefinition,
    Layer,
    LayerInformationFormat,
    LayerType,
    MemoryPoolType,
    OnnxParser,
    ProfilingVerbosity,
    StrictLayer,
)

_OPERATIONS = ("Conv", "Gemm", "MatMul")
_OWN_SCALE = "3c010a14"
_FOR_OTHER_GPU = b"timings of another GPU|"


class IOptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}
        self.values: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = [list(shape) for shape in shapes]

    def set_shape_input(self, name: str, *values: tuple[int, ...]) -> None:
        self.values[name] = [list(value) for value in values]

    @property
    def is_valid(self) -> bool:
        return all(a <= b <= c for three in self.shapes.values() for a, b, c in zip(*three, strict=True))


class ITimingCache:
    """A cache whose text is `timings|` and the names of layers with commas between."""

    def __init__(self, text: bytes) -> None:
        self.head, _, rest = (text or b"timings|").partition(b"|")
        self.names = {name for name in rest.decode().split(",") if name}

    def combine(self, other: ITimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.names |= other.names
        return self.head == other.head

    def serialize(self) -> bytes:
        return self.head + b"|" + ",".join(sorted(self.names)).encode()


class StrictConfig:
    """A configuration as TensorRT 11 has it."""

    __slots__ = (
        "_timing_cache", "builder_optimization_level", "flags", "hardware_compatibility_level", "pools",
        "profiles", "profiling_verbosity",
    )  # fmt: skip

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.pools: dict[str, int] = {}
        self.profiles: list[IOptimizationProfile] = []
        self._timing_cache: ITimingCache | None = None
        self.builder_optimization_level: int | None = None
        self.hardware_compatibility_level: IntEnum | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_flag(self, flag: IntEnum) -> None:
        self.flags.append(flag.name)

    def set_memory_pool_limit(self, pool: IntEnum, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1 if profile.is_valid else -1

    def create_timing_cache(self, text: bytes) -> ITimingCache | None:
        return ITimingCache(text) if not text or b"|" in text else None

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._timing_cache = cache
        return ignore_mismatch or not _FOR_OTHER_GPU.startswith(cache.head + b"|")

    def get_timing_cache(self) -> ITimingCache | None:
        return self._timing_cache


class Config(StrictConfig):
    """A configuration with a calibrator, up to TensorRT 10."""

    __slots__ = ("calibration_profile", "int8_calibrator")

    def __init__(self) -> None:
        super().__init__()
        self.int8_calibrator: Any = None
        self.calibration_profile: IOptimizationProfile | None = None

    def set_calibration_profile(self, profile: IOptimizationProfile) -> bool:
        self.calibration_profile = profile
        return profile.is_valid


class IInt8Calibrator:
    """Its methods are C functions, as those of the real bindings."""

    get_batch_size = get_batch = read_calibration_cache = write_calibration_cache = len

    def __init__(self) -> None:
        self.is_made = True


class IInt8EntropyCalibrator2(IInt8Calibrator):
    algorithm = "EntropyCalibration2"


class IInt8MinMaxCalibrator(IInt8Calibrator):
    algorithm = "MinMaxCalibration"


def _called(method: Any, *arguments: Any) -> Any:
    """Returns what a calibrator answers; its exceptions are printed and lost, as in the bindings."""
    try:
        return method(*arguments)
    except BaseException:  # noqa: BLE001 - so do they
        traceback.print_exc()
        return None


class Calibration:
    """What TensorRT did with a calibrator: the scales, and what it saw of the data."""

    def __init__(self, calibrator: Any, network: INetworkDefinition, version: str) -> None:
        assert calibrator.is_made
        self.batch_size = _called(calibrator.get_batch_size)
        self.firsts: list[list[float]] = []
        header = f"TRT-{_number(version)}-{calibrator.algorithm}"
        text = bytes(_called(calibrator.read_calibration_cache) or b"").decode()
        self.algorithm = type(calibrator).__bases__[1].__name__
        if text.partition("\n")[0] == header:
            pairs = (line.rpartition(": ") for line in text.splitlines()[1:])
            self.scales = {name: struct.unpack("!f", bytes.fromhex(code))[0] for name, _, code in pairs}
            return
        names = [item.name for item in network.inputs]
        while pointers := _called(calibrator.get_batch, names):
            self.firsts.append([ctypes.cast(place, ctypes.POINTER(ctypes.c_float))[0] for place in pointers])
        self.scales = dict.fromkeys(_float_tensors(network), 0.5) if self.firsts else {}
        if self.scales:
            lines = [header, *(f"{name}: {_OWN_SCALE}" for name in self.scales)]
            _called(calibrator.write_calibration_cache, memoryview("\n".join(lines).encode() + b"\n"))


def _number(version: str) -> int:
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def _float_tensors(network: INetworkDefinition) -> list[str]:
    outputs = [layer.get_output(i) for layer in network.layers for i in range(layer.num_outputs)]
    tensors = [*network.inputs, *(item for item in outputs if item is not None)]
    return [item.name for item in tensors if item.dtype is DataType.FLOAT]


class Builder:
    version = ""
    layer_class: type[StrictLayer] = StrictLayer
    config_class: type[StrictConfig] = StrictConfig

    def __init__(self, logger: Any) -> None:
        assert logger.is_made
        self._logger = logger

    def create_network(self, flags: int) -> INetworkDefinition:
        return INetworkDefinition(flags, self.layer_class)

    def create_builder_config(self) -> StrictConfig:
        return self.config_class()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: Any) -> bytes | None:
        self._logger.log(ILogger.Severity.WARNING, "a recorded\n  build")
        self._logger.log(ILogger.Severity.INFO, "nobody asks for this")
        calibrator = getattr(config, "int8_calibrator", None)
        calibration = None
        if calibrator is not None and "INT8" in config.flags:
            calibration = Calibration(calibrator, network, self.version)
            if not calibration.scales:
                self._logger.log(ILogger.Severity.ERROR, "Calibration failure: no scaling factors detected.")
                return None
        if (cache := config.get_timing_cache()) is not None:
            cache.names |= {layer.name for layer in network.layers}
        return json.dumps(_record(network, config, calibration)).encode()


def _record(network: INetworkDefinition, config: Any, calibration: Calibration | None) -> dict[str, Any]:
    profile = getattr(config, "calibration_profile", None)
    level = config.hardware_compatibility_level
    return {
        "model": network.model,
        "plugins": list(_plugins),
        "network_flags": network.flags,
        "flags": config.flags,
        "pools": config.pools,
        "profiles": [item.shapes for item in config.profiles],
        "shape_inputs": [item.values for item in config.profiles],
        "verbosity": config.profiling_verbosity.name,
        "optimization_level": config.builder_optimization_level,
        "hardware_compatibility": level and level.name,
        "calibration": calibration and vars(calibration),
        "calibration_profile": profile and profile.shapes,
        "kept": {
            layer.name: [layer.precision.name, list(layer.output_types.values())]
            for layer in network.layers
            if isinstance(layer, Layer) and layer.precision is not None
        },
        "layers": [_described(layer, network, config, calibration) for layer in network.layers],
    }


def _described(
    layer: StrictLayer, network: INetworkDefinition, config: Any, calibration: Calibration | None
) -> dict[str, Any]:
    """Returns a layer as the inspector tells of it."""
    dequantized = {
        output.name
        for item in network.layers
        for output in map(item.get_output, range(item.num_outputs))
        if item.op_type == "DequantizeLinear" and output is not None
    }
    bound = layer.precision if isinstance(layer, Layer) else None
    has_scale = calibration is not None and layer.inputs[0] in calibration.scales
    is_int8 = layer.op_type in _OPERATIONS and (
        set(layer.inputs[:2]) <= dequantized or (has_scale and bound is None)
    )
    rest = "Half" if "FP16" in config.flags and bound in (None, DataType.HALF) else "Float"
    dtype = "Int8" if is_int8 else rest
    return {
        "Name": layer.name,
        "LayerType": "CaskConvolution" if layer.op_type in _OPERATIONS else "PointWiseV2",
        "Inputs": [{"Name": name, "Format/Datatype": dtype} for name in layer.inputs[:1]],
        "Outputs": [],
        "Weights": {"Type": dtype, "Count": 1},
        "TacticName": "",
        "Metadata": layer.metadata,
    }


_plugins: list[str] = []
"""What this process was asked to register, in order."""


class IPluginRegistry:
    def load_library(self, path: str) -> object:
        _plugins.append(f"creators of {path}")
        return path


def init_libnvinfer_plugins(logger: Any, namespace: str) -> bool:
    assert logger.is_made
    assert namespace == ""
    _plugins.append("TensorRT's own")
    return True


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert logger.is_made
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine:
        assert self.engine_host_code_allowed
        return ICudaEngine(json.loads(plan))


class ICudaEngine:
    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record

    def create_engine_inspector(self) -> ICudaEngine:
        return self

    def get_engine_information(self, layout: IntEnum) -> str:
        assert layout.name == "JSON"
        detailed = self._record["verbosity"] == "DETAILED"
        layers = self._record["layers"]
        return json.dumps({"Layers": layers if detailed else [layer["Name"] for layer in layers]})


def names_of(version: str) -> dict[str, Any]:
    """Returns the names that this version's bindings have."""
    major = int(version.split(".")[0])
    has_old, network_flags = major <= 10, [*(["EXPLICIT_BATCH"] if major <= 10 else []), "STRONGLY_TYPED"]
    builder_flags = ["TF32", "VERSION_COMPATIBLE", "OBEY_PRECISION_CONSTRAINTS", "INT8", "FP16"]
    levels = ["NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"]
    classes = {"layer_class": Layer, "config_class": Config} if has_old else {}
    old = (IInt8EntropyCalibrator2, IInt8MinMaxCalibrator) if has_old else ()
    new = (
        ILogger, DataType, LayerType, MemoryPoolType, ProfilingVerbosity, LayerInformationFormat, OnnxParser,
        Runtime,
    )  # fmt: skip
    return {
        "__version__": version,
        "init_libnvinfer_plugins": init_libnvinfer_plugins,
        "get_plugin_registry": IPluginRegistry,
        **{item.__name__: item for item in (*new, *old)},
        "Builder": type("Builder", (Builder,), {"version": version, **classes}),
        "BuilderFlag": IntEnum("BuilderFlag", builder_flags if has_old else builder_flags[:2], start=0),
        "NetworkDefinitionCreationFlag": IntEnum(
            "NetworkDefinitionCreationFlag", network_flags[:1] if major < 10 else network_flags, start=0
        ),
        "HardwareCompatibilityLevel": IntEnum(
            "HardwareCompatibilityLevel", levels[:2] if major < 10 else levels, start=0
        ),
    }
