"""Arrays and pictures as the bytes of files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def npz(**arrays: NDArray[Any]) -> bytes:
    """Returns an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    """Returns an .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png(color: tuple[int, int, int]) -> bytes:
    """Returns a picture of 4 x 4 pixels, all of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(buffer, "PNG")
    return buffer.getvalue()
