"""Channels of a weight, worked on in pieces that fit the processor's cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import Piece, iterate_pieces, reshape_scales


def quantize_in_channels(weight: NDArray[Any], axis: int | None) -> tuple[NDArray[Any], list[Piece]]:
    """Returns a view of shape (before, channels, after), one channel without an axis, and its pieces."""
    channels = 1 if axis is None else weight.shape[axis]
    before = 1 if axis is None else int(np.prod(weight.shape[:axis]))
    view = weight.reshape(before, channels, -1)
    return view, [(part[0], part[2], part[1]) for part in iterate_pieces((before, view.shape[2], channels))]


def choose_channel_scales(
    view: NDArray[Any], parts: Sequence[Piece], largest: int, dtype: str
) -> NDArray[np.float32]:
    """Returns the scales with which the largest magnitude of each channel becomes `largest`, rounded up.

    Args:
        view: Any float dtype, shape (before, channels, after).
        parts: Its pieces.
        largest: The largest code.
        dtype: Which the scales must survive: "float32", "float16" or "bfloat16".
    """
    amax = np.zeros(view.shape[1], np.float32)
    for part in parts:
        magnitudes = np.abs(view[part].astype(np.float32, copy=False)).max(axis=(0, 2), initial=0.0)
        amax[part[1]] = np.maximum(amax[part[1]], magnitudes)
    return reshape_scales(amax / np.float32(largest), dtype)
