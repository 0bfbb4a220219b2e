"""ONNX Runtime sessions as runners of Polygraphy."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from trtq import lazy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from trtq.models.session import SessionPort

_WORK = "comparing models"


class PlainSession(Protocol):
    """What a runner needs of a session."""

    def get_inputs(self) -> Sequence[SessionPort]:
        """Returns the inputs in the model's order."""

    def get_outputs(self) -> Sequence[SessionPort]:
        """Returns the outputs in the model's order."""

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns all outputs for one feed."""


class _Port(NamedTuple):
    """An input or output of a session that is closed."""

    name: str
    shape: Sequence[int | str | None]
    type: str


@dataclass(slots=True)
class MovableSession:
    """A session that is opened when it is needed; where it is pickled to, another one is opened.

    What its inputs and outputs are is known after it was closed, too.

    Attributes:
        open: What opens it; it pickles.
        session: What it has opened.
    """

    can_move: ClassVar[bool] = True
    open: Callable[[], PlainSession]
    session: PlainSession | None = None
    _ports: tuple[Sequence[SessionPort], Sequence[SessionPort]] | None = field(default=None, init=False)

    def take(self) -> PlainSession:
        """Returns the session itself, opened."""
        if self.session is None:
            self.session = self.open()
        return self.session

    def get_inputs(self) -> Sequence[SessionPort]:
        """Returns the inputs in the model's order."""
        return self._list_ports()[0]

    def get_outputs(self) -> Sequence[SessionPort]:
        """Returns the outputs in the model's order."""
        return self._list_ports()[1]

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns all outputs for one feed, copied: those of ONNX Runtime hold the memory of the session."""
        return [array.copy() for array in self.take().run(outputs, feed)]

    def close(self) -> None:
        """Frees the memory of the session; if it is run again, another one is opened."""
        if self.session is not None:
            self._list_ports()
            self.session = None

    def _list_ports(self) -> tuple[Sequence[SessionPort], Sequence[SessionPort]]:
        """Returns the inputs and the outputs; those of ONNX Runtime would hold the session."""
        if self._ports is None:
            session = self.take()
            self._ports = _copy_ports(session.get_inputs()), _copy_ports(session.get_outputs())
        return self._ports

    def __reduce__(self) -> tuple[type[MovableSession], tuple[Callable[[], PlainSession]]]:
        """Pickles what opens it."""
        return MovableSession, (self.open,)


def _copy_ports(ports: Sequence[SessionPort]) -> Sequence[SessionPort]:
    return tuple(_Port(item.name, item.shape, item.type) for item in ports)


def can_move(runner: Any) -> bool:
    """Whether a runner can be pickled, and run by another process."""
    return bool(getattr(runner, "can_move", False))


def create_runner(session: PlainSession, name: str) -> Any:
    """Returns a Polygraphy runner of a session.

    Polygraphy's own asks of every array whether it is PyTorch's, and imports PyTorch to know, wherever it is
    installed: seconds and hundreds of megabytes for nothing.

    Args:
        session: It takes and gives arrays of NumPy.
        name: The runner's.
    """
    return _define_runner()(session, name)


def create_converting_runner(
    runner: Any,
    inputs: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]],
    outputs: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]],
) -> Any:
    """Returns a Polygraphy runner that makes some inputs of another one from FP32, and converts outputs."""
    return _define_converting_runner()(runner, inputs, outputs)


def _require_polygraphy() -> tuple[Any, Any, Any]:
    """Returns the class of all runners, and what their inputs are told with: a dict and the dtypes."""
    base = lazy.require("polygraphy.backend.base", None, _WORK).BaseRunner
    metadata = lazy.require("polygraphy.common", None, _WORK).TensorMetadata
    return base, metadata, lazy.require("polygraphy.datatype", None, _WORK).DataType


@cache
def _define_converting_runner() -> Any:
    base, metadata, dtypes = _require_polygraphy()

    class ConvertingRunner(base):  # type: ignore[misc, valid-type]  # Polygraphy has no types
        """Runs another runner."""

        def __init__(self, runner: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
            super().__init__(name=runner.name)
            self._runner, self._inputs, self._outputs = runner, inputs, outputs

        def activate_impl(self) -> None:
            self._runner.activate()

        def deactivate_impl(self) -> None:
            self._runner.deactivate()

        def get_input_metadata_impl(self) -> Any:
            found = metadata()
            for name, item in self._runner.get_input_metadata(use_numpy_dtypes=False).items():
                found.add(name, dtypes.FLOAT32 if name in self._inputs else item.dtype, item.shape)
            return found

        def infer(self, feed_dict: Mapping[str, NDArray[Any]], check_inputs: bool = True) -> Any:
            given = {name: _convert(self._inputs, name, array) for name, array in feed_dict.items()}
            made = self._runner.infer(given, check_inputs)
            self.inference_time = self._runner.last_inference_time()
            return {name: _convert(self._outputs, name, array) for name, array in made.items()}

    return ConvertingRunner


def _convert(how: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]], name: str, array: Any) -> Any:
    return how[name](array) if name in how else array


@cache
def _define_runner() -> Any:
    base, metadata, dtypes = _require_polygraphy()
    from trtq.models.session import fit_floats

    class SessionRunner(base):  # type: ignore[misc, valid-type]  # Polygraphy has no types
        """Runs one session, whatever the width of the floats that it is fed."""

        def __init__(self, session: PlainSession, name: str) -> None:
            super().__init__(name=name)
            self._session = session

        @property
        def can_move(self) -> bool:
            return bool(getattr(self._session, "can_move", False))

        def __reduce__(self) -> tuple[Any, ...]:
            return create_runner, (self._session, self.name)

        def get_input_metadata_impl(self) -> Any:
            found = metadata()
            for item in self._session.get_inputs():
                found.add(item.name, dtypes.from_dtype(item.type, "onnxruntime"), item.shape)
            return found

        def infer(self, feed_dict: Mapping[str, NDArray[Any]], check_inputs: bool = True) -> Any:
            given = {**feed_dict, **fit_floats(self._session.get_inputs(), feed_dict)}
            return super().infer(given, check_inputs)

        def infer_impl(self, feed_dict: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            start = time.perf_counter()
            outputs = self._session.run(None, feed_dict)
            self.inference_time = time.perf_counter() - start
            names = (item.name for item in self._session.get_outputs())
            return dict(zip(names, outputs, strict=True))

    return SessionRunner
