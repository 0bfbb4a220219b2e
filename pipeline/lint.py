"""What TensorRT makes of a Q/DQ model, and what trtq would repair: without building anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtq.pipeline.formats.capability import parse_capability
from trtq.pipeline.graph import lint as rules
from trtq.pipeline.graph.lint.finding import Finding
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.quantized import find_quantized_layers, is_quantized
from trtq.pipeline.graph.repair import RepairedGraph, repair
from trtq.pipeline.graph.repair.change import Change

_FOLLOWS = "gone with the rest"
Repair = Literal["exact", "rounds", "requantize", "none"]


@dataclass(frozen=True, slots=True)
class LintItem:
    """A finding with its repair.

    Attributes:
        finding: What is wrong with the file as it is.
        repair: "exact": `trtq build` repairs it and changes no value; "rounds": it repairs it, and rounds
            or cuts off otherwise than the file; "requantize": only with `--requantize`; "none": not at all.
        what: What the node has after the repair; empty if there is none.
        detail: The numbers of that, of this node alone.
    """

    finding: Finding
    repair: Repair
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LintReport:
    """What was found in a model.

    Attributes:
        is_quantized: Whether it holds Q/DQ at all.
        layers_quantized: The layers that are asked to run on codes, by what they are asked: see
            `EngineReport.layers_realized`.
        layers_realized: Those of them that TensorRT runs so as the file is; none if it refuses it.
        items: The findings, in graph order.
    """

    model: str
    is_quantized: bool
    layers_quantized: Mapping[str, int]
    layers_realized: Mapping[str, int]
    items: tuple[LintItem, ...]

    @property
    def stopping(self) -> tuple[LintItem, ...]:
        """What `trtq build` refuses, because it would fail or compute something else."""
        stops = [item for item in self.items if item.finding.is_stopping]
        return tuple(item for item in stops if item.repair in ("requantize", "none"))


def lint(model: Path | str, *, compute_capabilities: Sequence[str] = ()) -> LintReport:
    """Returns what TensorRT refuses in a Q/DQ model or silently runs in float, each with its repair.

    Args:
        model: The ONNX file.
        compute_capabilities: Of the GPUs to build for, such as "8.9"; empty: those that have every format.

    Raises:
        ModelError: The file is missing or no valid ONNX model.
        UsageError: There is no such compute capability.
    """
    path = Path(model)
    compute_capabilities = [*map(parse_capability, compute_capabilities)]
    as_it_is = load_as_it_is(path)
    findings = rules.lint(as_it_is, compute_capabilities)
    layers = find_quantized_layers(as_it_is)
    in_float = {finding.node for finding in findings if finding.effect == "float"}
    refused = any(finding.effect == "refused" for finding in findings)
    asked = Counter(layer.asked for layer in layers)
    lost = asked if refused else Counter(layer.asked for layer in layers if layer.name in in_float)
    items: list[LintItem] = []
    if findings:
        loaded = load(path, min_opset=1).model
        graphs = (repair(loaded), repair(loaded, requantize=True))
        items = _with_repairs(findings, *graphs, compute_capabilities)
    return LintReport(str(path), is_quantized(as_it_is), dict(asked), dict(asked - lost), tuple(items))


def _with_repairs(
    findings: tuple[Finding, ...], plain: RepairedGraph, requantized: RepairedGraph, targets: Sequence[str]
) -> list[LintItem]:
    graphs = (plain, requantized)
    left, left_at_last = ({_key(item) for item in rules.lint(graph.model, targets)} for graph in graphs)
    items = []
    for finding in findings:
        if _key(finding) in left_at_last and _key(finding) in left:
            items.append(LintItem(finding, "none", ""))
            continue
        is_plain = _key(finding) not in left
        change = _find_change(finding, plain if is_plain else requantized)
        exact: Repair = "exact" if change is None or change.is_exact else "rounds"
        told = (_FOLLOWS,) if change is None else (change.what, change.detail)
        items.append(LintItem(finding, exact if is_plain else "requantize", *told))
    return items


def _key(finding: Finding) -> tuple[str, str]:
    return finding.rule, finding.node


def _find_change(finding: Finding, repaired: RepairedGraph) -> Change | None:
    own = [change for change in repaired.changes if change.node == finding.node]
    return next((change for change in own if change.rule == finding.rule), next(iter(own), None))
