"""A TensorRT whose engines run: each doubles its input. Memory and stream are those of libcuda_stub.c.

A plan is JSON: `inputs` and `outputs` with their shapes, `profile` with three shapes an input, `host` with
the names of tensors that are read on the host, `fails` with what goes wrong, `layers` with what a profiler is
told, and `inspector` with what the inspector says of them.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

__version__ = "10.3.0"
TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)
TensorLocation = IntEnum("TensorLocation", ["DEVICE", "HOST"], start=0)
DataType = IntEnum("DataType", ["FLOAT", "BF16", "FP8"], start=0)


LayerInformationFormat = IntEnum("LayerInformationFormat", ["ONELINE", "JSON"], start=0)


class IProfiler:
    def __init__(self) -> None:
        self.is_made = True


class ILogger:
    Severity = IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

    def __init__(self) -> None:
        self.is_made = True


def nptype(dtype: DataType) -> Any:
    if dtype is not DataType.FLOAT:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")
    return np.float32


class Runtime:
    def __init__(self, logger: Any) -> None:
        assert logger.is_made
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        assert self.engine_host_code_allowed
        self._logger.log(ILogger.Severity.INFO, "nobody asks for this")
        try:
            return ICudaEngine(json.loads(plan), self._logger)
        except ValueError:
            self._logger.log(ILogger.Severity.ERROR, "not a\n  plan")
            return None


class EngineInspector:
    def __init__(self, layers: list[dict[str, Any]]) -> None:
        self._layers = layers

    def get_engine_information(self, layout: LayerInformationFormat) -> str:
        assert layout is LayerInformationFormat.JSON
        return json.dumps({"Layers": self._layers})


class ICudaEngine:
    def __init__(self, record: dict[str, Any], logger: Any) -> None:
        self.record, self.logger = record, logger
        self._names: list[str] = [*record["inputs"], *record["outputs"]]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.record["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        return tuple({**self.record["inputs"], **self.record["outputs"]}[name])

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {"bf16": DataType.BF16, "fp8": DataType.FP8}
        return next((kinds[key] for key in kinds if name in self.record.get(key, ())), DataType.FLOAT)

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self.record.get("host", ()) else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Sequence[int]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self.record["profile"][name]]

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.record.get("inspector", []))

    def create_execution_context(self, *config: Any) -> IExecutionContext | None:
        return None if self.record.get("fails") == "context" else IExecutionContext(self, *config)


class IExecutionContext:
    made: list[IExecutionContext] = []  # noqa: RUF012 - tests look at the last one

    def __init__(self, engine: ICudaEngine, *config: Any) -> None:
        self._engine, self.config = engine, config
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs = 0
        self.profiler: Any = None
        self.made[:] = [self]

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        lowest, _, highest = self._engine.record.get("profile", {}).get(name, [shape, shape, shape])
        self.shapes[name] = shape
        fits = len(shape) == len(lowest)
        fits = fits and all(low <= dim <= high for low, dim, high in zip(lowest, shape, highest, strict=True))
        if not fits:
            self._engine.logger.log(ILogger.Severity.ERROR, f"{shape} is outside of the profile")
        return fits

    def infer_shapes(self) -> list[str]:
        return ["y"] if self._engine.record.get("fails") == "shapes" else []

    def get_max_output_size(self, name: str) -> int:
        assert name in self._engine.record["outputs"]
        return 4 * max(int(np.prod(shape)) for shape in self.shapes.values())

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        fails = self._engine.record.get("fails") == "size"
        return (-1,) if fails else self.shapes.get(name, next(iter(self.shapes.values())))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle
        self.runs += 1
        if self._engine.record.get("fails") == "run":
            self._engine.logger.log(ILogger.Severity.ERROR, "out of memory")
            return False
        for name, ms in self._engine.record.get("layers", {}).items() if self.profiler is not None else ():
            assert self.profiler.is_made
            self.profiler.report_layer_time(name, ms)
        for name in self._engine.record["inputs"]:
            assert (name in self._engine.record.get("host", ())) or self.addresses[name]
        first = next(iter(self._engine.record["inputs"]))
        for name in self._engine.record["outputs"]:
            read_floats(self.addresses[name], self.shapes[first])[...] = 2 * read_floats(
                self.addresses[first], self.shapes[first]
            )
        return True


def read_floats(address: int, shape: tuple[int, ...]) -> Any:
    """Returns the memory at an address as an array."""
    content = (ctypes.c_byte * (4 * int(np.prod(shape)))).from_address(address)
    return np.ctypeslib.as_array(content).view(np.float32).reshape(shape)
