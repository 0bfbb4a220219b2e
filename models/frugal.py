"""A session that holds no memory between its runs but that of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from numpy.typing import NDArray

from trtq import lazy
from trtq.models.runner import PlainSession
from trtq.models.session import SessionPort, list_runtime_errors

_KEY, _ARENA = "memory.enable_memory_arena_shrinkage", "cpu:0"


@dataclass(slots=True)
class FrugalSession:
    """A session for several that take turns: what a run needed is given back at its end.

    ONNX Runtime keeps the memory of a session's largest run otherwise, so that seven sessions that are open
    hold it seven times though one or two run. All runs but the first take longer, as the memory is asked for
    again.

    Attributes:
        session: What runs; on the CPU.
    """

    session: PlainSession
    _has_arena: bool = field(default=True, init=False)

    def get_inputs(self) -> Sequence[SessionPort]:
        """Returns the inputs in the model's order."""
        return self.session.get_inputs()

    def get_outputs(self) -> Sequence[SessionPort]:
        """Returns the outputs in the model's order."""
        return self.session.get_outputs()

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns the named outputs, all if None, for one feed."""
        session: Any = self.session
        if self._has_arena:
            try:
                return list(session.run(outputs, feed, _create_options()))
            except list_runtime_errors() as error:
                if "arena" not in str(error):
                    raise
                self._has_arena = False  # which is told before anything runs; then nothing is kept anyway
        return list(session.run(outputs, feed))


@cache
def _create_options() -> Any:
    options = lazy.require("onnxruntime", None, "running the model").RunOptions()
    options.add_run_config_entry(_KEY, _ARENA)
    return options
