"""From a Q/DQ model that another tool made to one that TensorRT takes and runs as asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.fold import fold_constants
from trtq.pipeline.graph.foreign_operators import standardize_codes
from trtq.pipeline.graph.lint import lint, refuse
from trtq.pipeline.graph.lint.layers import check_layer
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.operands import PER_CHANNEL_OPSET
from trtq.pipeline.graph.opset import convert_opset, infer_shapes, read_opset
from trtq.pipeline.graph.repair.change import Change
from trtq.pipeline.graph.repair.constants import quantize_constants, repair_constants, requantize_constants
from trtq.pipeline.graph.repair.floats import repair_bounds, repair_recurrent, repair_tables
from trtq.pipeline.graph.repair.operators import repair_operators
from trtq.pipeline.graph.repair.pairs import repair_flows, requantize_flows
from trtq.pipeline.graph.repair.scales import repair_scales
from trtq.pipeline.graph.repair.weights import repair_weights
from trtq.progress import Watcher


@dataclass(frozen=True, slots=True)
class RepairedGraph:
    """A repaired model and what was changed in it."""

    model: ir.Model
    changes: tuple[Change, ...]


def repair_graph(
    graph: Graph,
    watcher: Watcher,
    *,
    requantize: bool,
    for_tensorrt: bool = True,
    targets: Sequence[str] = (),
) -> Graph:
    """Returns a graph that comes with Q/DQ, with everything repaired that TensorRT would not take.

    Args:
        graph: The loaded model.
        watcher: Hears of the repairs.
        requantize: As for `repair`.
        for_tensorrt: Whether what has no repair is refused, since TensorRT is to take it.
        targets: The compute capabilities to build for; see `trtq.pipeline.graph.lint.lint`.

    Raises:
        ModelError: Something has no repair.
    """
    repaired = repair(graph.model, requantize=requantize)
    for sentence, is_exact in summarize_changes(repaired.changes):
        (watcher.note if is_exact else watcher.warn)(sentence)
    found = lint(repaired.model, targets)
    if for_tensorrt:
        refuse(found)
    if suspect := [finding for finding in found if finding.effect == "suspect"]:
        first, others = suspect[0], len(suspect) - 1
        more = f"; and {others} more" if others else ""
        watcher.warn(f"node {first.node!r} ({first.op_type}): {first.reason}; {first.advice}{more}")
    return replace(
        graph,
        model=repaired.model,
        is_rewritten=graph.is_rewritten or bool(repaired.changes),
        is_inexact=not all(change.is_exact for change in repaired.changes),
    )


def repair(model: ir.Model, *, requantize: bool = False) -> RepairedGraph:
    """Returns the model with everything repaired that has a repair.

    What is exact is done first. A weight on the wrong axis is rounded anew along the right one, since its
    layer would run in float otherwise; other rounding is done only if it is asked for.

    Args:
        model: With inferred shapes and dtypes; it is not changed.
        requantize: Whether zero points, unsigned codes, 16-bit codes and scales by channel that have no exact
            repair are made symmetric int8 over the same range.
    """
    repaired = _repair(model, requantize, shapes=True)
    if _mixes_types(repaired.model) and not _mixes_types(model):
        return _repair(model, requantize, shapes=False)  # a scale's shape kept such a layer in float
    return repaired


def _repair(model: ir.Model, requantize: bool, *, shapes: bool) -> RepairedGraph:
    result = model.clone()
    standardize_codes(result)
    if read_opset(result) < PER_CHANNEL_OPSET and any(
        node.op_type.startswith("QLinear") for node in result.graph
    ):
        result = convert_opset(result, PER_CHANNEL_OPSET)
    edit = GraphEditor(result)
    changes = list(repair_operators(edit))
    edit.drop_unused()
    infer_shapes(result)
    for repair_some in (repair_bounds, repair_tables, quantize_constants, repair_constants):
        changes += repair_some(edit)
    changes += repair_flows(edit, shapes=shapes)
    if requantize:
        changes += requantize_constants(edit)
        changes += requantize_flows(edit)
    infer_shapes(result)
    changes += repair_weights(edit)
    changes += repair_scales(edit)
    changes += repair_recurrent(edit)
    list(fold_constants(result))
    edit.drop_unused()
    infer_shapes(result)
    return RepairedGraph(result, tuple(changes))


def _mixes_types(model: ir.Model) -> bool:
    return any(finding.rule == "mixed-types" for node in model.graph for finding in check_layer(node))


def summarize_changes(changes: tuple[Change, ...]) -> Iterator[tuple[str, bool]]:
    """Yields a sentence for each kind of change, and whether it is exact."""
    groups: dict[tuple[str, str, bool], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.rule, change.what, change.is_exact), []).append(change)
    for (rule, what, is_exact), group in groups.items():
        first, details = group[0], {change.detail for change in group}
        is_one, name = len(group) == 1, repr(first.node)
        nodes = f"node {name} now has" if is_one else f"{len(group)} nodes such as {name} now have"
        how = "repaired" if is_exact else "quantized again"
        yield f"{how} ({rule}): {nodes} {what}{first.detail if len(details) == 1 else ''}", is_exact
