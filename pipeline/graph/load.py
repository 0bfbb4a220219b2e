"""From an ONNX file to a checked, shape-inferred graph, ready to be quantized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common as passes

from trtq.errors import ModelError
from trtq.files import refuse_damage
from trtq.kept import KeptNode
from trtq.models.session import count_weight_bytes
from trtq.models.signature import TensorSpec, outputs_of, read_inputs
from trtq.numbers import format_count
from trtq.pipeline.graph.biased import join_biases
from trtq.pipeline.graph.branches import inline_branches
from trtq.pipeline.graph.decoder_attention import unfold_attention
from trtq.pipeline.graph.edit import widen
from trtq.pipeline.graph.einsum import turn_einsum_into_matmul
from trtq.pipeline.graph.fold import (
    drop_identities,
    fold_batch_norm,
    fold_bias,
    fold_constants,
    fold_factor,
    fold_number,
)
from trtq.pipeline.graph.foreign_operators import find_least_opset, refuse_foreign_operators, standardize
from trtq.pipeline.graph.fp4 import emulate_fp4
from trtq.pipeline.graph.gemm_factors import fold_factors
from trtq.pipeline.graph.hard import part_hard_activations
from trtq.pipeline.graph.norms import standardize_norms
from trtq.pipeline.graph.onnx_file import (
    check,
    digest,
    list_data_files,
    read_model,
    read_proto,
)
from trtq.pipeline.graph.opset import FIRST_RUN, convert_opset, infer_shapes, read_opset
from trtq.pipeline.graph.placement import holds_weights
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.tied import tie_weights
from trtq.workers import start_in_background

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MAX_IR_VERSION = 11
_MAX_OPSET = 25
"""ONNX Runtime has no kernels for Q/DQ of opset 28, and TensorRT's parser ends before it."""
_GROUP_NORM_OPSET = 21
"""Before it ONNX calls GroupNormalization deprecated, and refuses what is written with it."""
_MOST_IN_MEMORY = 1 << 28
"""Bytes of weights in other files that are read at once; of larger models one weight is read at a time."""
_SMALL = 1 << 16
_FOLDS = (turn_einsum_into_matmul, fold_factors, fold_bias, fold_batch_norm, fold_bias)
_BFLOAT16, _FLOAT64 = ir.DataType.BFLOAT16, ir.DataType.DOUBLE
_ANONYMOUS = frozenset({"?", "*", "-1", "None", "none", "unk", "dynamic"})


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked, shape-inferred ONNX model.

    Attributes:
        model: The model. Stages that rewrite it work on a clone, which shares the weights.
        path: The file it came from.
        digest: Returns the SHA-256 of that file and of its external data.
        notes: What `load` changed, one sentence each.
        unseen: The nodes with weights inside If, Loop and Scan bodies: they stay as they are.
        is_rewritten: Whether nodes were rewritten to compute the same, of which the file is the witness.
        is_inexact: Whether a repair has changed what the file computes, so that it is no witness.
    """

    model: ir.Model
    path: Path
    digest: Callable[[], str]
    notes: tuple[str, ...] = ()
    unseen: tuple[KeptNode, ...] = ()
    is_rewritten: bool = False
    is_inexact: bool = False

    @property
    def sha256(self) -> str:
        """The digest; a large model is read for it when it is asked for.

        Raises:
            ModelError: A file has changed since.
        """
        return self.digest()

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


def load(path: Path, *, min_opset: int, unfolds: bool = True) -> Graph:
    """Returns the graph of an ONNX file: checked, constants folded, opset raised, shapes inferred.

    A model that is quantized already keeps its opset.

    Args:
        path: The file; external data lies beside it.
        min_opset: The opset is raised to this if it is lower (per-channel Q/DQ needs 13, FP16 scales 19).
        unfolds: Whether attention that keeps a cache becomes plain nodes, as TensorRT needs.

    Raises:
        ModelError: The file is missing, empty, no ONNX, incomplete or invalid, or has inputs or outputs that
            no engine can have.
    """
    before = _mark(path)
    proto = read_proto(path)
    paths = [path.parent / name for name in list_data_files(proto, path)]
    find_digest = _plan_digest(path, before, paths)
    model = check(proto, path)
    notes = list(_normalize(model))
    del proto
    refuse_foreign_operators(model)
    notes += _part_anonymous_dims(model)
    changed = [*standardize_norms(model), *(unfold_attention(model) if unfolds else ())]
    model, raised = _with_opset(model, min_opset)
    model = standardize(model)
    changed += raised
    changed += _compute_in_float32(model)
    changed += [] if is_quantized(model) else tie_weights(model)
    changed += _fold(model)
    notes += changed
    unseen = tuple(_nodes_in_bodies(model))
    if unseen:
        names = ", ".join(node.name for node in unseen[:4]) + (" ..." if len(unseen) > 4 else "")
        nodes = format_count(len(unseen), "node")
        notes.append(f"inside If/Loop bodies lie {nodes} with weights, not quantized: {names}")
    graph = Graph(model, path, find_digest, tuple(notes), unseen, is_rewritten=bool(changed))
    _ = graph.inputs, graph.outputs  # refuses strings and sequences
    return graph


def _plan_digest(path: Path, before: object, data: Sequence[Path]) -> Callable[[], str]:
    """Returns what finds the digest of a model, begun at once in the background unless its data is large.

    Hashing lets go of the GIL, but takes a second of a core for each GB, and not all that loads a model asks.

    Args:
        path: The model.
        before: Its mark before it was read.
        data: The files with its external data.
    """
    files = [file.absolute() for file in (path, *data)]  # a user's script may change the folder
    marks = [before, *map(_mark, data)]

    @cache
    def find() -> str:
        found = digest(files)
        if changed := [file for file, mark in zip(files, marks, strict=True) if _mark(file) != mark]:
            raise ModelError(f"{changed[0]} has changed since the model was loaded; begin again")
        return found

    is_large = sum(file.stat().st_size for file in data) > _MOST_IN_MEMORY
    return find if is_large else start_in_background(find)


def _mark(file: Path) -> tuple[int, int] | None:
    """Returns the size of a file, and the time of its last change in ns; None if there is none."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def raise_opset(graph: Graph, opset: int) -> Graph:
    """Returns a graph in this opset if it has a lower one, as one has that came quantized.

    Raises:
        ModelError: A node has no exact form there.
    """
    if graph.opset >= opset:
        return graph
    return replace(graph, model=convert_opset(graph.model, opset), is_rewritten=True)


def part_for_codes(graph: Graph) -> Graph:
    """Returns a graph that computes the same in operators that ONNX Runtime has for codes too.

    Constants behind layers go into these; HardSigmoid and HardSwish become sums and products.
    """
    if is_quantized(graph.model):
        return graph
    model = graph.model.clone()
    changes = (join_biases, fold_factor, fold_bias, fold_number, part_hard_activations)
    notes = [note for change in changes for note in change(model)]
    if not notes:
        return graph
    passes.RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return replace(graph, model=model, notes=(*graph.notes, *notes), is_rewritten=True)


def _compute_in_float32(model: ir.Model) -> Iterator[str]:
    """Makes a float model in bfloat16 or float64 one in float32, which engines run and can quantize.

    ONNX Runtime does not run bfloat16, nor do .npz files hold it; TensorRT has no float64.
    """
    if is_quantized(model):
        return
    values = (*model.graph.inputs, *model.graph.initializers.values())
    found = {_BFLOAT16} if any(value.dtype is _BFLOAT16 for value in values) else set[ir.DataType]()
    if any(_has_double_weight(node) for node in model.graph.all_nodes()):
        found.add(_FLOAT64)
    for dtype in sorted(found):
        widen(model, (dtype,))
        infer_shapes(model)
        name = "bfloat16" if dtype is _BFLOAT16 else "float64"
        yield f"computes in float32 what the file has in {name}; inputs and outputs are float32 too"


def _has_double_weight(node: ir.Node) -> bool:
    """Whether a layer computes in float64; a model that has it for a few numbers alone stays as it is."""
    return holds_weights(node) and any(value is not None and value.dtype is _FLOAT64 for value in node.inputs)


def _with_opset(model: ir.Model, min_opset: int) -> tuple[ir.Model, list[str]]:
    """Returns the model in an opset that runtimes and quantization take, with shapes, and what is told of it.

    A newer opset stays where a node cannot be lowered: some operators are new.
    """
    opset = read_opset(model)
    if any(node.op_type == "GroupNormalization" and not node.domain for node in model.graph.all_nodes()):
        min_opset = max(min_opset, _GROUP_NORM_OPSET)
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
    """Folds what can be folded, and brings names and shapes in order after it; says what was folded.

    Nothing is folded in an opset that ONNX Runtime does not run.
    """
    notes = _fold_nodes(model) if read_opset(model) >= FIRST_RUN else []
    passes.NameFixPass(_Names())(model)
    passes.RemoveUnusedNodesPass()(model)  # after the names: it takes those of unused optional outputs away
    if notes:
        infer_shapes(model)
    return notes


def _fold_nodes(model: ir.Model) -> list[str]:
    notes = list(fold_constants(model))
    while inlined := list(inline_branches(model)):
        drop_identities(model)
        passes.NameFixPass(_Names())(model)
        infer_shapes(model)
        notes += [*inlined, *fold_constants(model)]
    return notes + [note for fold in _FOLDS for note in fold(model)]


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


def read_runnable(path: Path) -> tuple[ir.Model, bool]:
    """Returns the model of a file as ONNX Runtime takes it, and whether that is another than the file's.

    Nodes that share a name get names of their own, Q and DQ of TensorRT's own are the standard ones, and
    NVFP4 is emulated (`emulate_fp4`).

    Raises:
        ModelError: As `read_model`; or the opset cannot be raised to one that has them, or NVFP4 that is no
            such.
    """
    model = read_model(path)
    names = [node.name for node in model.graph.all_nodes() if node.name]
    is_changed = len(set(names)) < len(names)
    if is_changed:
        passes.NameFixPass(_Names())(model)
    if find_least_opset(model) > 1:
        model, is_changed = standardize(model), True
    if (plain := emulate_fp4(model)) is not None:
        return plain, True
    return model, is_changed


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
        for function in model.functions.values():  # ONNX's checker saw that the versions are compatible
            function.opset_imports.update(model.opset_imports)
        with refuse_damage(ModelError, "the model's own functions cannot be inlined"):
            passes.InlinePass()(model)
        yield "inlined the model's own functions"
    if passes.RemoveInitializersFromInputsPass()(model).modified:
        yield "removed weights from the graph inputs"
    num_nodes = len(model.graph)
    with refuse_damage(ModelError, "the constants of the model cannot be read"):
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
