"""Which tensors have to be watched over all the data, so that none leaves the range of FP16 unseen.

To reduce every tensor of a model in every run would cost more than what is observed anyway, and to run what
comes after the last observed tensor costs more still. Most need not be watched: what their inputs reach
bounds them. Those that are not bounded so are watched. Where a batch goes beyond what was proven, all tensors
are looked at on this batch, and what follows is proven anew from there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.bounds import MagnitudeBounds, compile_bounds
from trtq.calibrators.early import choose_early
from trtq.calibrators.finite import HUGE, list_doubtful
from trtq.calibrators.ranges import FP16_LEAST, FP16_LIMIT
from trtq.calibrators.survey import measure_inputs
from trtq.models.sizes import has_open_sizes, infer_sizes

_HEADROOM = 4.0
"""How much louder than the first sample others may be before anything has to be proven again."""
_LATE_HEADROOM = 1.5
"""The same of what the model would have to run further for."""
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_NORMS = ("ReduceMean", "LayerNormalization")
"""What they take bounds all that a norm is computed of, which ONNX Runtime can then fuse."""
_SQUARES = ("Pow", "Mul")
"""What they make is computed of that."""


@dataclass(frozen=True, slots=True)
class GuardedModel:
    """A float graph and what is known of it.

    Attributes:
        model: The graph.
        observed: The tensors that are known of every batch, and finite.
        bounds: Of the tensors of batches of some sizes.
        sizes: Of the inputs in those batches, without the first axis; None: any.
    """

    model: ir.Model
    observed: Sequence[str]
    bounds: MagnitudeBounds
    sizes: Mapping[str, tuple[int, ...]] | None


@dataclass(slots=True)
class MagnitudeGuard:
    """Tells whether the magnitudes of some tensors prove that no other leaves the range of FP16.

    Attributes:
        subject: The model.
        watched: The tensors whose magnitudes must be known of every batch, beside those that are observed.
        doubtful: Those of them that may hold NaN.
        proven: The magnitudes of what is known of every batch for which all else stays inside FP16.
    """

    subject: GuardedModel
    watched: Sequence[str]
    doubtful: Collection[str]
    proven: Mapping[str, float]
    _lock: Lock = field(default_factory=Lock)

    def restart(self) -> MagnitudeGuard:
        """Returns the same guard, which remembers nothing of the batches that follow here."""
        return MagnitudeGuard(self.subject, self.watched, self.doubtful, self.proven)

    def proves(self, magnitudes: Mapping[str, float], arrays: Mapping[str, NDArray[Any]]) -> bool:
        """Returns whether one batch stays inside FP16 where nobody looks.

        What is proven is remembered: a batch may be shown in passes, with other tensors each time.

        Args:
            magnitudes: Of the inputs, and of what is observed and watched in this pass.
            arrays: The inputs.
        """
        if self.subject.sizes not in (None, list_sizes(arrays)):
            return False
        with self._lock:
            known = self.proven
            larger = {name: value for name, value in magnitudes.items() if value > known.get(name, 0.0)}
            if not larger:
                return True
            if max(larger.values()) > HUGE:  # NaN may follow, where nobody looks for it
                return False
            for factor in (_HEADROOM, 1.0):
                wider = {**known, **{name: factor * value for name, value in larger.items()}}
                if not self.subject.bounds.find(wider, FP16_LIMIT).unproven:
                    self.proven = wider
                    return True
            return False

    def widen(
        self, arrays: Mapping[str, NDArray[Any]], inputs: Mapping[str, float], made: Mapping[str, float]
    ) -> MagnitudeGuard:
        """Returns a guard that proves more, after a batch of which this one did not; it watches no less.

        Args:
            arrays: The inputs of the batch.
            inputs: Their magnitudes.
            made: The largest magnitudes so far of what nodes make.
        """
        subject = self.subject
        if subject.sizes not in (None, list_sizes(arrays)):
            subject = _compile(subject.model, subject.observed, None, subject.bounds.constants)
        inputs = {name: max(value, self.proven.get(name, 0.0) / _HEADROOM) for name, value in inputs.items()}
        return _choose_watched(subject, inputs, made, self.watched)


def create_guard(
    model: ir.Model,
    observed: Sequence[str],
    arrays: Mapping[str, NDArray[Any]],
    made: Mapping[str, float],
    *,
    may_widen: bool,
) -> MagnitudeGuard:
    """Returns what has to be known of every batch.

    A tensor that is large enough in the first sample is not too small in all.

    Args:
        model: The float graph.
        observed: The tensors that are known of every batch anyway; if none, those that linear layers take.
        arrays: The inputs of the first batch.
        made: The magnitudes of all tensors that nodes make, in its first sample or more.
        may_widen: Whether another guard may follow after a batch of another kind.
    """
    inputs, subject = measure_inputs(arrays), _compile(model, observed, None)
    found = _choose_watched(subject, inputs, made)
    if not may_widen or not any(has_open_sizes(value) for value in model.graph.inputs):
        return found
    known = {name: value for name, value in found.proven.items() if name not in found.watched}
    reached = subject.bounds.find(known, FP16_LIMIT).magnitudes
    if all(reached[name] < HUGE for name in found.watched):  # which sizes would bound hardly better
        return found
    constants = subject.bounds.constants
    return _choose_watched(_compile(model, observed, list_sizes(arrays), constants), inputs, made)


def _compile(
    model: ir.Model,
    observed: Sequence[str],
    sizes: Mapping[str, tuple[int, ...]] | None,
    constants: Mapping[str, float] | None = None,
) -> GuardedModel:
    sized = model if sizes is None else infer_sizes(model, sizes)
    return GuardedModel(model, observed, compile_bounds(sized, constants), sizes)


def _choose_watched(
    subject: GuardedModel,
    inputs: Mapping[str, float],
    made: Mapping[str, float],
    also: Sequence[str] = (),
) -> MagnitudeGuard:
    bounds, model, observed = subject.bounds, subject.model, subject.observed
    anchors = observed or _list_inputs(model, _LINEAR)
    guesses = {name: _HEADROOM * value for name, value in {**made, **inputs}.items()}
    known = {name: guesses[name] for name in (*inputs, *anchors) if name in guesses}
    reached = bounds.find(known, FP16_LIMIT, guesses).magnitudes  # what is always 0 is not too small
    small = [name for name, value in made.items() if value < FP16_LEAST and reached.get(name)]
    known |= {name: guesses[name] for name in small}
    unproven = bounds.find(known, FP16_LIMIT, guesses).unproven
    normed = {name: guesses[name] for name in _list_inputs(model, _NORMS, _SQUARES) if name in made}
    inner = bounds.find({**known, **normed}, FP16_LIMIT, guesses).unproven
    if len(inner) < len(unproven):
        unproven = [*normed, *inner]
    late = {name: value * _LATE_HEADROOM / _HEADROOM for name, value in guesses.items()}
    unproven = choose_early(model, bounds, anchors, known, unproven, late)
    tensors = [name for name in dict.fromkeys((*also, *anchors, *small, *unproven)) if name in made]
    watched = [name for name in tensors if name not in observed]
    doubtful = list_doubtful(model, observed, guesses) & set(watched)
    proven = {name: late[name] for name in (*inputs, *tensors)}
    return MagnitudeGuard(subject, watched, doubtful, proven)


def list_sizes(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[int, ...]]:
    """Returns the sizes of the inputs along all axes but the first."""
    return {name: array.shape[1:] for name, array in arrays.items()}


def _list_inputs(model: ir.Model, op_types: Sequence[str], makers: Sequence[str] = ()) -> list[str]:
    """Returns what nodes of these types take, made by nodes of other types than the makers."""
    nodes = [node for node in model.graph if node.op_type in op_types]
    values = [value for node in nodes for value in node.inputs if value is not None]
    made = [(value, maker) for value in values if (maker := value.producer()) is not None]
    return list(dict.fromkeys(str(value.name) for value, maker in made if maker.op_type not in makers))
