"""What TensorRT refuses in a Q/DQ model, reads otherwise than ONNX does, or silently runs in float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from trtq.errors import ModelError
from trtq.pipeline.graph.lint import codes, formats, layers, pairs
from trtq.pipeline.graph.lint.finding import Finding

_RULES = (
    codes.check_operator,
    codes.check_codes,
    codes.check_scale,
    codes.check_scale_type,
    codes.check_constant,
    codes.check_bound,
    codes.check_pool,
    pairs.check_pair,
    formats.check_dynamic,
    layers.check_layer,
    layers.check_recurrent,
)
_MOST_NAMED = 4


def lint(model: ir.Model, targets: Sequence[str] = ()) -> tuple[Finding, ...]:
    """Returns every rule that a node of the model breaks, also in the bodies of If, Loop and Scan, in order.

    The rules are those of TensorRT's ONNX parser and of the TensorRT-RTX builder, as measured; a float model
    breaks none of them.

    Args:
        model: With inferred shapes and dtypes.
        targets: The compute capabilities to build for, such as "8.9"; empty: those that have every format.
    """
    return tuple(finding for node in model.graph.all_nodes() for finding in _check(node, targets))


def _check(node: ir.Node, targets: Sequence[str]) -> Iterator[Finding]:
    yield from formats.check_target(node, targets)
    for rule in _RULES:
        yield from rule(node)


def refuse(findings: Sequence[Finding]) -> None:
    """Refuses what TensorRT does not build, and what it would compute wrongly.

    Raises:
        ModelError: There is such a finding; the first are named with their reasons.
    """
    bad = [finding for finding in findings if finding.is_stopping]
    if not bad:
        return
    first = bad[0]
    others = ", ".join(repr(finding.node) for finding in bad[1:_MOST_NAMED])
    more = f"; and {len(bad) - 1} more: {others}{' ...' if len(bad) > _MOST_NAMED else ''}" if bad[1:] else ""
    raise ModelError(
        f"node {first.node!r} ({first.op_type}): {first.reason}; {first.advice}, give trtq the float model, "
        f"or see what `trtq lint` says{more}"
    )
