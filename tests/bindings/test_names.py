"""The code uses no name of TensorRT that our typings, which the real bindings are held to, do not have."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TYPINGS = ROOT / "typings" / "tensorrt" / "__init__.pyi"
SOURCES = (
    *sorted((ROOT / "pipeline" / "engine").glob("*.py")),
    ROOT / "pipeline" / "engine" / "plan_run.py",
    ROOT / "calibrators" / "tensorrt.py",
)
RTX = {"ComputeCapability"}
"""Names of TensorRT-RTX alone."""


def _declared(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield f"{prefix}{node.target.id}"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield f"{prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from _declared(node.body, f"{prefix}{node.name}.")
            yield from (f"{prefix}{node.name}.{name}" for name in ("__members__", "__name__"))


def _dotted(node: ast.expr) -> str:
    """Returns the name after `trt.` or `tensorrt.`; empty if it is something else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    is_tensorrt = isinstance(node, ast.Name) and node.id in ("trt", "tensorrt")
    return ".".join(reversed(parts)) if is_tensorrt else ""


def _used(source: str) -> set[str]:
    """Returns the dotted names that are used, annotations included, each as long as it is written."""
    tree = ast.parse(source)
    return {name for node in ast.walk(tree) if isinstance(node, ast.Attribute) and (name := _dotted(node))}


def test_names_are_found_as_they_are_used() -> None:
    source = "def f(a: tensorrt.IBuilderConfig): a.set(trt.BuilderFlag.INT8); other.thing; getattr(trt, 'x')"
    assert _used(source) == {"IBuilderConfig", "BuilderFlag", "BuilderFlag.INT8"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_of_tensorrt_is_in_our_typings(path: Path) -> None:
    declared = {*_declared(ast.parse(TYPINGS.read_text()).body), "__name__"}
    ours = {name for name in _used(path.read_text()) if name.split(".")[0] not in RTX}
    assert ours <= declared


def test_names_are_used_at_all() -> None:
    found = {name for path in SOURCES for name in _used(path.read_text())}
    assert {"BuilderFlag.OBEY_PRECISION_CONSTRAINTS", "Runtime", "ComputeCapability"} <= found
