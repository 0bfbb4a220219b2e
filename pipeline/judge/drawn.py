"""Outputs that differ from run to run, since a node draws random numbers: comparing them means nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.graph.edit import list_bodies
from trtq.pipeline.graph.fold import RANDOM
from trtq.pipeline.graph.operands import find_constant


def find_drawn(model: ir.Model) -> dict[str, str]:
    """Returns the outputs that differ from run to run, each with the first node that draws random numbers."""
    drawn: dict[ir.Value | None, str] = {}
    for node in model.graph:
        inner = [item for body in list_bodies(node) for item in body.all_nodes()]
        own = next((item for item in (node, *inner) if _draws(item)), None)
        read = (drawn[value] for item in (node, *inner) for value in item.inputs if value in drawn)
        told = f"node {own.name!r} ({own.op_type})" if own is not None else next(read, None)
        if told is not None:
            drawn.update(dict.fromkeys(node.outputs, told))
    return {str(value.name): drawn[value] for value in model.graph.outputs if value in drawn}


def _draws(node: ir.Node) -> bool:
    """Whether a node draws random numbers: by its kind, or as a Dropout that trains."""
    if node.domain:
        return False
    trains = find_constant(node, 2) if node.op_type == "Dropout" else None
    return node.op_type in RANDOM or (trains is not None and bool(np.any(trains)))


def keep_differing(
    drawn: Mapping[str, str], first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]
) -> dict[str, str]:
    """Returns those that differ between two runs on the same data: noise may have been given no weight."""
    return {
        name: node
        for name, node in drawn.items()
        if not np.array_equal(first[name], second[name], equal_nan=True)
    }


def doubt_drawn(drawn: Mapping[str, str], scored: Collection[str]) -> list[str]:
    """Returns why nothing is known of such outputs, but of those that a metric looks at."""
    return [
        f"output {output!r} differs from run to run, since {node} draws random numbers, so it was not "
        f"compared; make them an input of the model, or give a metric of your own"
        for output, node in drawn.items()
        if output not in scored
    ]
