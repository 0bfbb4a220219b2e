"""A session that remembers what it computed, for a second round over the same data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from trtq.models.runner import MovableSession
from trtq.models.session import SessionPort

MOST_BYTES = 128 << 20


@dataclass(slots=True)
class RecallingSession:
    """Runs a model; after `rewind` the first runs give again what was computed, as far as it was kept.

    Attributes:
        session: What computes.
        most_bytes: What the outputs that are kept may hold together.
        num_bytes: What those hold that were computed in the first round.
    """

    session: MovableSession
    most_bytes: int = MOST_BYTES
    num_bytes: int = field(default=0, init=False)
    _kept: deque[list[NDArray[Any]]] = field(default_factory=deque)
    _is_full: bool = False
    _is_rewound: bool = False

    def get_inputs(self) -> Sequence[SessionPort]:
        """Returns the inputs in the model's order."""
        return self.session.get_inputs()

    def get_outputs(self) -> Sequence[SessionPort]:
        """Returns the outputs in the model's order."""
        return self.session.get_outputs()

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns all outputs for one feed, which after `rewind` has to be the next of the first round."""
        if self._is_rewound and self._kept:
            return self._kept.popleft()
        found = self.session.run(outputs, feed)
        self.num_bytes += sum(array.nbytes for array in found)
        self._is_full = self._is_full or self._is_rewound or self.num_bytes > self.most_bytes
        if not self._is_full:
            self._kept.append(found)
        return found

    def rewind(self, *, closes: bool = False) -> None:
        """Begins the second round.

        Args:
            closes: Whether the session is closed if all outputs of a whole round were kept.
        """
        self._is_rewound = True
        if closes and not self._is_full:
            self.session.close()
