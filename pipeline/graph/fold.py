"""Rewrites that leave what the model computes as it is, and make it easier to quantize."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.session import open_session, run
from trtq.numbers import format_count
from trtq.pipeline.graph.edit import GraphEditor, list_bodies
from trtq.pipeline.graph.operands import find_constant, read_constant

_MAX_GROWTH = 1 << 18  # elements; not bytes, so that a Cast of FP16 weights to FP32 is no growth
_STANDARD = ("", "ai.onnx")
_MOST_SHIFT = 16.0
"""Of a number that goes into a bias, against the root mean square of the outputs."""
RANDOM = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip
"""Operators that draw other numbers each time."""
_NOT_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", *RANDOM})  # Q/DQ are the point of such a model


def drop_identities(model: ir.Model) -> None:
    """Removes Identity nodes, except where an output of the model has no other node to come from."""
    edit = GraphEditor(model)
    identities = [node for node in model.graph if node.op_type == "Identity" and node.domain in _STANDARD]
    for node in identities:
        source, result = node.inputs[0], node.outputs[0]
        if source is None:
            continue
        if not result.is_graph_output() or (source.producer() is not None and not source.is_graph_output()):
            edit.replace(result, source)
            edit.remove(node)


def fold_constants(model: ir.Model) -> Iterator[str]:
    """Replaces what does not depend on an input by its value, computed by ONNX Runtime.

    Values that would grow the model (a broadcast constant) stay computed, and so does what has a body or no
    numpy dtype (bfloat16). `Shape` of a tensor whose shape is known counts as a constant.

    Raises:
        ModelError: A node cannot be computed, such as one that reads behind the end of a table.
    """
    edit = GraphEditor(model)
    num_shapes = _fold_shapes(edit)
    foldable: dict[ir.Node, None] = {}
    for node in model.graph:
        if _depends_on_no_input(node, foldable) and not any(out.is_graph_output() for out in node.outputs):
            foldable[node] = None
    made = [value for node in foldable for value in node.outputs]
    frontier = [value for value in made if any(user not in foldable for user in value.consumers())]
    if frontier:
        try:
            arrays = _compute(model, frontier)
        except ModelError:
            _refuse_short_table(model, foldable)
            raise
        for value, array in zip(frontier, arrays, strict=True):
            edit.replace(value, edit.add_constant(f"{value.name}_folded", array))
    edit.remove(list(foldable))
    if num_shapes + len(foldable):
        yield f"folded {format_count(num_shapes + len(foldable), 'node')} that depend on no input"


def _compute(model: ir.Model, values: Sequence[ir.Value]) -> list[NDArray[Any]]:
    """Returns values that depend on no input."""
    part = ir.Model(ir.convenience.extract(model.graph, [], values), ir_version=model.ir_version)
    return run(open_session(part, optimize=False), [str(value.name) for value in values], {})


def _refuse_short_table(model: ir.Model, foldable: Collection[ir.Node]) -> None:
    """Refuses a model of which a node looks up what its table does not have, as rotary angles do by position.

    Args:
        model: The model.
        foldable: Nodes that depend on no input, in the order of the graph.

    Raises:
        ModelError: So it is.
    """
    for node in (node for node in foldable if node.op_type == "Gather"):
        table, places = node.inputs[:2]
        size, axis = _static_shape(table) or (), node.attributes.get_int("axis", 0)
        if table is None or places is None or not -len(size) <= axis < len(size):
            continue
        found = read_constant(places) if places.is_initializer() else _compute(model, [places])[0]
        refuse_missing_entries(node, table, size[axis], found)


def refuse_missing_entries(node: ir.Node, table: ir.Value, length: int, places: NDArray[Any]) -> None:
    """Refuses a node that looks up what its table does not have.

    Args:
        node: The node.
        table: What it looks into.
        length: The number of its entries.
        places: Which it looks up.

    Raises:
        ModelError: One is not in the table.
    """
    if places.size and (places.max() >= length or places.min() < -length):
        entry = places.max() if places.max() >= length else places.min()
        raise ModelError(
            f"node {node.name!r} reads entry {entry} of {table.name!r}, which has {length}; if these are "
            f"positions, the model takes {length} at the most: choose smaller sizes (--past plus --new, "
            f"or --seq), or export it with a longer table"
        ) from None


def _fold_shapes(edit: GraphEditor) -> int:
    """Replaces Shape nodes of known shape, and those that pick known sizes of a shape; says how many."""
    folded = 0
    for node in [node for node in edit.graph if node.op_type == "Shape" and node.domain in _STANDARD]:
        sizes = _sizes(node)
        for value, picked in [(node.outputs[0], sizes), *_list_picked(node, sizes)]:
            if None not in picked and not value.is_graph_output():
                maker = value.producer()
                assert maker is not None
                array = np.array(picked, np.int64)
                edit.replace(value, edit.add_constant(f"{maker.name}_shape", array))
                edit.remove(maker)
                folded += 1
    return folded


def _sizes(node: ir.Node) -> NDArray[Any]:
    """Returns what a Shape makes, None for a size that is open: an array of objects."""
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None:
        return np.array([None])
    sizes = [size if isinstance(size, int) else None for size in shape]
    end = node.attributes.get_int("end", len(sizes))
    return np.array(sizes, object)[node.attributes.get_int("start", 0) : end]


def _list_picked(node: ir.Node, sizes: NDArray[Any]) -> list[tuple[ir.Value, NDArray[Any]]]:
    """Returns what Gather nodes pick of a shape that is known in part."""
    result, found = node.outputs[0], []
    if node.inputs[0] is None or node.inputs[0].shape is None or None not in sizes:
        return []
    for user in dict.fromkeys(result.consumers()):
        is_pick = user.op_type == "Gather" and user.inputs[0] is result
        indices: NDArray[Any] | None = find_constant(user, 1) if is_pick else None
        if indices is not None and np.all((-len(sizes) <= indices) & (indices < len(sizes))):
            found.append((user.outputs[0], np.asarray(sizes[indices], object)))
    return found


def _depends_on_no_input(node: ir.Node, foldable: dict[ir.Node, None]) -> bool:
    if node.domain not in _STANDARD or node.op_type in _NOT_FOLDED or list_bodies(node):
        return False
    if not all(_is_constant(value) or value.producer() in foldable for value in node.inputs if value):
        return False
    sizes = [_num_elements(value) for value in node.outputs]
    room = _MAX_GROWTH + sum(_num_elements(value) or 0 for value in node.inputs)
    is_numpy = all(_is_numpy(value) for value in node.outputs if value.name)
    return is_numpy and all(size is None or size <= room for size in sizes)


def _is_numpy(value: ir.Value) -> bool:
    """Returns whether ONNX Runtime can hand the value over as an array: no sequence, string or bfloat16."""
    if not isinstance(value.type, ir.TensorType) or value.type.dtype is ir.DataType.STRING:
        return False
    return value.type.dtype.numpy().isbuiltin == 1


def _static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def _num_elements(value: ir.Value | None) -> int | None:
    shape = _static_shape(value)
    return None if shape is None else math.prod(shape)


def fold_batch_norm(model: ir.Model) -> Iterator[str]:
    """Multiplies a BatchNormalization into the Conv or ConvTranspose before it.

    Only where the convolution has no other user, all factors are constants and the products fit into the
    weight's dtype; then the two compute the same up to float rounding. The arithmetic is in float64.
    """
    folded, edit = 0, GraphEditor(model)
    for norm in [node for node in model.graph if node.op_type == "BatchNormalization"]:
        conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if conv is None or not _can_take(conv, norm):
            continue
        weight, bias = _normalized(conv, norm)
        if np.isfinite(weight).all() and np.isfinite(bias).all():
            edit.set_constant(conv, 1, f"{conv.name}_weight", weight)
            _take_over(edit, norm, conv, bias)
            folded += 1
    if folded:
        yield f"folded {format_count(folded, 'BatchNormalization node')} into the convolutions before them"


def _take_over(edit: GraphEditor, node: ir.Node, conv: ir.Node, bias: NDArray[Any]) -> None:
    """Gives a convolution the bias with which it computes the node behind it too."""
    edit.set_constant(conv, 2, f"{conv.name}_bias", bias)
    edit.replace(node.outputs[0], conv.outputs[0])
    edit.remove(node)


def _normalized(conv: ir.Node, norm: ir.Node) -> tuple[NDArray[Any], NDArray[Any]]:
    """Returns the weight and the bias with which the convolution computes both nodes."""
    gamma, beta, mean, variance = (read_constant(value).astype(np.float64) for value in norm.inputs[1:5])
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    weight = read_constant(conv.inputs[1])
    bias = read_constant(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else 0.0
    axis = 1 if conv.op_type == "ConvTranspose" else 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # the caller looks
        factor = gamma / np.sqrt(variance + epsilon)
        scaled = weight * factor.reshape([-1 if dim == axis else 1 for dim in range(weight.ndim)])
        shifted = (np.asarray(bias, np.float64) - mean) * factor + beta
        return scaled.astype(weight.dtype), shifted.astype(weight.dtype)


def fold_bias(model: ir.Model) -> Iterator[str]:
    """Adds a constant per channel to the bias of the convolution before it; Paddle leaves it apart."""
    if folded := _fold_constants_behind(model, "Add", _with_bias):
        yield f"folded {format_count(folded, 'bias addition')} into the convolutions before them"


def fold_number(model: ir.Model) -> Iterator[str]:
    """Adds one number to the bias of the convolution before it, unless it is far larger than what that makes.

    Codes behind the convolution would then be too coarse for what it makes.
    """
    if folded := _fold_constants_behind(model, "Add", _with_number):
        yield f"folded {format_count(folded, 'addition')} into the convolutions before them"


def fold_factor(model: ir.Model) -> Iterator[str]:
    """Multiplies a constant, one or one per channel, into the Conv before it, where that is finite."""
    if folded := _fold_constants_behind(model, "Mul", _with_factor):
        yield f"folded {format_count(folded, 'factor')} into the convolutions before them"


def _fold_constants_behind(
    model: ir.Model,
    op_type: str,
    take: Callable[[ir.Node, ir.Value | None, ir.Node], tuple[NDArray[Any], NDArray[Any]] | None],
) -> int:
    """Gives convolutions the weight and bias with which they compute a constant behind too; says how many."""
    folded, edit = 0, GraphEditor(model)
    for node in [node for node in model.graph if node.op_type == op_type]:
        for term, constant in (node.inputs, node.inputs[::-1]):
            conv = term.producer() if term is not None else None
            taken = None if conv is None else take(conv, constant, node)
            if conv is not None and taken is not None:
                if taken[0] is not read_constant(conv.inputs[1]):
                    edit.set_constant(conv, 1, f"{conv.name}_weight", taken[0])
                _take_over(edit, node, conv, taken[1])
                folded += 1
                break
    return folded


def _with_bias(
    conv: ir.Node, offset: ir.Value | None, add: ir.Node
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Returns the weight and bias of a convolution with a constant per channel added; None if it cannot."""
    is_number = offset is not None and offset.const_value is not None and offset.const_value.size == 1
    return None if is_number and read_constant(offset).ndim < 2 else _with_offset(conv, offset, add)


def _with_number(
    conv: ir.Node, offset: ir.Value | None, add: ir.Node
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Returns the same for a number that is not far beyond the outputs for inputs of variance 1."""
    taken = _with_offset(conv, offset, add)
    if taken is None:
        return None
    weight = taken[0].astype(np.float64)
    usual = np.sqrt(np.square(weight).sum() / taken[1].size)
    return taken if np.abs(read_constant(offset)).max() <= _MOST_SHIFT * usual else None


def _with_offset(
    conv: ir.Node, offset: ir.Value | None, add: ir.Node
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Returns the weight and bias of a convolution with a constant added; None if it cannot take that."""
    if not _takes_constant(conv, offset, add):
        return None
    weight, bias = read_constant(conv.inputs[1]), _by_channel(conv, read_constant(offset))
    before = conv.inputs[2] if len(conv.inputs) > 2 else None
    if bias is None:
        return None
    return weight, bias if before is None else bias + read_constant(before)


def _with_factor(
    conv: ir.Node, factor: ir.Value | None, mul: ir.Node
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Returns the weight and the bias of a Conv times a constant; None if it cannot take that."""
    if conv.op_type != "Conv" or not _takes_constant(conv, factor, mul):
        return None
    weight, factors = read_constant(conv.inputs[1]), _by_channel(conv, read_constant(factor))
    if factors is None:
        return None
    before = conv.inputs[2] if len(conv.inputs) > 2 else None
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        bias = np.zeros_like(factors) if before is None else read_constant(before) * factors
        scaled = weight * factors.reshape(-1, *(1,) * (weight.ndim - 1))
    return (scaled, bias) if np.isfinite(scaled).all() and np.isfinite(bias).all() else None


def _takes_constant(conv: ir.Node, constant: ir.Value | None, user: ir.Node) -> bool:
    is_conv = conv.op_type in ("Conv", "ConvTranspose") and _is_only_user(conv, user)
    return is_conv and constant is not None and all(map(_is_constant, (constant, *conv.inputs[1:])))


def _by_channel(conv: ir.Node, constant: NDArray[Any]) -> NDArray[Any] | None:
    """Returns a constant behind a convolution for each output channel; None if it differs within one."""
    weight = read_constant(conv.inputs[1])
    is_transposed = conv.op_type == "ConvTranspose"
    channels = weight.shape[1] * conv.attributes.get_int("group", 1) if is_transposed else weight.shape[0]
    per_channel = (channels, *(1,) * (weight.ndim - 2))
    if constant.size == 1 and constant.ndim <= weight.ndim:
        return np.full(channels, constant.reshape(()), weight.dtype)
    return constant.reshape(-1) if constant.shape in (per_channel, (1, *per_channel)) else None


def _is_only_user(producer: ir.Node, user: ir.Node) -> bool:
    value = producer.outputs[0]
    return not value.is_graph_output() and [node for node, _ in value.uses()] == [user]


def _is_constant(value: ir.Value | None) -> bool:
    return value is None or value.is_initializer()


def _can_take(conv: ir.Node, norm: ir.Node) -> bool:
    grouped = conv.attributes.get_int("group", 1) != 1
    training = norm.attributes.get_int("training_mode", 0) != 0
    return (
        (conv.op_type == "Conv" or (conv.op_type == "ConvTranspose" and not grouped))
        and _is_only_user(conv, norm)
        and not training
        and not any(value.uses() or value.is_graph_output() for value in norm.outputs[1:])
        and all(value is not None and value.is_initializer() for value in norm.inputs[1:5])
        and all(map(_is_constant, conv.inputs[1:]))
    )
