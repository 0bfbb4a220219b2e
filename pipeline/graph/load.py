"""From an ONNX file to a checked, shape-inferred graph, ready to be quantized."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes import common as passes

from trtq.errors import ModelError
from trtq.kept import KeptNode
from trtq.models.modules import name_after_modules
from trtq.models.session import count_weight_bytes
from trtq.models.signature import TensorSpec, outputs_of, read_inputs
from trtq.numbers import format_count
from trtq.pipeline.graph.branches import inline_branches
from trtq.pipeline.graph.edit import widen
from trtq.pipeline.graph.einsum import turn_einsum_into_matmul
from trtq.pipeline.graph.fold import drop_identities, fold_batch_norm, fold_bias, fold_constants
from trtq.pipeline.graph.foreign_operators import find_least_opset, refuse_foreign_operators, standardize
from trtq.pipeline.graph.opset import convert_opset, infer_shapes, read_opset
from trtq.pipeline.graph.placement import holds_weights
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.tidy import (
    check_tensor,
    copy_for_checker,
    has_shapeless_outputs,
    list_tensors,
    tidy,
)
from trtq.workers import start_in_background

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MAX_IR_VERSION = 11
_MAX_OPSET = 25
"""ONNX Runtime has no kernels for Q/DQ of opset 28, and TensorRT's parser ends before it."""
_MOST_IN_MEMORY = 1 << 28
"""Bytes of weights in other files that are read at once; of larger models one weight is read at a time."""
_SMALL = 1 << 16
_FOLDS = (turn_einsum_into_matmul, fold_bias, fold_batch_norm, fold_bias)
_ANONYMOUS = frozenset({"?", "*", "-1", "None", "none", "unk", "dynamic"})


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked, shape-inferred ONNX model.

    Attributes:
        model: The model. Stages that rewrite it work on a clone, which shares the weights.
        path: The file it came from.
        sha256: Digest of that file and of its external data.
        notes: What `load` changed, one sentence each.
        unseen: The nodes with weights inside If, Loop and Scan bodies: they stay as they are.
    """

    model: ir.Model
    path: Path
    sha256: str
    notes: tuple[str, ...] = ()
    unseen: tuple[KeptNode, ...] = ()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that a caller must feed."""
        return read_inputs(self.model)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs."""
        return outputs_of(self.model)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return read_opset(self.model)


def load(path: Path, *, min_opset: int) -> Graph:
    """Returns the graph of an ONNX file: checked, constants folded, opset raised, shapes inferred.

    A model that is quantized already keeps its opset.

    Args:
        path: The file; external data lies beside it.
        min_opset: The opset is raised to this if it is lower (per-channel Q/DQ needs 13, FP16 scales 19).

    Raises:
        ModelError: The file is missing, empty, no ONNX, incomplete or invalid, or has inputs or outputs that
            no engine can have.
    """
    content = _content(path)
    proto = _parsed(content, path)
    files = [
        path.parent / name for name in sorted({str(where.get("location")) for _, where in _externals(proto)})
    ]
    sha256 = start_in_background(partial(_digest, content, files))  # which lets go of the GIL
    model = _checked(proto, content, path)
    notes = list(_normalize(model))
    del content, proto
    refuse_foreign_operators(model)
    notes += _part_anonymous_dims(model)
    model, changed = _with_opset(model, min_opset)
    model = standardize(model)
    changed += _widen_bf16(model)
    notes += [*changed, *_fold(model)]
    unseen = tuple(_nodes_in_bodies(model))
    if unseen:
        names = ", ".join(node.name for node in unseen[:4]) + (" ..." if len(unseen) > 4 else "")
        nodes = format_count(len(unseen), "node")
        notes.append(f"inside If/Loop bodies lie {nodes} with weights, not quantized: {names}")
    graph = Graph(model, path, sha256(), tuple(notes), unseen)
    _ = graph.inputs, graph.outputs  # refuses strings and sequences
    return graph


def _widen_bf16(model: ir.Model) -> Iterator[str]:
    """Makes a float model in bfloat16 one in float32, which ONNX Runtime runs and .npz files hold."""
    values = (*model.graph.inputs, *model.graph.initializers.values())
    if not is_quantized(model) and any(value.dtype is ir.DataType.BFLOAT16 for value in values):
        widen(model, (ir.DataType.BFLOAT16,))
        infer_shapes(model)
        yield "computes in float32 what the file has in bfloat16; inputs and outputs are float32 too"


def _with_opset(model: ir.Model, min_opset: int) -> tuple[ir.Model, list[str]]:
    """Returns the model in an opset that runtimes and quantization take, with shapes, and what is told of it.

    A newer opset stays where ONNX's converter cannot lower it: some operators are new.
    """
    opset = read_opset(model)
    if opset < min_opset and not is_quantized(model):
        return convert_opset(model, min_opset), [f"raised the opset from {opset} to {min_opset}"]
    if opset > _MAX_OPSET:
        try:
            return convert_opset(model, _MAX_OPSET), [f"lowered the opset from {opset} to {_MAX_OPSET}"]
        except ModelError as error:
            infer_shapes(model)
            return model, [f"the opset stays {opset}: {error}"]
    infer_shapes(model)
    return model, []


def _fold(model: ir.Model) -> list[str]:
    """Folds what can be folded, and brings names and shapes in order after it; says what was folded."""
    notes = list(fold_constants(model))
    while inlined := list(inline_branches(model)):
        drop_identities(model)
        passes.NameFixPass(_Names())(model)
        infer_shapes(model)
        notes += [*inlined, *fold_constants(model)]
    notes += [note for fold in _FOLDS for note in fold(model)]
    passes.NameFixPass(_Names())(model)
    passes.RemoveUnusedNodesPass()(model)  # after the names: it takes those of unused optional outputs away
    if notes:
        infer_shapes(model)
    return notes


def load_as_it_is(path: Path) -> ir.Model:
    """Returns the model of an ONNX file, checked and with inferred shapes, and else as TensorRT reads it.

    Raises:
        ModelError: The file is missing, empty, no ONNX, incomplete or invalid.
    """
    model = read_model(path)
    list(_lift_constants(model))
    ir.external_data.load_to_model(model)
    passes.NameFixPass(_Names())(model)
    infer_shapes(model)
    return standardize(model)


def read_model(path: Path) -> ir.Model:
    """Returns the model of an ONNX file, checked and else as it is; weights in other files stay there.

    Raises:
        ModelError: The file is missing, empty, no ONNX, incomplete or invalid.
    """
    content = _content(path)
    return _checked(_parsed(content, path), content, path)


def read_runnable(path: Path) -> tuple[ir.Model, bool]:
    """Returns the model of a file as ONNX Runtime takes it, and whether that is another than the file's.

    Nodes that share a name get names of their own, and Q and DQ of TensorRT's own are the standard ones.

    Raises:
        ModelError: As `read_model`; or the opset cannot be raised to one that has them.
    """
    model = read_model(path)
    names = [node.name for node in model.graph.all_nodes() if node.name]
    is_changed = len(set(names)) < len(names)
    if is_changed:
        passes.NameFixPass(_Names())(model)
    if find_least_opset(model) > 1:
        model, is_changed = standardize(model), True
    return model, is_changed


def read_proto(path: Path) -> onnx.ModelProto:
    """Returns the protobuf of an ONNX file, without its external data.

    Raises:
        ModelError: There is no such file, or it is no ONNX model with a graph.
    """
    return _parsed(_content(path), path)


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError(f"{path} is a folder; name the .onnx file in it")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror}") from error
    if not content:
        raise ModelError(f"{path} is empty; export the model again")
    return content


def _parsed(content: bytes, path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short: {error}") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no outputs, so there is nothing to build")
    return proto


def _digest(content: bytes, files: Sequence[Path]) -> str:
    """Returns the SHA-256 of a model's file and of those of its external data, as hex."""
    sha = hashlib.sha256(content)
    for path in files:
        with path.open("rb") as stream:
            while block := stream.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()


def _checked(proto: onnx.ModelProto, content: bytes, path: Path) -> ir.Model:
    """Returns the model of a file, after the checks of ONNX."""
    external = _externals(proto)
    for tensor in list_tensors(proto):
        check_tensor(tensor, path)
    for tensor, where in external:
        _check_external(tensor, where, path)
    try:
        if tidy(proto, path) or has_shapeless_outputs(proto):
            onnx.checker.check_model(copy_for_checker(proto))
        else:
            onnx.checker.check_model(str(path) if external else content)
        model = ir.from_proto(proto)
    except (onnx.checker.ValidationError, ir.serde.SerdeError, RuntimeError, ValueError, TypeError) as error:
        cause = error.__cause__ or error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise ModelError(f"{path} is not a valid ONNX model: {' '.join(lines)[:400]}") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    name_after_modules(model.graph)
    return model


def _check_external(tensor: onnx.TensorProto, where: Mapping[str, str], path: Path) -> None:
    location = where.get("location", "")
    data = path.parent / location
    if not data.is_file():
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r}, which is not beside the model; "
            f"copy that file to {path.parent}"
        )
    whole = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
    offset, length = where.get("offset", "0"), where.get("length", str(whole))
    if not (offset.isdecimal() and length.isdecimal()):
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r} at byte {offset!r} with length "
            f"{length!r}, which are no numbers; export the model again"
        )
    end = int(offset) + int(length)
    if data.stat().st_size < end:
        raise ModelError(
            f"{path}: external data {location!r} has {data.stat().st_size} bytes, "
            f"the weights of {tensor.name!r} end at byte {end}; copy the whole file"
        )


def _externals(proto: onnx.ModelProto) -> list[tuple[onnx.TensorProto, dict[str, str]]]:
    """Returns the tensors that lie in other files, and what is said of where."""
    tensors = (item for item in list_tensors(proto) if item.data_location == onnx.TensorProto.EXTERNAL)
    return [(tensor, {entry.key: entry.value for entry in tensor.external_data}) for tensor in tensors]


def _normalize(model: ir.Model) -> Iterator[str]:
    """Brings the ways in which exporters write the same thing to one way."""
    model.ir_version = min(max(model.ir_version, 9), _MAX_IR_VERSION)  # below 4 weights must be graph inputs
    yield from _lift_constants(model)
    _load_weights(model)
    passes.NameFixPass(_Names())(model)
    drop_identities(model)


def _lift_constants(model: ir.Model) -> Iterator[str]:
    """Leaves nothing but nodes and initializers: no functions, no Constant nodes, no weights as inputs."""
    if model.functions:
        passes.InlinePass()(model)
        yield "inlined the model's own functions"
    if passes.RemoveInitializersFromInputsPass()(model).modified:
        yield "removed weights from the graph inputs"
    num_nodes = len(model.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    if num_constants := num_nodes - len(model.graph):
        yield f"turned {format_count(num_constants, 'Constant node')} into initializers"


def _load_weights(model: ir.Model) -> None:
    """Brings the weights of other files into memory: all of them, or the small ones of a large model."""
    limit = _MOST_IN_MEMORY if count_weight_bytes(model) <= _MOST_IN_MEMORY else _SMALL
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= limit:
            value.const_value = ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)
            tensor.release()
        elif isinstance(tensor, ir.TensorProtoTensor) and tensor.dtype is not ir.DataType.STRING:
            # Out of protobuf, which copies a weight each time that it is looked at.
            value.const_value = ir.Tensor(tensor.numpy(), name=tensor.name, dtype=tensor.dtype)
    for body in list(model.graph.subgraphs()):
        ir.external_data.load_to_model(ir.Model(body, ir_version=model.ir_version))


class _Names:
    """Names for what the exporter left unnamed: a node is called by its type, so that people can find it."""

    def generate_node_name(self, node: ir.Node) -> str:
        return node.name or node.op_type

    def generate_value_name(self, value: ir.Value) -> str:
        return value.name or "v"


def _part_anonymous_dims(model: ir.Model) -> Iterator[str]:
    """Gives every anonymous dim a name of its own: TensorRT takes equal names for equal sizes.

    A name is anonymous if it is a mark such as `?`, or if one input has it twice (Paddle names all so).
    """
    for value in model.graph.inputs:
        if value.shape is None:
            continue
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        shared = {dim for dim in dims if isinstance(dim, str) and dims.count(dim) > 1}
        renamed = [
            f"{value.name}_dim{axis}" if dim in shared or _is_anonymous(dim) else dim
            for axis, dim in enumerate(dims)
        ]
        if renamed != dims:
            yield f"input {value.name!r}: parted dims that shared a name or had none"
            value.shape = ir.Shape(renamed)


def _is_anonymous(dim: int | str | None) -> bool:
    return dim < 0 if isinstance(dim, int) else not dim or dim in _ANONYMOUS


def _nodes_in_bodies(model: ir.Model) -> Iterator[KeptNode]:
    top = set(model.graph)
    for node in model.graph.all_nodes():
        if node not in top and holds_weights(node):
            yield KeptNode(node.name or node.op_type, node.op_type, "it lies inside an If, Loop or Scan body")
