"""The constants that hold one weight in few bits: which they are, how large, and what is in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import pack_nibbles, swap_nibbles
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.formats.double import GROUP, quantize_absmax
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.rewrite.weights.choose import ChosenWeight

Form = Literal["linear", "lookup", "double", "bnb4"]
"""DequantizeLinear; NF4 as a look-up; the same with double quantization; ONNX Runtime's MatMulBnb4."""
_FLOAT, _INT4, _INT8, _UINT8 = ir.DataType.FLOAT, ir.DataType.INT4, ir.DataType.INT8, ir.DataType.UINT8


@dataclass(frozen=True, slots=True)
class Part:
    """One constant."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size; two INT4 are one byte."""
        return math.ceil(math.prod(self.shape) * self.dtype.bitwidth / 8)


def choose_form(encoding: Encoding, *, bnb4: bool = False) -> Form:
    """Returns the form; `bnb4` if MatMulBnb4 can be had, which knows no double quantization."""
    if encoding.format.is_linear:
        return "linear"
    return "double" if encoding.has_coded_scales else "bnb4" if bnb4 else "lookup"


def plan_parts(weight: ChosenWeight, dtype: ir.DataType, form: Form | None = None) -> tuple[Part, ...]:
    """Returns the constants that depend on the weight; what all have (codebooks, shapes) is not among them.

    The dtype is that of the weight for its reader; the form is TensorRT's unless another is given.
    """
    encoding, shape, form = weight.encoding, weight.shape, form or choose_form(weight.encoding)
    scales = encoding.granularity.scales_shape(shape)
    if form == "linear":
        return Part("codes", encoding.format.dtype, shape), Part("scale", dtype, scales)
    axis, block, count = weight.blocks.axis, weight.blocks.size, math.prod(scales)
    if form == "bnb4":
        return Part("codes", _UINT8, (math.prod(shape) // 2,)), Part("scale", _FLOAT, (count,))
    codes = Part("codes", _INT4, _split_axis(scales, axis, block))
    if form == "lookup":
        return codes, Part("scale", dtype, _split_axis(scales, axis, 1))
    groups = math.ceil(count / GROUP)
    return (
        codes,
        Part("absmax_codes", _INT8, (groups, GROUP)),
        Part("absmax_scale", _FLOAT, (groups, 1)),
        Part("absmax_offset", _FLOAT, ()),
    )


def count_stored_bytes(weight: ChosenWeight, dtype: ir.DataType) -> int:
    """Returns the size of a weight as TensorRT gets it, where the rest computes in the float dtype."""
    return sum(part.nbytes for part in plan_parts(weight, dtype))


def _split_axis(scales: Sequence[int], axis: int, block: int) -> tuple[int, ...]:
    """Returns the shape with the blocked axis as two: (blocks, block)."""
    return (*scales[: axis + 1], block, *scales[axis + 1 :])


def finish_codes(form: Form, dtype: ir.DataType) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Returns what makes the content of the first constant of codes in their order; not for "bnb4"."""
    if form == "linear":
        return pack_nibbles if dtype is _INT4 else np.ravel
    return partial(pack_nibbles, flip=8)  # codes from -8 on


def fill_parts(
    codes: Codes, weight: ChosenWeight, parts: Sequence[Part], form: Form
) -> tuple[ir.TensorProtocol, ...]:
    """Returns the content of the constants, in the order of `plan_parts`.

    Args:
        codes: Of the whole weight.
        weight: What is held.
        parts: Of `plan_parts`.
        form: Of `choose_form`.
    """
    values, scales = codes
    if form == "bnb4":
        ours, theirs = _as_bitsandbytes(values, scales, weight)
        return as_tensor(swap_nibbles(pack_nibbles(ours)), parts[0]), as_tensor(theirs, parts[1])
    finished = finish_codes(form, parts[0].dtype)(values)
    return as_tensor(finished, parts[0]), *fill_scales(scales, weight, parts[1:], form)


def fill_scales(
    scales: NDArray[np.float32], weight: ChosenWeight, parts: Sequence[Part], form: Form
) -> tuple[ir.TensorProtocol, ...]:
    """Returns the content of the constants behind the first, which has the codes; not for "bnb4"."""
    arrays = _code_scales(scales, weight) if form == "double" else (scales,)
    return tuple(as_tensor(array, part) for array, part in zip(arrays, parts, strict=True))


def _code_scales(scales: NDArray[np.float32], weight: ChosenWeight) -> tuple[NDArray[Any], ...]:
    """Returns magnitudes in 8 bits: codes in groups, their scales, and the offset."""
    again = quantize_absmax(_in_their_order(scales, weight))
    padded = np.zeros(len(again.scales) * GROUP, np.int8)
    padded[: again.codes.size] = (again.codes ^ 128).view(np.int8)
    return padded, again.scales, np.asarray(again.offset)


def _as_bitsandbytes(values: NDArray[Any], scales: NDArray[Any], weight: ChosenWeight) -> Codes:
    """Returns codes and magnitudes in the order of a weight of (out, in), block after block."""
    return _in_their_order(values, weight), _in_their_order(scales, weight)


def _in_their_order(array: NDArray[Any], weight: ChosenWeight) -> NDArray[Any]:
    return np.ascontiguousarray(array.T if weight.blocks.axis == 0 else array)


def as_tensor(array: NDArray[Any], part: Part) -> ir.TensorProtocol:
    """Returns the constant with this content: codes as `finish_codes` leaves them, or scales."""
    if part.dtype is _INT4:
        return ir.PackedTensor(array, _INT4, shape=part.shape)
    return ir.tensor(array.reshape(part.shape).astype(part.dtype.numpy(), copy=False))
