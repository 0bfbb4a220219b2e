"""Feeds in parts: some of their samples at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed


def is_splittable(model: ir.Model, batches: Batches) -> bool:
    """Returns whether the samples of a feed may be run apart.

    An open batch axis may be a promise that the model breaks, such as by a Reshape to a constant shape: only
    a run tells.
    """
    shapes = [value.shape for value in model.graph.inputs]
    open_axes = all(shape is not None and len(shape) and not isinstance(shape[0], int) for shape in shapes)
    return batches.feed_samples is not None and open_axes


def split_feed(model: ir.Model, feed: Feed, num_samples: int) -> Iterator[Feed]:
    """Yields a feed in parts of so many samples, without copies, with the inputs of the model alone."""
    inputs = select_inputs(model, feed.arrays)
    for start in range(0, feed.num_samples, num_samples):
        stop = min(start + num_samples, feed.num_samples)
        yield replace(
            feed,
            arrays=slice_arrays(inputs, start, stop),
            num_samples=stop - start,
            names=feed.names[start:stop],
        )


def select_inputs(model: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the arrays that the model takes."""
    return {str(value.name): arrays[str(value.name)] for value in model.graph.inputs}


def slice_arrays(arrays: Mapping[str, NDArray[Any]], start: int, stop: int) -> dict[str, NDArray[Any]]:
    """Returns some samples of each array."""
    return {name: array[start:stop] for name, array in arrays.items()}
