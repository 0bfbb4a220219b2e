"""Which types ONNX lets the inputs and outputs of an operator have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir

from trtq.pipeline.graph.fp4 import DOMAIN, DYNAMIC_QUANTIZE

_FLOAT = ir.DataType.FLOAT
_LITERAL_FLOAT = "tensor(float)"


@dataclass(frozen=True, slots=True)
class OperatorTypes:
    """What ONNX says of an operator in one opset.

    Attributes:
        inputs: The type of each, such as "T" or "tensor(float)"; the last stands for all after it.
        outputs: Likewise.
        allowed: The types that each of these letters may stand for.
        makes_numbers: Whether an attribute tells the dtype of an output that depends on no input.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    allowed: Mapping[str, frozenset[str]]
    makes_numbers: bool

    def has_version(self, node: ir.Node, dtype: ir.DataType) -> bool:
        """Returns whether all float32 inputs and outputs of a node may have this dtype, or must be float."""
        kinds = [_at(self.inputs, index) for index, value in enumerate(node.inputs) if _is_float(value)]
        kinds += [_at(self.outputs, index) for index, value in enumerate(node.outputs) if _is_float(value)]
        wanted = f"tensor({dtype.name.lower()})"
        return all(kind == _LITERAL_FLOAT or wanted in self.allowed.get(kind, ()) for kind in kinds)

    def has_to_be_float(self, index: int, *, is_output: bool = False) -> bool:
        """Returns whether an input or output is float32 whatever the others are."""
        return _at(self.outputs if is_output else self.inputs, index) == _LITERAL_FLOAT


_FP4_QUANTIZE = OperatorTypes(
    ("T", "T"),
    ("tensor(float4e2m1)", "tensor(float8e4m3fn)"),
    {"T": frozenset({"tensor(float)", "tensor(float16)", "tensor(bfloat16)"})},
    makes_numbers=False,
)
"""Measured: TensorRT takes it in every float type."""


def find_types(node: ir.Node, opset: int) -> OperatorTypes | None:
    """Returns the types of the operator of a node; None if it is not known in this opset."""
    if (node.domain, node.op_type) == (DOMAIN, DYNAMIC_QUANTIZE):
        return _FP4_QUANTIZE
    return _read_types(node.op_type, opset) if node.domain in ("", "ai.onnx") else None


@cache  # the schema of ONNX takes long to read, and is the same for all nodes of a type
def _read_types(op_type: str, opset: int) -> OperatorTypes | None:
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return OperatorTypes(
        tuple(str(item.type_str) for item in schema.inputs),
        tuple(str(item.type_str) for item in schema.outputs),
        {item.type_param_str: frozenset(item.allowed_type_strs) for item in schema.type_constraints},
        op_type == "Constant" or not schema.attributes.keys().isdisjoint(("dtype", "output_datatype")),
    )


def _at(kinds: tuple[str, ...], index: int) -> str:
    return kinds[min(index, len(kinds) - 1)]


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is _FLOAT
