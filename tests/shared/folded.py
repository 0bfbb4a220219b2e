"""Folds of a graph as the tests of them make and check them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir


def folded(model: ir.Model, *folds: Callable[[ir.Model], Any]) -> tuple[ir.Model, list[str]]:
    """Returns a rewritten copy, which passes the checker, and the notes."""
    after = model.clone()
    notes = [note for fold in folds for note in fold(after)]
    onnx.checker.check_model(ir.to_proto(after), full_check=True)
    return after, notes


def op_types(model: ir.Model) -> list[str]:
    """Returns the types of the nodes, in their order."""
    return [node.op_type for node in model.graph]
