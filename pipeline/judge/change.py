"""How much an output changes from sample to sample: without that, no comparison of it is evidence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.judge.steady import Mask, find_apart, split_by_sample

_CLEAR = 0.01
"""Samples differ clearly if what changes has this share of the amplitude of the whole."""


@dataclass(slots=True)
class FirstSample:
    """The first sample of an output, and whether any other differs from it."""

    output: NDArray[Any] | None = None
    varies: bool = False

    def add(self, rows: NDArray[Any]) -> None:
        """Takes in outputs with their samples along the first axis."""
        if self.varies or not rows.size:
            return
        if self.output is None:
            self.output = rows[0].copy()
        is_same = self.output.shape == rows.shape[1:] and np.array_equal(
            np.broadcast_to(self.output, rows.shape), rows, equal_nan=rows.dtype.kind == "f"
        )
        self.varies = not is_same


@dataclass(slots=True)
class OutputChange:
    """How much the samples of one output of a reference differ; values that are judged apart count nothing.

    The sums are of the differences from the first sample, so that an offset that all share costs no digits.
    """

    first: FirstSample = field(default_factory=FirstSample)
    base: NDArray[np.float64] | None = None
    counts: Mask | None = None
    sums: NDArray[np.float64] | None = None
    squares: float = 0.0
    signal: float = 0.0
    num_rows: int = 0
    is_known: bool = True

    def add(self, output: NDArray[Any], num_samples: int, steady: Mask | None = None) -> None:
        """Takes in one batch; for `steady` see `find_apart`."""
        rows = split_by_sample(output, num_samples)
        self.first.add(rows)
        if not rows.size or not self.is_known:
            return
        counts = np.isfinite(rows) & ~find_apart(rows, steady)
        values = np.where(counts, rows, 0).astype(np.float64)
        if self.base is None or self.counts is None or self.sums is None:
            self.base, self.counts, self.sums = values[0].copy(), counts[0].copy(), np.zeros_like(values[0])
        if self.base.shape != values.shape[1:]:
            self.is_known = False
            return
        changes = np.where(counts & self.counts, values - self.base, 0.0)
        with np.errstate(over="ignore"):
            self.sums += changes.sum(axis=0)
            self.squares += float(np.vdot(changes, changes))
            self.signal += float(np.vdot(values, values))
        self.num_rows += len(rows)

    @property
    def varies(self) -> bool:
        """Whether any value differs between samples."""
        return self.first.varies

    @property
    def spread(self) -> float | None:
        """The squares of what differs from the mean of all samples; None where their shapes differ."""
        if not self.is_known or self.sums is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            spread = self.squares - float(np.vdot(self.sums, self.sums)) / self.num_rows
        return max(0.0, spread) if np.isfinite(spread) else None

    @property
    def is_clear(self) -> bool:
        """Whether the samples differ by more than rounding would make them."""
        spread = self.spread
        return spread is not None and spread > _CLEAR**2 * self.signal
