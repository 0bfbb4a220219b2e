"""What an engine runs, read from what the builder tells of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trtq.pipeline.engine.backend import Kernel

_KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: \d+(?:, Metadata: (?P<metadata>.*))?"
)
_NODE = re.compile(r"\[ONNX Layer: (.*)\]$", re.DOTALL)
_SEPARATOR = "\x1f"
_DTYPES = (
    ("Int8", r"int8"),
    ("FP8", r"fp8|e4m3"),
    ("Int4", r"int4"),
    ("BFloat16", r"bfloat16|bf16"),
    ("Half", r"half|fp16|float16"),
    ("Float", r"float|fp32"),
    ("Int64", r"int64"),
    ("Int32", r"int32"),
    ("Bool", r"bool"),
)
_INT8_TACTIC = re.compile(r"(?:^|_)i8i8_|_i8\w*_i8i32_|(?:^|_)int8_")


def nodes_of(metadata: str) -> Iterator[str]:
    """Yields the names of the ONNX nodes that a layer's metadata holds."""
    for part in metadata.split(_SEPARATOR):
        if node := _NODE.match(part.strip(" ")):
            yield node[1]


def parse_log(layers: str) -> Iterator[Kernel]:
    """Yields the kernels of the builder's `Layers:` message (detailed profiling verbosity)."""
    for line in layers.split("\n"):  # splitlines would also split at rarer characters in names
        found = _KERNEL.match(line)
        if found:
            yield Kernel(
                found["name"],
                found["kind"],
                tuple(nodes_of(found["metadata"] or "")),
                tuple(re.findall(r"Datatype: (\w+)", found["inputs"])),
                tuple(re.findall(r"Datatype: (\w+)", found["constants"])),
            )


def parse_inspector(text: str) -> Iterator[Kernel]:
    """Yields the layers of an `IEngineInspector`'s JSON (detailed profiling verbosity).

    A tensor's dtype is spelled in its format: "Thirty-two wide channel vectorized row major Int8 format".
    Where the weights of a fused layer are not told, the name of its tactic tells: `..._i8i8_i8i32_f32_...`.
    Engines of a lower verbosity hold names only and yield nothing.
    """
    try:
        document = json.loads(text)
    except ValueError:
        return
    for layer in document.get("Layers", ()) if isinstance(document, dict) else ():
        if isinstance(layer, dict):
            yield _kernel(layer)


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    name = str(layer.get("Name", ""))
    inputs = _dtypes(layer.get("Inputs", ()))
    weights = layer.get("Weights")
    constants = _dtypes([weights]) if isinstance(weights, dict) else _dtypes(layer.get("Constants", ()))
    if not constants and len(inputs) < 2 and _INT8_TACTIC.search(str(layer.get("TacticName", ""))):
        constants = ("Int8",)
    nodes = tuple(nodes_of(str(layer.get("Metadata", "")))) or tuple(name.split(" + "))
    return Kernel(name, str(layer.get("LayerType", "")), nodes, inputs, constants)


def _dtypes(tensors: Sequence[Any]) -> tuple[str, ...]:
    return tuple(_dtype(tensor) for tensor in tensors if isinstance(tensor, dict))


def _dtype(tensor: Mapping[str, Any]) -> str:
    keys = ("Datatype", "DataType", "Format/Datatype", "Type", "Format")
    text = next((str(tensor[key]) for key in keys if key in tensor), "")
    found = (name for name, pattern in _DTYPES if re.search(pattern, text, re.IGNORECASE))
    return next(found, text)
