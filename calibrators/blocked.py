"""The graph as ONNX Runtime runs it, which shows tensors in the order in which they are computed.

An output is given as the model has it. ONNX Runtime computes convolutions with blocks of channels side by
side, so it copies every output into another order, and fuses less in front of outputs. To count values,
neither is needed. So it rewrites the graph without these outputs, and the result is read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtq.calibrators.survey import map_values_made
from trtq.errors import ModelError
from trtq.models.session import Session, SessionOptions, count_weight_bytes, open_session
from trtq.temporary import open_temporary_folder

_MARK, _MARKED = "Unique", "trtq_marked_"
"""The operator that reads a marked tensor: ONNX Runtime moves nothing past it. It is never run."""
_IN_BLOCKS = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "HardSigmoid", "HardSwish",
    "LeakyRelu", "MaxPool", "Mul", "Relu", "Sigmoid", "Sum", "Tanh",
)  # fmt: skip
"""What may compute in blocks, behind a convolution."""
_BLOCK = 16
"""The most channels that lie side by side; of a multiple of it no block is filled up with zeros."""
_ENOUGH_BYTES = 1 << 30
"""Of such tensors in all the data from which it pays to read the graph back, which takes 0.04 to 0.1 s."""
_MOST_WEIGHT_BYTES = 64 << 20


def is_worth(model: ir.Model, sizes: Mapping[str, int], num_runs: float, device: str) -> bool:
    """Returns whether a pass gains by a graph that is read back.

    Args:
        model: The float graph.
        sizes: Bytes of the observed tensors in one run, by name.
        num_runs: How many of these runs the data takes.
        device: Where the model runs.
    """
    if device != "cpu" or count_weight_bytes(model) > _MOST_WEIGHT_BYTES:
        return False
    made = map_values_made(model)
    makers = {name: made[name].producer() for name in sizes if name in made}
    in_blocks = [name for name, node in makers.items() if node is not None and node.op_type in _IN_BLOCKS]
    has_conv = any(node.op_type == "Conv" for node in model.graph)
    return has_conv and sum(sizes[name] for name in in_blocks) * num_runs >= _ENOUGH_BYTES


def open_blocked(
    model: ir.Model, others: Sequence[str], tensors: Sequence[str], engine: SessionOptions
) -> tuple[Session, Mapping[str, str]]:
    """Returns a session that shows some tensors, and the outputs that do, by tensor.

    The values are those of a run that fuses as much; their order may be another, but for the first axis.

    Args:
        model: It is not changed.
        others: Further tensors that nodes make, which are shown as they are, by their own names.
        tensors: Of FP32, made by nodes.
        engine: How it is run.

    Raises:
        ModelError: ONNX Runtime cannot load the graph, or has folded a tensor away.
    """
    with open_temporary_folder() as folder:
        path = folder / "optimized.onnx"
        open_session(_mark(model, others, tensors), optimize=True, engine=replace(engine, optimized=path))
        read = ir.load(path)
    outputs = dict(_show(read, tensors))
    RemoveUnusedNodesPass()(read)
    return open_session(read, optimize=False, engine=engine), outputs


def _mark(model: ir.Model, others: Sequence[str], tensors: Sequence[str]) -> ir.Model:
    """Returns the model with the other outputs alone, and with a reader of each tensor."""
    marked = model.clone()
    made = map_values_made(marked)
    marked.graph.outputs[:] = [made[name] for name in others]
    for name in tensors:
        node = ir.node(_MARK, [made[name]], name=f"{_MARKED}{name}")
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
        marked.graph.append(node)
        marked.graph.outputs.append(node.outputs[0])
    RemoveUnusedNodesPass()(marked)
    return marked


def _show(read: ir.Model, tensors: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Puts the marked tensors in the place of what reads them; yields each with the name of its output."""
    marks = {str(value.name): value for value in read.graph.outputs}
    read.graph.outputs[:] = [value for name, value in marks.items() if not name.startswith(_MARKED)]
    for name in tensors:
        mark = marks[f"{_MARKED}{name}"].producer()
        value = None if mark is None or mark.op_type != _MARK else mark.inputs[0]
        if value is None or value.producer() is None:
            raise ModelError(f"ONNX Runtime has folded tensor {name!r}")
        shown = _find_computed(value)
        shown.type = ir.TensorType(ir.DataType.FLOAT)
        if shown not in read.graph.outputs:
            read.graph.outputs.append(shown)
        yield name, str(shown.name)


def _find_computed(value: ir.Value) -> ir.Value:
    """Returns what a marked tensor is copied from, if that has the same values and nobody else reads it."""
    node = value.producer()
    if node is None or node.op_type != "ReorderOutput" or value.is_graph_output():
        return value
    is_full = (node.attributes.get_int("channels", 0) or 0) % _BLOCK == 0
    others = [reader for reader, _ in value.uses() if reader.op_type != _MARK]
    source = node.inputs[0]
    return source if is_full and not others and source is not None else value
