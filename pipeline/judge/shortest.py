"""How few steps hold a gate, found by measuring few counts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_NUM_GUESSES = 3
"""In a row; then every other round halves what is left, whatever was measured."""
_POWERS = (0.25, 4.0)
"""Of the error with which what is used up may grow: points of a score grow with its root, or with itself."""


@dataclass(slots=True)
class ShortestSearch:
    """The search for the least count of steps that holds a gate; all of them do.

    Attributes:
        predicted: The error after each count of steps, from none to all, in any unit.
        wanted: How much of what the gate allows should be used up.
        too_few: The largest count known not to hold.
        enough: The least count known to hold.
        rounds: How many counts were proposed.
        seen: What was measured: the logarithms of the predicted error and of what was used up.
    """

    predicted: Sequence[float]
    wanted: float
    too_few: int = -1
    enough: int = field(init=False)
    rounds: int = 0
    seen: list[tuple[float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins with all steps."""
        self.enough = len(self.predicted) - 1

    @property
    def is_done(self) -> bool:
        """Whether the least count is found."""
        return self.enough - self.too_few <= 1

    def propose(self) -> int:
        """Returns how many steps to take in the next measurement."""
        self.rounds += 1
        if self.rounds == 1:
            return 0
        beyond = self.rounds - 1 - _NUM_GUESSES
        if not self.seen or (beyond > 0 and beyond % 2):
            return (self.too_few + self.enough) // 2
        most = self._find_most_error()
        fits = (count for count, error in enumerate(self.predicted) if error <= 0 or math.log(error) <= most)
        return min(max(next(fits, self.enough), self.too_few + 1), self.enough - 1)

    def _find_most_error(self) -> float:
        """Returns the logarithm of the error that uses up what is wanted, by the two measurements nearest."""
        wanted = math.log(self.wanted)
        (error, used), *others = sorted(self.seen, key=lambda pair: abs(pair[1] - wanted))
        slopes = [(used - item[1]) / (error - item[0]) for item in others[:1] if item[0] != error]
        power = next((min(max(slope, _POWERS[0]), _POWERS[1]) for slope in slopes if slope > 0), 1.0)
        return error + (wanted - used) / power

    def learn(self, count: int, used: float, *, holds: bool) -> None:
        """Takes in what was measured after so many steps: how much of what the gate allows is used up."""
        left = self.predicted[count]
        if 0 < left < math.inf and 0 < used < math.inf:
            self.seen.append((math.log(left), math.log(used)))
        if holds:
            self.enough = count
        else:
            self.too_few = count
