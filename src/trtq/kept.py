"""What does not run in INT8 or FP16, and why, as stages find it out and `report.json` keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptNode:
    """A node with weights that keeps its precision."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeptFp32:
    """A node that stays FP32, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """A layer that comes with Q/DQ in the format `asked`, and does not run in it."""

    node: str
    op_type: str
    runs_as: str
    reason: str
    asked: str = "int8"
