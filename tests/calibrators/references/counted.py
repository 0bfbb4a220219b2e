"""Histograms of arrays, and the edges of their bins, for the tests of the calibrators."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.kernel import NUM_BINS, Table
from trtq.calibrators.statistics import Histogram, to_histogram


def counted(values: Any) -> Histogram:
    """Returns the histogram of finite values of any shape; what is no float array becomes float32."""
    array = np.asarray(values, getattr(values, "dtype", np.float32))
    table = Table()
    assert np.isfinite(table.add(array))
    return to_histogram(table)


def bin_edges() -> NDArray[np.float64]:
    """Returns the lower edges of the bins and the upper edge of the last, worked out: (NUM_BINS + 1,)."""
    index = np.arange(NUM_BINS + 1)
    edges = np.ldexp(1 + index % 1024 / 1024, index // 1024 - 40)
    edges[0] = 0.0
    return edges
