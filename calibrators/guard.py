"""Which tensors have to be watched over all the data, so that none leaves the range of FP16 unseen.

To reduce every tensor of a model in every run would cost more than what is observed anyway. Most need not be:
what their inputs reach bounds them. Those that are not bounded so are watched; and where a batch goes beyond
what was proven, all tensors are looked at on this batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.bounds import MagnitudeBounds, compile_bounds
from trtq.calibrators.ranges import FP16_LEAST, FP16_LIMIT

_HEADROOM = 4.0
"""How much louder than the first sample others may be before anything has to be proven again."""
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NORMS = ("ReduceMean", "LayerNormalization")
"""What they take bounds all that a norm is computed of, which ONNX Runtime can then fuse."""
_SQUARES = ("Pow", "Mul")
"""What they make is computed of that."""


class MagnitudeGuard:
    """Tells whether the magnitudes of some tensors prove that no other leaves the range of FP16.

    Attributes:
        watched: The tensors whose magnitudes must be known of every batch, beside those that are observed.
    """

    def __init__(self, bounds: MagnitudeBounds, watched: Sequence[str], proven: Mapping[str, float]) -> None:
        """Takes what `create_guard` finds out.

        Args:
            bounds: Of the model.
            watched: As the attribute.
            proven: The magnitudes of what is known of every batch for which all else stays inside FP16.
        """
        self.watched = watched
        self._bounds = bounds
        self._proven = dict(proven)
        self._lock = Lock()

    def proves(self, magnitudes: Mapping[str, float]) -> bool:
        """Returns whether one batch stays inside FP16 where nobody looks.

        What is proven is remembered: a batch may be shown in passes, with other tensors each time.

        Args:
            magnitudes: Of the float inputs, and of what is observed and watched in this pass.
        """
        with self._lock:
            known = self._proven
            larger = {name: value for name, value in magnitudes.items() if value > known.get(name, 0.0)}
            if not larger:
                return True
            for factor in (_HEADROOM, 1.0):
                wider = known | {name: factor * value for name, value in larger.items()}
                if not self._bounds.find(wider, FP16_LIMIT).unproven:
                    self._proven = wider
                    return True
            return False


def create_guard(
    model: ir.Model, observed: Sequence[str], inputs: Mapping[str, float], made: Mapping[str, float]
) -> MagnitudeGuard:
    """Returns what has to be known of every batch.

    A tensor that is large enough in the first sample is not too small in all.

    Args:
        model: The float graph.
        observed: The tensors that are known of every batch anyway; if none, those that linear layers take.
        inputs: The magnitudes of the float inputs in the first batch.
        made: Those of all tensors that nodes make, in its first sample or more.
    """
    bounds = compile_bounds(model)
    anchors = observed or _list_inputs(model, _LINEAR)
    small = [name for name, value in made.items() if value < FP16_LEAST]
    guesses = {name: _HEADROOM * value for name, value in {**made, **inputs}.items()}
    known = {name: guesses[name] for name in (*inputs, *anchors, *small) if name in guesses}
    unproven = bounds.find(known, FP16_LIMIT, guesses).unproven
    normed = {name: guesses[name] for name in _list_inputs(model, _NORMS, _SQUARES) if name in made}
    inner = bounds.find(known | normed, FP16_LIMIT, guesses).unproven
    if len(inner) < len(unproven):
        unproven = [*normed, *inner]
    tensors = [name for name in dict.fromkeys((*anchors, *small, *unproven)) if name in made]
    watched = [name for name in tensors if name not in observed]
    return MagnitudeGuard(bounds, watched, {name: guesses[name] for name in (*inputs, *tensors)})


def measure_inputs(arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Returns the largest magnitude of each float input."""
    return {
        name: float(np.nanmax(np.abs(array), initial=0.0))
        for name, array in arrays.items()
        if np.issubdtype(array.dtype, np.floating)
    }


def _list_inputs(model: ir.Model, op_types: Sequence[str], makers: Sequence[str] = ()) -> list[str]:
    """Returns what nodes of these types take, made by nodes of other types than the makers."""
    nodes = [node for node in model.graph if node.op_type in op_types]
    values = [value for node in nodes for value in node.inputs if value is not None]
    made = [(value, maker) for value in values if (maker := value.producer()) is not None]
    return list(dict.fromkeys(str(value.name) for value, maker in made if maker.op_type not in makers))
