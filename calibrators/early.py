"""What to watch of tensors that nothing bounds, as early in the graph as may be."""

from __future__ import annotations

from bisect import bisect_left
from collections import ChainMap
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from trtq.calibrators.bounds import MagnitudeBounds
from trtq.calibrators.ranges import FP16_LIMIT
from trtq.calibrators.survey import map_values_made


def choose_early(
    model: ir.Model,
    bounds: MagnitudeBounds,
    anchors: Sequence[str],
    known: Iterable[str],
    unproven: Collection[str],
    guesses: Mapping[str, float],
) -> list[str]:
    """Returns what to watch so that all is proven: for what the anchors do not need, as early as may be.

    The model is run up to the last tensor that is looked at, and no further. The graph is passed once; after
    a choice it is gone on with from there, so that the time is nearly linear in its nodes.

    Args:
        model: The graph.
        bounds: Of its tensors.
        anchors: The tensors for which it is run anyway.
        known: Those whose magnitudes are known.
        unproven: Those that may be larger than FP16's largest value, given these.
        guesses: How large each may get; others are not looked at.
    """
    made = map_values_made(model)
    needed = _list_before(made[name] for name in anchors if name in made)
    chosen = [name for name in unproven if made[name] in needed]
    now = {name: guesses[name] for name in (*known, *chosen) if name in guesses}
    places = {name: index for index, node in enumerate(bounds.nodes) for name in node.outputs}
    found, index = dict(bounds.constants) | now, 0
    with np.errstate(over="ignore", invalid="ignore"):
        while index < len(bounds.nodes):
            left = bounds.visit(index, found, now, FP16_LIMIT, guesses)
            name = next((name for name in left if name in guesses), None)
            if name is None:
                index += 1
                continue
            way = [item for item in _list_way(made[name], needed, now) if item in guesses]
            proves = partial(_proves, bounds, found, now, guesses, places, name)
            early = way[bisect_left(way[:-1], True, key=proves)]
            found[early] = now[early] = guesses[early]
            chosen.append(early)
            index = places[early]
    return chosen


def _proves(
    bounds: MagnitudeBounds,
    found: dict[str, float],
    known: dict[str, float],
    guesses: Mapping[str, float],
    places: Mapping[str, int],
    name: str,
    early: str,
) -> bool:
    """Whether a tensor is proven if this one before it is known."""
    supposed = ChainMap({early: guesses[early]}, found)
    more = ChainMap({early: guesses[early]}, known)
    for index in range(places[early], places[name]):
        bounds.visit(index, supposed, more, FP16_LIMIT, guesses)
    return name not in bounds.visit(places[name], supposed, more, FP16_LIMIT, guesses)


def _list_before(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Returns all that nodes make so that these can be made, and these."""
    found, left = set[ir.Value](), list(values)
    while left:
        value = left.pop()
        node = value.producer()
        if node is not None and value not in found:
            found.update(node.outputs)
            left += [item for item in node.inputs if item is not None and item.producer() is not None]
    return found


def _list_way(value: ir.Value, needed: Collection[ir.Value], known: Collection[str]) -> list[str]:
    """Returns the float tensors on the way to one by first inputs, from what is needed or known on."""
    way = list[str]()
    while value not in needed and str(value.name) not in known and (node := value.producer()) is not None:
        way.append(str(value.name))
        before = [item for item in node.inputs if item is not None and item.producer() is not None]
        if not before:
            break
        value = next((item for item in before if item.dtype is ir.DataType.FLOAT), before[0])
    return way[::-1]
