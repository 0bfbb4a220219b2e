"""Arrays and batches that are made up, and what batches hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed


def random_array(*shape: int) -> NDArray[np.float32]:
    """Returns normal random numbers, the same for each shape."""
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def batches_of(feeds: Sequence[NDArray[Any] | Mapping[str, NDArray[Any]]]) -> Batches:
    """Returns a batch of each feed; an array alone is the input x. The first axis counts samples."""
    arrays = [feed if isinstance(feed, Mapping) else {"x": feed} for feed in feeds]
    sizes = [len(next(iter(feed.values()))) for feed in arrays]

    def read() -> Iterator[Feed]:
        for index, (feed, size) in enumerate(zip(arrays, sizes, strict=True)):
            yield Feed(feed, f"feed {index}", size)

    return Batches(read, "made up", sum(sizes))


def join(batches: Batches, name: str = "x") -> NDArray[Any]:
    """Returns the arrays of an input in all batches, joined along the first axis."""
    return np.concatenate([feed.arrays[name] for feed in batches])


def sizes_of(batches: Batches) -> list[int]:
    """Returns how many samples each batch has."""
    return [feed.num_samples for feed in batches]
