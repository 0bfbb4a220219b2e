"""The version of ONNX's standard operators: read, raised and lowered by rules of our own; and the shapes.

ONNX's own converter is not used: it changes what Upsample, Resize and Hardmax compute, stops at operators
that it does not know, and loses names. Here a node stays as it is unless the new version of its operator
reads it otherwise. Then a rule rewrites it to compute the same, or it is refused.
"""

from __future__ import annotations

from contextlib import suppress

import onnx_ir as ir

from trtq.errors import ModelError
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset.moved import LOWERED, MOVED
from trtq.pipeline.graph.opset.refit import CannotConvertError, Rule, find_schema, refit
from trtq.pipeline.graph.opset.resampling import RESAMPLING
from trtq.pipeline.graph.opset.shapes import infer_shapes as infer_shapes
from trtq.pipeline.graph.opset.spread import SPREAD

FIRST_RUN = 7
"""ONNX Runtime has few kernels for opsets before this one."""
_RULES: dict[tuple[str, int], Rule] = {**MOVED, **RESAMPLING, **SPREAD}
"""By the operator and the version that reads it otherwise than the one before."""


def read_opset(model: ir.Model) -> int:
    """Returns the version of the standard operators."""
    return model.opset_imports.get("", 1)


def convert_opset(model: ir.Model, version: int) -> ir.Model:
    """Returns the model in another opset, with the same names and shapes as of `infer_shapes`.

    Nodes in bodies are converted too.

    Args:
        model: It is not changed.
        version: 13 or newer.

    Raises:
        ModelError: A node cannot say the same in the other opset. Or the shapes contradict each other.
    """
    result, have = model.clone(), read_opset(model)
    with suppress(ModelError):  # where ONNX cannot, what the file says of the shapes has to do
        infer_shapes(result)
    edit = GraphEditor(result)
    way = 1 if version > have else -1
    for before in range(have, version, way):
        for node in list(result.graph.all_nodes()):
            _step(edit, node, before, before + way, version)
    result.opset_imports[""] = version
    infer_shapes(result)
    return result


def _step(edit: GraphEditor, node: ir.Node, before: int, after: int, version: int) -> None:
    """Brings a node from one opset to the next one, up or down."""
    if node.domain not in ("", "ai.onnx"):
        return
    old, new = find_schema(node.op_type, before), find_schema(node.op_type, after)
    if old is not None and new is not None and old.since_version == new.since_version:
        return
    op_type = node.op_type
    try:
        rule = _RULES.get((op_type, after)) if after > before else LOWERED.get((op_type, before))
        if rule is not None:
            rule(edit, node)
        refit(node, old, find_schema(node.op_type, after))
    except CannotConvertError as error:
        raise ModelError(
            f"node {node.name!r} ({op_type}) cannot be brought from opset {before} to {after}: {error}; "
            f"export the model with opset {version}"
        ) from error
