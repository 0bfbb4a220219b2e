"""A float graph that computes the same with rotated residual streams, in which no channel is large."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.ranges import Ranges
from trtq.models.tensors import map_tensor
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.rewrite.rotation.hadamard import make_matrix, rotate_rows
from trtq.pipeline.rewrite.rotation.streams import Constant, Stream, StreamNorm, find_streams, read_scale


@dataclass(frozen=True, slots=True)
class Rotated:
    """A graph with other weights.

    Attributes:
        model: The graph.
        names: Of the tensors that are rotated, by what each was called before.
    """

    model: ir.Model
    names: Mapping[str, str]

    def rename_ranges(self, ranges: Ranges) -> Ranges:
        """Returns ranges of the float graph for this one: what reached far is taken to reach as far."""
        beyond = {self.names.get(name, name): amax for name, amax in ranges.beyond_fp16.items()}
        return replace(ranges, beyond_fp16=beyond)


def rotate(model: ir.Model) -> Rotated:
    """Returns the graph with its residual streams multiplied by an orthogonal matrix Q (`rotate_rows`).

    An RMS normalization commutes with Q, once its scale is folded into the weights that read it. So what adds
    to the stream, y W + b, takes Q as y (W Q) + b Q, an embedding as the rows of E Q, and what reads it takes
    the inverse as Q^T W: in floats the same (SliceGPT, Ashkboos et al., arXiv 2401.15024; QuaRot, arXiv
    2404.00456). No node is added, but where a table of embeddings is shared with the output layer: the scale
    of the last norm would part them, so that there Q stands in the graph, twice.

    Args:
        model: The float graph; it is not changed.
    """
    result = model.clone()
    edit, names = GraphEditor(result), {}
    for stream in find_streams(result.graph):
        names.update(_rotate(edit, stream))
    if names:
        edit.drop_unused()
    return Rotated(result, names)


def _rotate(edit: GraphEditor, stream: Stream) -> dict[str, str]:
    """Rotates a stream, and returns the names of what is rotated by what each was called before."""
    names: dict[str, str] = {}
    rotated = {*stream.tensors}
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    for writer in stream.writers:
        if writer.node.op_type == "Gather" and not is_folded(writer, stream.writers):
            output = writer.node.outputs[0]
            result = _multiply(edit, output, make_matrix(stream.width), f"{output.name}_rotated")
            edit.replace(output, result)
            names[str(output.name)] = str(result.name)
            rotated.remove(output)
        else:
            _change(edit, writer, None, made)
    for norm in stream.norms:
        rotated.update(norm.tensors)
        if not _fold_norm(edit, norm, stream.width):
            rotated.remove(norm.output)
    for value in rotated:
        name = str(value.name)
        value.name = names[name] = edit.name_value(f"{name}_rotated")
    return names


def _fold_norm(edit: GraphEditor, norm: StreamNorm, width: int) -> bool:
    """Turns back what a norm makes: in the weights that read it, or in the graph if one of them is shared.

    Returns whether the output of the norm has new values.
    """
    scale, old = read_scale(norm, width), None if norm.scale is None else norm.scale.value.const_value
    if norm.scale is not None and old is not None:
        name = f"{norm.scale.value.name}_ones"
        edit.set_constant(norm.scale.node, norm.scale.place, name, map_tensor(old, np.ones_like))
    if all(is_folded(reader, norm.readers) for reader in norm.readers):
        made: dict[tuple[ir.Value, int], ir.Value] = {}
        for reader in norm.readers:
            _change(edit, reader, scale, made)
        return True
    name = str(norm.output.name)
    result = _multiply(edit, norm.output, make_matrix(width).T * scale, f"{name}_turned")
    edit.replace(norm.output, result, rename=f"{name}_rotated")
    return False


def is_folded(constant: Constant, all_of_a_kind: Collection[Constant]) -> bool:
    """Whether the rotation goes into a constant: a table and its turned copy in an output layer stay one."""
    nodes = {item.node for item in all_of_a_kind}
    is_shared = any(node not in nodes for node, _ in constant.value.uses())
    return not is_shared or constant.node.op_type not in ("Gather", "Gemm", "Transpose")


def turn_axis(values: NDArray[Any], axis: int, scale: NDArray[np.float32] | None) -> NDArray[Any]:
    """Returns a constant that is multiplied by a scale, and rotated, along the channels."""
    rows = np.moveaxis(values.astype(np.float32), axis, -1)
    return np.moveaxis(rotate_rows(rows if scale is None else rows * scale), -1, axis)


def _change(
    edit: GraphEditor,
    constant: Constant,
    scale: NDArray[np.float32] | None,
    made: dict[tuple[ir.Value, int], ir.Value],
) -> None:
    """Gives the node a constant that is multiplied by a scale, and rotated, along the channels."""
    value, node, place, axis = constant.value, constant.node, constant.place, constant.axis
    if (value, axis) in made:
        node.replace_input_with(place, made[value, axis])
        return
    assert value.const_value is not None
    turn = partial(turn_axis, axis=axis, scale=scale)
    edit.set_constant(node, place, f"{value.name}_rotated", map_tensor(value.const_value, turn))
    made[value, axis] = constant.value


def _multiply(edit: GraphEditor, value: ir.Value, matrix: NDArray[np.float64], output: str) -> ir.Value:
    assert value.dtype is not None
    weight = edit.add_constant(f"{value.name}_rotation", matrix.astype(value.dtype.numpy()))
    return edit.insert("MatMul", [value, weight], like=value, output=output, name=f"{value.name}_rotation")
