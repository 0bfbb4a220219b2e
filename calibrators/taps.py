"""The float graph cut down to the tensors that are observed, and the session that shows them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtq.calibrators.blocked import open_blocked
from trtq.calibrators.survey import add_magnitudes, map_values_made, read_magnitude
from trtq.errors import ModelError
from trtq.models.session import Session, SessionOptions, open_session, visit_tensors

_Wanted = tuple[tuple[str, ...], tuple[str, ...], SessionOptions, frozenset[str], frozenset[str]]


@dataclass(frozen=True, slots=True)
class Taps:
    """A session that shows some tensors of a model; several threads may use it at a time.

    Attributes:
        session: An `onnxruntime.InferenceSession`; None if only inputs of the model are observed.
        inputs: The inputs that the cut model still needs.
        given: The observed tensors that are inputs.
        computed: The observed tensors that nodes make, with the outputs that show them.
        watched: The tensors that only give their largest and smallest value, by the outputs that give these.
        producers: What makes each computed tensor, for messages.
    """

    session: Session | None
    inputs: tuple[str, ...]
    given: tuple[str, ...]
    computed: Mapping[str, str]
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

        tensors = dict[str, list[str]]()
        for name, output in self.computed.items():
            tensors.setdefault(output, []).append(name)

        def use(output: str, array: NDArray[Any]) -> None:
            for name in tensors.get(output, ()):
                tensor(name, array)
            if output in self.watched:
                magnitude(self.watched[output], read_magnitude(output, array.item()))

        outputs = [*tensors, *self.watched]
        visit_tensors(self.session, outputs, {name: arrays[name] for name in self.inputs}, use)


def open_taps(
    model: ir.Model,
    tensors: Sequence[str],
    watched: Sequence[str],
    engine: SessionOptions,
    doubtful: Collection[str] = (),
    unordered: Collection[str] = (),
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
        unordered: What is shown in any order of its values but for the first axis, if that is faster.

    Raises:
        ModelError: ONNX Runtime cannot load the model.
    """
    inputs = {str(value.name) for value in model.graph.inputs}
    given = tuple(name for name in tensors if name in inputs)
    computed = tuple(name for name in tensors if name not in inputs)
    if not computed and not watched:
        return Taps(None, (), given, {}, {}, {})
    cut = model.clone()
    made = map_values_made(cut)
    producers = {name: _describe(made[name]) for name in computed}
    outputs = add_magnitudes(cut, watched, doubtful)
    free = [name for name in computed if name in unordered and made[name].dtype is ir.DataType.FLOAT]
    session, shown = _open(cut, computed, [*outputs], free, engine)
    needed = tuple(item.name for item in session.get_inputs())
    return Taps(session, needed, given, shown, outputs, producers)


def _open(
    model: ir.Model,
    tensors: Sequence[str],
    others: Sequence[str],
    free: Sequence[str],
    engine: SessionOptions,
) -> tuple[Session, Mapping[str, str]]:
    """Returns a session that shows tensors, free ones in any order, and the outputs that do, by tensor.

    The model is changed.
    """
    if free:
        fixed = [name for name in tensors if name not in free]
        with suppress(ModelError, OSError):  # some graphs cannot be read back, some machines write no files
            session, shown = open_blocked(model, [*fixed, *others], free, engine)
            return session, {name: shown.get(name, name) for name in tensors}
    made = map_values_made(model)
    model.graph.outputs[:] = [made[name] for name in (*tensors, *others)]
    RemoveUnusedNodesPass()(model)
    return open_session(model, optimize=True, engine=engine), {name: name for name in tensors}


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
        unordered: Collection[str] = (),
    ) -> Taps:
        """See `open_taps`."""
        wanted = (tuple(tensors), tuple(watched), engine, frozenset(doubtful), frozenset(unordered))
        last = self._last
        if last is None or last[0] != wanted:
            self._last = None
            last = self._last = wanted, open_taps(self._model, *wanted)
        return last[1]


def _describe(value: ir.Value) -> str:
    node = value.producer()
    assert node is not None
    return f"node {node.name!r} ({node.op_type})"
