"""The float graph cut down to the tensors that are observed, and the session that shows them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtq.calibrators.survey import add_magnitudes, map_values_made, read_magnitude
from trtq.models.session import Session, SessionOptions, open_session, visit_tensors

_Wanted = tuple[tuple[str, ...], tuple[str, ...], SessionOptions, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Taps:
    """A session that shows some tensors of a model; several threads may use it at a time.

    Attributes:
        session: An `onnxruntime.InferenceSession`; None if only inputs of the model are observed.
        inputs: The inputs that the cut model still needs.
        given: The observed tensors that are inputs.
        computed: The observed tensors that nodes make.
        watched: The tensors that only give their largest and smallest value, by the outputs that give these.
        producers: What makes each computed tensor, for messages.
    """

    session: Session | None
    inputs: tuple[str, ...]
    given: tuple[str, ...]
    computed: tuple[str, ...]
    watched: Mapping[str, str]
    producers: Mapping[str, str]

    def show(
        self,
        arrays: Mapping[str, NDArray[Any]],
        tensor: Callable[[str, NDArray[Any]], None],
        magnitude: Callable[[str, float], None],
    ) -> None:
        """Calls back with every tensor of one run; an array is valid during the call only."""
        for name in self.given:
            tensor(name, arrays[name])
        if self.session is None:
            return

        def use(name: str, array: NDArray[Any]) -> None:
            if name in self.watched:
                magnitude(self.watched[name], read_magnitude(name, array.item()))
            else:
                tensor(name, array)

        outputs = [*self.computed, *self.watched]
        visit_tensors(self.session, outputs, {name: arrays[name] for name in self.inputs}, use)


def open_taps(
    model: ir.Model,
    tensors: Sequence[str],
    watched: Sequence[str],
    engine: SessionOptions,
    doubtful: Collection[str] = (),
) -> Taps:
    """Returns a session that shows the named tensors, and the largest magnitudes of watched ones, no more.

    Without the model's own outputs ONNX Runtime fuses what it fuses anyway, and skips what comes after the
    last tensor. The float graph is not changed.

    Args:
        model: The float graph.
        tensors: What is shown.
        watched: What is measured.
        engine: How it is run.
        doubtful: What of that may hold NaN.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    inputs = {str(value.name) for value in model.graph.inputs}
    given = tuple(name for name in tensors if name in inputs)
    computed = tuple(name for name in tensors if name not in inputs)
    if not computed and not watched:
        return Taps(None, (), given, (), {}, {})
    cut = model.clone()
    made = map_values_made(cut)
    cut.graph.outputs.clear()
    cut.graph.outputs.extend(made[name] for name in computed)
    outputs = add_magnitudes(cut, watched, doubtful)
    RemoveUnusedNodesPass()(cut)
    session = open_session(cut, optimize=True, engine=engine)
    needed = tuple(item.name for item in session.get_inputs())
    producers = {name: _describe(made[name]) for name in computed}
    return Taps(session, needed, given, computed, outputs, producers)


class TapsOpener:
    """Opens taps of one model; whoever wants the last ones again gets them, others after these are gone."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._last: tuple[_Wanted, Taps] | None = None

    def open(
        self,
        tensors: Sequence[str],
        watched: Sequence[str],
        engine: SessionOptions,
        doubtful: Collection[str] = (),
    ) -> Taps:
        """See `open_taps`."""
        wanted, last = (tuple(tensors), tuple(watched), engine, frozenset(doubtful)), self._last
        if last is None or last[0] != wanted:
            self._last = None
            last = self._last = wanted, open_taps(self._model, *wanted)
        return last[1]


def _describe(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None
    return f"node {node.name!r} ({node.op_type})"
