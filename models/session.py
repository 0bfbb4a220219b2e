"""ONNX Runtime sessions over a model that is held in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trtq import lazy
from trtq.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

INLINE_LIMIT_BYTES = 1 << 30
"""Protobuf holds at most 2 GiB; models above half of it keep their weights in a second file."""


def num_weight_bytes(model: ir.Model) -> int:
    """Returns the size of all initializers in bytes."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)


def save(model: ir.Model, path: Path) -> None:
    """Writes an ONNX file; the weights of a large model go to `<name>.data` beside it."""
    external = f"{path.name}.data" if num_weight_bytes(model) > INLINE_LIMIT_BYTES else None
    ir.save(model, path, external_data=external)


def open_session(model: ir.Model | Path, *, optimize: bool) -> Any:
    """Returns an `onnxruntime.InferenceSession` on the CPU.

    Args:
        model: A model, or the path of one.
        optimize: Whether ONNX Runtime may rewrite the graph. Accuracy is judged without: with it, some FP16
            Q/DQ graphs compute something else.

    Raises:
        ModelError: ONNX Runtime cannot load the model; its own words are kept.
    """
    onnxruntime = lazy.require("onnxruntime", None, "running the model")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; warnings are about other people's graphs
    level = "ORT_ENABLE_ALL" if optimize else "ORT_DISABLE_ALL"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    try:
        if isinstance(model, Path):
            return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        if num_weight_bytes(model) <= INLINE_LIMIT_BYTES:
            proto = ir.to_proto(model).SerializeToString()
            return onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory(prefix="trtq-") as folder:
            save(model, Path(folder) / "model.onnx")
            return open_session(Path(folder) / "model.onnx", optimize=optimize)
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime cannot load the model: {_first_lines(error)}") from error


def run(session: Any, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Returns the named outputs for one feed.

    Raises:
        ModelError: ONNX Runtime fails in the middle of the graph; its own words are kept.
    """
    try:
        return list(session.run(list(outputs), dict(feed)))
    except runtime_errors() as error:
        raise ModelError(f"ONNX Runtime cannot run the model: {_first_lines(error)}") from error


def runtime_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions of ONNX Runtime, which share no base class of their own."""
    state = lazy.require("onnxruntime.capi.onnxruntime_pybind11_state", None, "running the model")
    names = (
        "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
        "RuntimeException", "EPFail",
    )  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


def _first_lines(error: Exception) -> str:
    text = str(error).partition(" : ")[2] or str(error)
    return " ".join(text.split())[:600]
