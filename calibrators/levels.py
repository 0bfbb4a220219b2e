"""What a method must know of the number format that a tensor will be held in."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from trtq.calibrators.ranges import QMAX

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Levels(Protocol):
    """The numbers that symmetric codes stand for where the scale is 1; every `CodeFormat` has them."""

    @property
    def name(self) -> str:
        """Of the format."""

    @property
    def largest(self) -> float:
        """The largest level."""

    @property
    def clips(self) -> bool:
        """Whether the steps are finer where the range does not hold the largest values."""

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """The levels from 0 on, ascending."""

    def round_steps(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the nearest levels of values divided by their scale, at most the largest."""


class _Int8Levels:
    name = "int8"
    largest = float(QMAX)
    clips = True

    @cached_property
    def magnitudes(self) -> NDArray[np.float64]:
        return np.arange(QMAX + 1, dtype=np.float64)

    def round_steps(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.clip(np.rint(steps), -QMAX, QMAX))


def are_even(levels: Levels) -> bool:
    """Returns whether levels are equally far apart, as integers are and floats are not."""
    return bool(np.ptp(np.diff(levels.magnitudes)) == 0)


INT8_LEVELS: Levels = _Int8Levels()
"""Those of INT8: every integer from -127 to 127."""
