"""How pictures become inputs is told, and warned of where the model itself says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.models.preprocess import Preprocess, describe, find_reach
from trtq.pipeline.graph.operands import QUANTIZE, find_constant
from trtq.progress import Watcher

_KEEPS_VALUES = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_PIXELS, _UNIT = 255.0, 1.0
_PIXEL_CENTRE = 10.0
"""A mean above this is one of values up to 255."""
_PIXEL_FACTORS = (1 / 300, 1 / 50)
"""A factor between these brings values up to 255 to what a network computes with."""
_UNIT_CENTRES, _UNIT_FACTOR = (0.2, 0.8), 1.5
"""Means and the least factor of a normalization of values from 0 to 1."""
_CLIPPED, _USED = 1.5, 0.5
"""Of the range of a Q: what pictures may reach beyond it, and what they should reach of it at least."""
_PLAIN = "set `scale = {scale}`, `mean = [0.0]` and `std = [1.0]` in [preprocess] of model.toml"


@dataclass(frozen=True, slots=True)
class _Opening:
    """What a model does with its input before anything else: `factor * x + offset`, and the reach of its Q.

    Attributes:
        types: Of the nodes that change values.
        limit: The largest value that a Q takes; None: there is none.
    """

    factor: float = 1.0
    offset: float = 0.0
    types: tuple[str, ...] = ()
    limit: float | None = None

    @property
    def top(self) -> float | None:
        """The largest value that the input seems to be made for; None: nobody can tell."""
        if not self.types or not self.factor:
            return None
        centre, factor = -self.offset / self.factor, abs(self.factor)
        if centre > _PIXEL_CENTRE or _PIXEL_FACTORS[0] <= factor <= _PIXEL_FACTORS[1]:
            return _PIXELS
        return _UNIT if _UNIT_CENTRES[0] < centre < _UNIT_CENTRES[1] and factor >= _UNIT_FACTOR else None


def tell_of_pictures(model: ir.Model, watcher: Watcher, *streams: Batches | None) -> None:
    """Says how pictures are prepared, and warns where the model seems to want others.

    A wrong way ruins ranges and accuracy unseen.

    Args:
        model: The model that they are for.
        watcher: Hears of it.
        streams: The data, prepared in one way; nothing is said where none of it is pictures.
    """
    steps = next((data.preprocess for data in streams if data is not None and data.preprocess), None)
    if steps is None:
        return
    said = f"image preprocessing: {describe(steps)}"
    if steps == Preprocess():
        watcher.warn(
            f"{said}; these are the ImageNet defaults, because no settings say otherwise. If this "
            "model needs other values, set them in [preprocess] of model.toml (trtq init writes one), "
            "or with --mean, --std and --resize"
        )
    else:
        watcher.note(said)
    if contradiction := find_contradiction(model, steps):
        watcher.warn(contradiction)


def find_top(model: ir.Model) -> float | None:
    """Returns 255 or 1, the most that a model seems to take by its own normalization; None: it has none."""
    return _read_opening(model.graph.inputs[0]).top if model.graph.inputs else None


def find_contradiction(model: ir.Model, steps: Preprocess) -> str:
    """Returns how the model seems to want other values than pictures get, as a sentence; empty: it does not.

    A model may begin with a normalization of its own, which shows what it takes, or with a QuantizeLinear.
    """
    value = model.graph.inputs[0]
    opening, (low, high) = _read_opening(value), find_reach(steps)
    got = f"images become {low:.3g} to {high:.3g}"
    if (top := opening.top) is not None and (low < -0.04 * top or not top / 4 <= high <= 2 * top):
        scale = "1.0" if top == _PIXELS else "0.00392156862745098"
        return (
            f"the model prepares {value.name!r} itself ({', '.join(opening.types)}) and seems to "
            f"expect 0 to {top:g}, but {got}; if so, {_PLAIN.format(scale=scale)}"
        )
    if (limit := opening.limit) is not None:
        reach = max(abs(low), abs(high))
        if not _USED * limit <= reach <= _CLIPPED * limit:
            return (
                f"the model quantizes {value.name!r} to a range up to {limit:.3g}, but {got}: it was "
                "quantized for other inputs; change scale, mean and std in [preprocess] of model.toml"
            )
    return ""


def _read_opening(value: ir.Value) -> _Opening:
    """Returns what is done to a value by constants, node after node, for all channels on average."""
    factor, offset, types, limit = 1.0, 0.0, list[str](), None
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output():
        node, place = uses[0]
        if node.op_type == QUANTIZE and place == 0:
            limit = _find_limit(node)
        step = _read_step(node, place)
        if step is None:
            break
        factor, offset = factor * step[0], offset * step[0] + step[1]
        types += [] if node.op_type in _KEEPS_VALUES else [node.op_type]
        value = node.outputs[0]
    return _Opening(factor, offset, tuple(types), None if types else limit)


def _read_step(node: ir.Node, place: int) -> tuple[float, float] | None:
    """Returns the factor and the offset of a node; None if it does something else."""
    if node.op_type in _KEEPS_VALUES:
        return (1.0, 0.0) if place == 0 else None
    if node.op_type == "BatchNormalization" and place == 0:
        return _read_normalization(node)
    other = _read_numbers(node, 1 - place) if len(node.inputs) == 2 else None
    if other is None or node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    mean = float(np.mean(other))
    if node.op_type == "Mul":
        return mean, 0.0
    if node.op_type == "Div":
        return (1 / mean, 0.0) if place == 0 and mean else None
    if node.op_type == "Add":
        return 1.0, mean
    return (1.0, -mean) if place == 0 else (-1.0, mean)


def _read_normalization(node: ir.Node) -> tuple[float, float] | None:
    found = [_read_numbers(node, place) for place in range(1, 5)]
    known = [item for item in found if item is not None]
    if len(known) < len(found):
        return None
    scale, bias, mean, variance = known
    factors = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return float(np.mean(factors)), float(np.mean(bias - mean * factors))


def _read_numbers(node: ir.Node, place: int) -> NDArray[np.float64] | None:
    """Returns a constant input; None if it is not constant, empty, or no numbers."""
    found = find_constant(node, place)
    return (
        np.asarray(found, np.float64)
        if found is not None and found.size and found.dtype.kind in "fiu"
        else None
    )


def _find_limit(node: ir.Node) -> float | None:
    """Returns the largest value that a QuantizeLinear of 8 bits takes without clipping."""
    scale, zero = find_constant(node, 1), find_constant(node, 2)
    if scale is None or scale.size != 1 or (zero is not None and zero.dtype not in (np.int8, np.uint8)):
        return None
    lowest = -128 if zero is not None and zero.dtype == np.int8 else 0
    middle = 0 if zero is None else int(zero.reshape(-1)[0])
    return float(scale.reshape(-1)[0]) * max(lowest + 255 - middle, middle - lowest)
