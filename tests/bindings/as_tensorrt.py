"""Calls one of our calibrators as TensorRT does, through the C++ virtual functions of the real bindings.

Run by the fixtures of test_bindings.py as `python as_tensorrt.py LIBRARIES BINDINGS REQUEST`, in a process of
its own, since a wrong call is a segmentation fault. Prints as JSON what TensorRT would see.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.tensorrt import (
    AnyCalibrator,
    make_batch_calibrator,
    make_scale_calibrator,
)
from trtq.errors import TrtqError
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.builder import build as build_here
from trtq.pipeline.engine.builder import combine_network_flags
from trtq.pipeline.engine.process import Flavour, to_json
from trtq.pipeline.engine.tensorrt import TensorRt

sys.path.append(str(Path(__file__).parents[1].joinpath("pipeline", "doubles")))
from host_memory import HostMemory

_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
# Places in the table of virtual functions of IInt8Calibrator, TensorRT 10.
_GET_BATCH_SIZE, _GET_BATCH, _READ_CACHE, _WRITE_CACHE, _GET_ALGORITHM = 4, 5, 6, 7, 8
_VOID_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t


def main(libraries: str, bindings: str, request: str) -> None:
    """Prints what came of a request."""
    trt = import_bindings(Path(libraries), bindings)
    asked = json.loads(request)
    answers: dict[str, Callable[..., Any]] = {
        "missing": missing,
        "calibrate": calibrate,
        "misuse": misuse,
        "abilities": abilities,
        "build": build,
    }
    print(json.dumps(answers[asked.pop("what")](trt, **asked)))


def import_bindings(libraries: Path, bindings: str) -> ModuleType:
    """Returns the bindings; the libraries, loaded before, are found by their names."""
    for library in _LIBRARIES:
        (path,) = libraries.glob(f"{library}.so.*")
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, bindings)
    return importlib.import_module("tensorrt_bindings")


def missing(trt: ModuleType, names: list[str]) -> list[str]:
    """Returns the dotted names that the bindings do not have."""

    def has(name: str) -> bool:
        found: Any = trt
        for part in name.split("."):
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True

    return [name for name in names if not has(name)]


def calibrate(
    trt: ModuleType,
    kind: str,
    feeds: list[dict[str, Any]],
    names: list[str],
    shapes: dict[str, list[int]],
    scales: dict[str, float] | None = None,
    takes_cache: bool = True,
) -> dict[str, Any]:
    """Returns what TensorRT saw of a calibrator, and how it ended."""
    with HostMemory() as memory:
        try:
            profile = {name: tuple(shape) for name, shape in shapes.items()}
            calibrator: AnyCalibrator = (
                make_scale_calibrator(trt, scales or {})
                if kind == "ranges"
                else make_batch_calibrator(trt, kind, _batches(feeds), memory, profile)
            )
        except TrtqError as error:
            return {"refused": f"{type(error).__name__}: {error}"}
        seen = _as_tensorrt(calibrator, names, takes_cache=takes_cache)
        seen["written"] = calibrator.written and calibrator.written.decode()
        try:
            calibrator.raise_if_wrong()
        except Exception as error:  # noqa: BLE001 - every one is an answer
            seen["error"] = f"{type(error).__name__}: {error}"
        return seen


def misuse(trt: ModuleType) -> str:
    """Returns how the bindings refuse a calibrator whose `__init__` does not call theirs."""

    class WithoutInit(trt.IInt8MinMaxCalibrator):  # type: ignore[name-defined,misc] # no static module
        def __init__(self) -> None:
            pass

    try:
        WithoutInit()
    except TypeError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def abilities(trt: ModuleType) -> dict[str, Any]:
    """Returns what the backend thinks of the bindings."""
    backend = TensorRt(trt.__name__)
    return {
        "version": backend.version(),
        "flags": {
            " ".join(precisions): combine_network_flags(trt, precisions)
            for precisions in ((), ("int8",), ("int8", "fp16"))
        },
        "takes_types": backend.takes_types(),
        "lacks": sorted(backend.lacks),
        "command": backend.command(BuildRequest(Path("model.int8.onnx"))),
        "why_not": backend.why_not(),
    }


def build(trt: ModuleType, folder: str) -> dict[str, Any]:
    """Returns the builder's answer: no library stands behind these bindings."""
    flavour = Flavour(trt.__name__, "TensorRT", inspects=True)
    try:
        return dict(build_here(trt, to_json(flavour, BuildRequest(Path("model.onnx"))), Path(folder)))
    except TrtqError as error:
        return {"error": type(error).__name__, "text": str(error)}


def _as_tensorrt(calibrator: AnyCalibrator, names: list[str], *, takes_cache: bool) -> dict[str, Any]:
    """Returns what the virtual functions gave, called in TensorRT's order."""
    cpp_object = _pointers_at(id(calibrator) + 16)[0]  # where pybind11 keeps it
    table = _pointers_at(_pointers_at(cpp_object)[0])

    def call(place: int, result: Any, *arguments: Any) -> Any:
        types = [type(argument) for argument in arguments]
        return ctypes.CFUNCTYPE(result, _VOID_POINTER, *types)(table[place])(cpp_object, *arguments)

    size = _SIZE(0)
    seen: dict[str, Any] = {
        "algorithm": call(_GET_ALGORITHM, ctypes.c_int32),
        "batch_size": call(_GET_BATCH_SIZE, ctypes.c_int32),
    }
    cache = call(_READ_CACHE, _VOID_POINTER, ctypes.pointer(size))
    seen["read"] = ctypes.string_at(cache, size.value).decode() if cache and size.value else None
    seen["batches"] = batches = []
    if seen["read"] is not None and takes_cache:
        return seen
    pointers = (_VOID_POINTER * len(names))()
    c_names = (ctypes.c_char_p * len(names))(*(name.encode() for name in names))
    while call(_GET_BATCH, ctypes.c_bool, pointers, c_names, ctypes.c_int32(len(names))):
        batches.append([_first_value(pointer) for pointer in pointers])
    text = b"TRT-101601-WhatTensorRTWrites\nx: 3c010a14\n"
    call(_WRITE_CACHE, None, ctypes.cast(ctypes.c_char_p(text), _VOID_POINTER), _SIZE(len(text)))
    return seen


def _pointers_at(address: int) -> Any:
    return ctypes.cast(address, ctypes.POINTER(_VOID_POINTER))


def _first_value(pointer: int | None) -> float | None:
    return None if pointer is None else ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))[0]


def _batches(feeds: list[dict[str, Any]]) -> Batches:
    """Returns a stream; a feed maps names to `[value, *shape]`, or is `{"raise": message}`."""

    def read() -> Iterator[Feed]:
        for number, feed in enumerate(feeds):
            if "raise" in feed:
                raise ZeroDivisionError(feed["raise"])
            arrays = {name: np.full(shape, value, np.float32) for name, (value, *shape) in feed.items()}
            yield Feed(arrays, f"feed {number}", next(iter(arrays.values())).shape[0])

    return Batches(read, "the data", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
