"""What an engine runs, read from what the builder says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CODES: Mapping[str, str] = {"Int8": "int8", "FP8": "fp8", "FP4E2M1": "nvfp4"}
"""The formats that kernels multiply, by the builder's word for the type of their codes."""
_DEQUANTIZING = ("kgen", "shape_call", "runtime_fusion")
"""Kinds of generated kernels: what they read may be codes, their arithmetic is not."""
_FUSED_ATTENTION = "_gemm_mha"
"""In the name of the generated kernel that does both products of an attention and the Softmax between."""
_KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"Constants: \[(?P<constants>.*)\], Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), "
    r"StreamId: \d+(?:, Metadata: (?P<metadata>.*))?"
)
_NODE = re.compile(r"\[ONNX Layer: (.*)\]$", re.DOTALL)
_BETWEEN_NODES = re.compile(r"[\x1e\x1f]|(?<=\])(?=\[ONNX Layer: )")
_BETWEEN_NAMES = re.compile(r" \+ | \|\| ")
_DTYPES = (
    ("Int8", r"(?<!u)int8"),
    ("UInt8", r"uint8"),
    ("FP4E2M1", r"fp4|e2m1"),
    ("FP8", r"fp8|e4m3"),
    ("Int4", r"int4"),
    ("BFloat16", r"bfloat16|bf16"),
    ("Half", r"half|fp16|float16"),
    ("Float", r"float|fp32"),
    ("Int64", r"int64"),
    ("Int32", r"int32"),
    ("Bool", r"bool"),
)
_INT8_TACTIC = re.compile(r"(?:^|_)i8i8_|_i8\w*_i8i32_|(?:^|_)int8(?:x4)?_")


@dataclass(frozen=True, slots=True)
class Kernel:
    """One step of an engine, as the builder names it.

    Attributes:
        kind: The builder's word for it, such as `correlation` (a convolution) or `gemm`.
        nodes: The ONNX nodes that it computes.
        inputs: The dtypes of its inputs.
        constants: The dtypes of its constants.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    constants: tuple[str, ...]

    @property
    def operands(self) -> tuple[str, ...]:
        """The dtypes of what it multiplies: its first input, and its first constant or second input.

        Where it has both, one of them is a scale or is added; if one is of codes, the other is that one.
        """
        first, others = self.inputs[:1], (*self.constants[:1], *self.inputs[1:2])
        other = [dtype for dtype in others if dtype in CODES]
        return (*first, *(other or others)[:1])

    @property
    def multiplies_in(self) -> str:
        """The format of the codes that it multiplies with each other: one of `CODES`; empty if of none."""
        if self.kind in _DEQUANTIZING and _FUSED_ATTENTION not in self.name:
            return ""
        dtypes = set(self.operands)
        return CODES.get(self.operands[0], "") if len(self.operands) == 2 and len(dtypes) == 1 else ""

    @property
    def reads(self) -> frozenset[str]:
        """The dtypes of everything that a product reads; of what only converts or combines nothing."""
        is_product = self.kind not in ("kgen", "shape_call") or _FUSED_ATTENTION in self.name
        return frozenset((*self.inputs, *self.constants)) if is_product else frozenset()


def list_nodes(metadata: str) -> Iterator[str]:
    """Yields the names of the ONNX nodes that a layer's metadata holds."""
    for part in _BETWEEN_NODES.split(metadata):
        if node := _NODE.match(part.strip(" ")):
            yield node[1]


def split_names(name: str) -> tuple[str, ...]:
    """Returns the names of the nodes in that of a layer: `conv1 + relu1`."""
    return tuple(_BETWEEN_NAMES.split(name))


def parse_log(layers: str) -> Iterator[Kernel]:
    """Yields the kernels of the builder's `Layers:` message (detailed profiling verbosity)."""
    for line in layers.split("\n"):  # splitlines would also split at rarer characters in names
        if found := _KERNEL.match(line):
            yield Kernel(
                found["name"],
                found["kind"],
                tuple(list_nodes(found["metadata"] or "")),
                tuple(re.findall(r"Datatype: (\w+)", found["inputs"])),
                tuple(re.findall(r"Datatype: (\w+)", found["constants"])),
            )


def parse_inspector(text: str) -> Iterator[Kernel]:
    """Yields the layers of an `IEngineInspector`'s JSON (detailed profiling verbosity).

    A tensor's dtype is spelled in its format: "Thirty-two wide channel vectorized row major Int8 format".
    The dtype of a fused layer's weights may stand in the name of its tactic only: `..._i8i8_i8i32_f32_...`.
    Engines of a lower verbosity hold names only and yield nothing.
    """
    try:
        document = json.loads(text, strict=False)  # names of nodes are separated by control characters
    except ValueError:
        return
    yield from map(_read_kernel, _items(document, "Layers"))


def _read_kernel(layer: Mapping[str, Any]) -> Kernel:
    name = str(layer.get("Name", ""))
    inputs = tuple(map(_dtype, _items(layer, "Inputs")))
    weights = layer.get("Weights")
    constants = tuple(map(_dtype, [weights] if isinstance(weights, dict) else _items(layer, "Constants")))
    if not constants and _INT8_TACTIC.search(str(layer.get("TacticName", ""))):
        constants = ("Int8",)
    nodes = tuple(list_nodes(str(layer.get("Metadata", "")))) or split_names(name)
    return Kernel(name, str(layer.get("LayerType", "")), nodes, inputs, constants)


def _items(document: Any, key: str) -> list[Mapping[str, Any]]:
    """Returns the objects of a list in a JSON object; none where either is something else."""
    items = document.get(key) if isinstance(document, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _dtype(tensor: Mapping[str, Any]) -> str:
    keys = ("Datatype", "DataType", "Format/Datatype", "Type", "Format")
    text = next((str(tensor[key]) for key in keys if key in tensor), "")
    found = (name for name, pattern in _DTYPES if re.search(pattern, text, re.IGNORECASE))
    return next(found, text)
