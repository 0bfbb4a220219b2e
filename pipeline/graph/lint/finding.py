"""What a rule says of a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

Effect = Literal["refused", "wrong", "float", "suspect"]
"""refused: TensorRT does not parse or build the model. wrong: it builds, and computes something else than the
file says. float: it builds, and the layer silently runs in float, with its conversions. suspect: it builds,
and computes what the file says, which is hardly what was meant."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule of TensorRT that a node of a Q/DQ model breaks.

    Attributes:
        rule: Its name, such as "zero-point".
        effect: What TensorRT does about it.
        node: The node's name.
        op_type: Its type.
        reason: What is there, what TensorRT wants, and what comes of it.
        advice: What the tool that made the model must do otherwise.
    """

    rule: str
    effect: Effect
    node: str
    op_type: str
    reason: str
    advice: str

    @property
    def is_stopping(self) -> bool:
        """Whether a build would fail, or compute something else than the file."""
        return self.effect in ("refused", "wrong")


def report(rule: str, effect: Effect, node: ir.Node, reason: str, advice: str) -> Finding:
    """Returns what a rule says of a node."""
    return Finding(rule, effect, str(node.name), node.op_type, reason, advice)
