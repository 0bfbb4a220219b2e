"""How a graph holds a weight of few bits: nodes that make the float weight of it, or that take it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtq.pipeline.formats.double import build_dynamic_map
from trtq.pipeline.formats.nf4 import CODEBOOK
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.rewrite.weights.choose import ChosenWeight

_FLOAT = ir.DataType.FLOAT
_NF4 = 1  # MatMulBnb4's number for it


@dataclass(frozen=True, slots=True)
class Chain:
    """Adds nodes to a graph in order, before a reader; all names are made from a new one, `stem`."""

    edit: GraphEditor
    before: ir.Node
    stem: str

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        shape: Sequence[int | None],
        dtype: ir.DataType | None = None,
        attributes: Mapping[str, int] | None = None,
        name: str = "",
    ) -> ir.Value:
        """Returns the output of a new node, of the shape and the dtype, which is that of the last input."""
        both = f"{self.stem}/{name or op_type}"
        kind = dtype or inputs[-1].dtype
        assert kind is not None
        like = ir.Value(type=ir.TensorType(kind), shape=ir.Shape(shape))
        return self.edit.insert(
            op_type, inputs, attributes, like=like, output=both, name=both, before=self.before
        )

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Returns a new constant."""
        return self.edit.add_constant(f"{self.stem}/{name}", tensor)

    def integers(self, name: str, *values: int) -> ir.Value:
        """Returns a new constant of INT64, one-dimensional."""
        return self.constant(name, ir.tensor(np.array(values, np.int64)))

    def number(self, name: str, value: float, dtype: ir.DataType) -> ir.Value:
        """Returns a new scalar constant."""
        return self.constant(name, ir.tensor(np.array(value, dtype.numpy())))

    def converted(self, value: ir.Value, dtype: ir.DataType, name: str = "") -> ir.Value:
        """Returns the value in the dtype."""
        if value.dtype is dtype:
            return value
        both = f"{self.stem}/{name or 'Cast'}"
        return self.edit.cast(value, dtype, output=both, name=both, before=self.before)


def add_dequantize(chain: Chain, weight: ChosenWeight, codes: ir.Value, scales: ir.Value) -> ir.Value:
    """Returns a weight behind DequantizeLinear, which TensorRT fuses into the product."""
    attributes = weight.encoding.granularity.attributes(weight.shape)
    return chain.node("DequantizeLinear", [codes, scales], weight.shape, attributes=attributes)


def add_lookup(
    chain: Chain, weight: ChosenWeight, codes: ir.Value, absmax: ir.Value, after: ir.Value | None = None
) -> ir.Value:
    """Returns an NF4 weight as standard nodes; TensorRT keeps its codes at half a byte in this form alone.

    The codes are INT4, from -8 on, behind a DequantizeLinear with the scale 1: as UINT8 indices the builder
    would store them in 32 bits. TensorRT computes what depends on no input before anything else, and would
    then hold the whole model in FP16: so the look-up waits for the activation that is multiplied.

    Args:
        chain: Where the nodes go.
        weight: What is held; its axis is split into (blocks, block_size).
        codes: INT4 in -8..7, the split shape.
        absmax: The float dtype that the weight has then; the split shape with one element a block.
        after: The activation; None for an embedding, of which only the rows that are needed are looked up.
    """
    dtype = _dtype(absmax)
    book = chain.constant("codebook", ir.tensor(CODEBOOK.astype(dtype.numpy())))
    first = chain.number("first", 8.0, dtype)
    levels = _gather(chain, codes, first if after is None else _once_known(chain, first, after), book)
    scaled = chain.node("Mul", [levels, absmax], _shape(codes))
    return chain.node("Reshape", [scaled, chain.integers("shape", *weight.shape)], weight.shape, dtype)


def add_double_lookup(
    chain: Chain, weight: ChosenWeight, codes: ir.Value, scales: ir.Value, offset: ir.Value
) -> ir.Value:
    """Returns the magnitudes of NF4 blocks out of their 8-bit form: float32, the split shape.

    The codes are INT8 in -128..127, shape (groups, 256), in bitsandbytes' order, filled up at the end; the
    scales have the shape (groups, 1), the offset ().
    """
    axis, shape, table = weight.blocks.axis, weight.blocks.scales_shape(weight.shape), _shape(codes)
    count, rows = math.prod(shape), shape if axis else shape[::-1]
    book = chain.constant("dynamic_map", ir.tensor(build_dynamic_map()))
    levels = _gather(chain, codes, chain.number("first", 128.0, _FLOAT), book)
    values = chain.node("Sum", [chain.node("Mul", [levels, scales], table), offset], table)
    ends = [chain.integers(name, end) for name, end in (("flat", -1), ("start", 0), ("end", count))]
    flat = chain.node("Reshape", [values, ends[0]], (math.prod(table),), _FLOAT, name="Flat")
    own = chain.node("Slice", [flat, ends[1], ends[2]], (count,), _FLOAT)
    in_rows = chain.node("Reshape", [own, chain.integers("rows", *rows)], rows, _FLOAT)
    if not axis:
        in_rows = chain.node("Transpose", [in_rows], shape)
    split = (*shape[: axis + 1], 1, *shape[axis + 1 :])
    return chain.node("Unsqueeze", [in_rows, chain.integers("place", axis + 1)], split, _FLOAT)


def add_matmul_bnb4(
    chain: Chain, weight: ChosenWeight, reader: ir.Node, codes: ir.Value, absmax: ir.Value
) -> ir.Value:
    """Returns the product that ONNX Runtime computes from NF4 codes as bitsandbytes stores them.

    Both are one-dimensional, in the order of the weight as (N, K): UINT8 with two codes a byte, the first in
    the high half, and float32 magnitudes.
    """
    length, width = weight.shape
    chain.edit.graph.opset_imports.setdefault("com.microsoft", 1)
    attributes = {"K": length, "N": width, "block_size": weight.blocks.size, "quant_type": _NF4}
    old, inputs, output = reader.outputs[0], [reader.inputs[0], codes, absmax], f"{chain.stem}/MatMulBnb4"
    return chain.edit.insert(
        "MatMulBnb4", inputs, attributes, like=old, output=output, domain="com.microsoft", before=reader
    )


def _once_known(chain: Chain, number: ir.Value, activation: ir.Value) -> ir.Value:
    """Returns the number, shape (1,), computed so that it waits for the activation, whatever is in that.

    No value is less than minus infinity, not even NaN, and the builder does not know it. It is the first
    value, or 0 where the activation is empty.
    """
    dtype = _dtype(activation)
    names = (("wait_start", 0), ("wait_end", 1), ("wait_flat", -1))
    start, end, flat = (chain.integers(name, value) for name, value in names)
    least = chain.constant("wait_least", ir.tensor(np.array([-np.inf], dtype.numpy())))
    values = chain.node("Reshape", [activation, flat], [None], dtype, name="WaitFlat")
    first = chain.node("Slice", [values, start, end], [None], dtype, name="WaitSlice")
    zero = chain.constant("wait_zero", ir.tensor(np.zeros(1, dtype.numpy())))
    padded = chain.node("Concat", [first, zero], [None], dtype, {"axis": 0}, name="WaitConcat")
    value = chain.node("Slice", [padded, start, end], [1], dtype, name="WaitFirst")
    never = chain.node("Less", [value, least], [1], ir.DataType.BOOL, name="WaitLess")
    return chain.node(
        "Add", [number, chain.converted(never, _dtype(number), "WaitCast")], [1], name="WaitAdd"
    )


def _gather(chain: Chain, codes: ir.Value, first: ir.Value, table: ir.Value) -> ir.Value:
    """Returns the table's entries at the codes plus the number that is first."""
    shape, dtype = _shape(codes), _dtype(table)
    numbers = chain.node("DequantizeLinear", [codes, chain.number("one", 1.0, dtype)], shape)
    index = chain.converted(chain.node("Add", [numbers, first], shape), ir.DataType.INT32, "Index")
    return chain.node("Gather", [table, index], shape, dtype)


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(value.shape.numpy())


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype
