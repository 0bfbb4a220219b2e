"""How a graph holds a weight of few bits: nodes that make the float weight of it, or that take it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtq.pipeline.formats.blocks import shape_of_scales
from trtq.pipeline.formats.double import GROUP, build_dynamic_map
from trtq.pipeline.formats.nf4 import CODEBOOK
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.rewrite.weights.choose import ChosenWeight

_FLOAT, _INT32 = ir.DataType.FLOAT, ir.DataType.INT32
_NF4 = 1  # MatMulBnb4's number for it


@dataclass(frozen=True, slots=True)
class Chain:
    """Adds nodes to a graph one after another, all before the first reader of the weight.

    Attributes:
        edit: Of the graph.
        before: The first reader.
        stem: A name that the graph does not have, from which all names are made.
    """

    edit: GraphEditor
    before: ir.Node
    stem: str

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        like: ir.Value,
        attributes: Mapping[str, int] | None = None,
        name: str = "",
    ) -> ir.Value:
        """Returns the output of a new node, of the dtype and shape of `declare_value`."""
        both = f"{self.stem}/{name or op_type}"
        return self.edit.insert(
            op_type, inputs, attributes, like=like, output=both, name=both, before=self.before
        )

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Returns a new constant."""
        return self.edit.add_constant(f"{self.stem}/{name}", tensor)

    def converted(self, value: ir.Value, dtype: ir.DataType, name: str = "") -> ir.Value:
        """Returns the value in the dtype."""
        if value.dtype is dtype:
            return value
        both = f"{self.stem}/{name or 'Cast'}"
        return self.edit.cast(value, dtype, output=both, name=both, before=self.before)

    def number(self, name: str, value: float, dtype: ir.DataType) -> ir.Value:
        """Returns a new scalar constant."""
        return self.constant(name, ir.tensor(np.array(value, dtype.numpy())))


def declare_value(dtype: ir.DataType, shape: Sequence[int | None]) -> ir.Value:
    """Returns a stand-in that only has a dtype and shape."""
    return ir.Value(type=ir.TensorType(dtype), shape=ir.Shape(shape))


def add_dequantize(chain: Chain, weight: ChosenWeight, codes: ir.Value, scales: ir.Value) -> ir.Value:
    """Returns an INT8 or INT4 weight behind DequantizeLinear, which TensorRT fuses into the product.

    Args:
        chain: Where the nodes go.
        weight: What is held.
        codes: INT8 or INT4, the weight's shape.
        scales: The float dtype that the weight has then; by channel, by block, or one.
    """
    attributes = {}
    if weight.axis is not None:
        attributes["axis"] = weight.axis
    if weight.block_size:
        attributes["block_size"] = weight.block_size
    assert scales.dtype is not None
    return chain.node(
        "DequantizeLinear", [codes, scales], declare_value(scales.dtype, weight.shape), attributes
    )


def add_lookup(
    chain: Chain, weight: ChosenWeight, codes: ir.Value, absmax: ir.Value, after: ir.Value | None = None
) -> ir.Value:
    """Returns an NF4 weight as standard nodes; TensorRT keeps its codes at half a byte in this form alone.

    The codes are INT4, from -8 on, behind a DequantizeLinear with the scale 1: as UINT8 indices the builder
    would store them in 32 bits. TensorRT computes what depends on no input before anything else, and would
    then hold the whole model in FP16: so the look-up waits for the activation that is multiplied.

    Args:
        chain: Where the nodes go.
        weight: What is held; its axis is parted into (blocks, block_size).
        codes: INT4 in -8..7, the parted shape.
        absmax: The float dtype that the weight has then; the parted shape with one element a block.
        after: The activation; None for an embedding, of which only the rows that are needed are looked up.
    """
    assert codes.shape is not None
    assert absmax.dtype is not None
    shape, dtype = codes.shape.numpy(), absmax.dtype
    book = chain.constant("codebook", ir.tensor(CODEBOOK.astype(dtype.numpy())))
    first = chain.number("first", 8.0, dtype)
    levels = _gather(chain, codes, first if after is None else _once_known(chain, first, after), book)
    scaled = chain.node("Mul", [levels, absmax], declare_value(dtype, shape))
    target = chain.constant("shape", ir.tensor(np.array(weight.shape, np.int64)))
    return chain.node("Reshape", [scaled, target], declare_value(dtype, weight.shape))


def add_double_lookup(
    chain: Chain, weight: ChosenWeight, codes: ir.Value, scales: ir.Value, offset: ir.Value
) -> ir.Value:
    """Returns the magnitudes of NF4 blocks out of their 8-bit form: float32, the parted shape.

    Args:
        chain: Where the nodes go.
        weight: Whose magnitudes they are.
        codes: INT8 in -128..127, shape (groups, 256), in bitsandbytes' order, filled up at the end.
        scales: float32, shape (groups, 1).
        offset: float32, shape ().
    """
    assert weight.axis is not None
    assert codes.shape is not None
    shape = shape_of_scales(weight.shape, weight.axis, weight.block_size)
    count, (groups, _) = int(np.prod(shape)), codes.shape.numpy()
    table = declare_value(_FLOAT, (groups, GROUP))
    book = chain.constant("dynamic_map", ir.tensor(build_dynamic_map()))
    levels = _gather(chain, codes, chain.number("first", 128.0, _FLOAT), book)
    values = chain.node("Sum", [chain.node("Mul", [levels, scales], table), offset], table)
    ends = [
        chain.constant(name, ir.tensor(np.array(array, np.int64)))
        for name, array in (("flat", [-1]), ("start", [0]), ("end", [count]))
    ]
    flat = chain.node("Reshape", [values, ends[0]], declare_value(_FLOAT, (groups * GROUP,)), name="Flat")
    own = chain.node("Slice", [flat, ends[1], ends[2]], declare_value(_FLOAT, (count,)))
    rows = shape if weight.axis else shape[::-1]
    target = chain.constant("rows", ir.tensor(np.array(rows, np.int64)))
    table_of_rows = chain.node("Reshape", [own, target], declare_value(_FLOAT, rows))
    if not weight.axis:
        table_of_rows = chain.node("Transpose", [table_of_rows], declare_value(_FLOAT, shape))
    parted = (*shape[: weight.axis + 1], 1, *shape[weight.axis + 1 :])
    place = chain.constant("place", ir.tensor(np.array([weight.axis + 1], np.int64)))
    return chain.node("Unsqueeze", [table_of_rows, place], declare_value(_FLOAT, parted))


def add_matmul_bnb4(
    chain: Chain, weight: ChosenWeight, reader: ir.Node, codes: ir.Value, absmax: ir.Value
) -> ir.Value:
    """Returns the product that ONNX Runtime computes from NF4 codes as bitsandbytes stores them.

    Args:
        chain: Where the node goes.
        weight: Of shape (K, N).
        reader: The MatMul that it stands for.
        codes: UINT8, two codes a byte, the first in the high half, of the weight as (N, K); one-dimensional.
        absmax: float32, one-dimensional, in the same order.
    """
    length, width = weight.shape
    source = reader.inputs[0]
    assert source is not None
    chain.edit.graph.opset_imports.setdefault("com.microsoft", 1)
    attributes = {"K": length, "N": width, "block_size": weight.block_size, "quant_type": _NF4}
    old, inputs, output = reader.outputs[0], [source, codes, absmax], f"{chain.stem}/MatMulBnb4"
    return chain.edit.insert(
        "MatMulBnb4", inputs, attributes, like=old, output=output, domain="com.microsoft", before=reader
    )


def _once_known(chain: Chain, number: ir.Value, activation: ir.Value) -> ir.Value:
    """Returns the number, shape (1,), computed so that it waits for the activation, whatever is in that.

    No value is less than minus infinity, not even NaN, and the builder does not know it.
    """
    dtype = activation.dtype
    assert dtype is not None
    assert number.dtype is not None
    start, end, flat = (
        chain.constant(name, ir.tensor(np.array([value], np.int64)))
        for name, value in (("wait_start", 0), ("wait_end", 1), ("wait_flat", -1))
    )
    least = chain.constant("wait_least", ir.tensor(np.array([-np.inf], dtype.numpy())))
    values = chain.node("Reshape", [activation, flat], declare_value(dtype, [None]), name="WaitFlat")
    value = chain.node("Slice", [values, start, end], declare_value(dtype, [1]), name="WaitSlice")
    never = chain.node("Less", [value, least], declare_value(ir.DataType.BOOL, [1]), name="WaitLess")
    zero = chain.converted(never, number.dtype, "WaitCast")
    return chain.node("Add", [number, zero], declare_value(number.dtype, [1]), name="WaitAdd")


def _gather(chain: Chain, codes: ir.Value, first: ir.Value, table: ir.Value) -> ir.Value:
    """Returns the table's entries at the codes plus the number that is first."""
    assert codes.shape is not None
    assert table.dtype is not None
    shape, dtype = codes.shape.numpy(), table.dtype
    floats = declare_value(dtype, shape)
    one = chain.number("one", 1.0, dtype)
    numbers = chain.node("DequantizeLinear", [codes, one], floats)
    moved = chain.node("Add", [numbers, first], floats)
    index = chain.converted(moved, _INT32, "Index")
    return chain.node("Gather", [table, index], floats)
