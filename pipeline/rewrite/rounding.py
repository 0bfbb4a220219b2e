"""Which weights are rounded to the farther of their two codes, so that the layer's output is nearer."""

from __future__ import annotations

import hashlib
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.codes import CodeFormat


def hash_weight(weight: NDArray[Any], form: CodeFormat = INT8) -> str:
    """Returns what tells for which weight a rounding was found: the SHA-256 of its kind, shape and values.

    The name of the format counts too, where it is not INT8.
    """
    kind = f"{weight.dtype} {weight.shape}" + (f" {form.name}" if form.name != INT8.name else "")
    found = hashlib.sha256(kind.encode())
    found.update(np.ascontiguousarray(weight).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def pack(moved: NDArray[np.bool_]) -> bytes:
    """Returns which weights are not rounded to the nearest code, one bit a weight, compressed."""
    return zlib.compress(np.packbits(moved).tobytes(), 9)


def unpack(rounding: bytes, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Returns what was packed.

    Raises:
        ArtifactError: It was not packed, or not of a weight of this shape.
    """
    try:
        bits = np.frombuffer(zlib.decompress(rounding), np.uint8)
    except zlib.error as error:
        raise ArtifactError(f"a rounding in the ranges is damaged: {error}; calibrate again") from error
    size = int(np.prod(shape))
    if len(bits) != -(-size // 8):
        raise ArtifactError(
            f"a rounding in the ranges holds {8 * len(bits)} bits, the weight of shape {shape} has {size} "
            f"values; calibrate again"
        )
    return np.unpackbits(bits, count=size).astype(np.bool_).reshape(shape)


def round_to(steps: NDArray[np.float64], moved: NDArray[np.bool_], form: CodeFormat = INT8) -> NDArray[Any]:
    """Returns the nearest codes, and where `moved` says so the ones on the other side of the value.

    Args:
        steps: The weight divided by its scales, any shape.
        moved: The same shape.
        form: Of the codes.
    """
    nearest = form.round_steps(steps)
    return np.where(moved, form.round_away(steps, nearest), nearest).astype(form.array_dtype)


def choose_roundings(
    steps: NDArray[np.float64], gram: NDArray[np.float64], most_sweeps: int, form: CodeFormat = INT8
) -> NDArray[np.bool_]:
    """Returns which weights to round to the farther code, so that the products with the data change least.

    The objective is that of AdaRound (Nagel et al., arXiv 2004.10568, equation 13): the squared error of
    the layer's output on the data, over all ways to round each weight up or down. The paper relaxes that to a
    continuous problem; here one weight after the other changes sides while that lowers the error
    (coordinate descent), which needs no step size and gives the same result every time.

    Args:
        steps: The weight divided by its scales, shape (groups, rows, inputs).
        gram: X^T X of the data, damped, shape (groups, inputs, inputs).
        most_sweeps: How often each weight is looked at.
        form: Of the codes.
    """
    nearest = form.round_steps(steps)
    codes, other = nearest.copy(), form.round_away(steps, nearest)
    slope = (codes - steps) @ gram
    for _ in range(most_sweeps):
        any_changed = False
        for place in range(steps.shape[-1]):
            change = other[..., place] - codes[..., place]
            gain = change * (2 * slope[..., place] + change * gram[:, None, place, place])
            groups, rows = np.nonzero(gain < 0)
            if not len(groups):
                continue
            any_changed = True
            slope[groups, rows] += change[groups, rows, None] * gram[groups, place]
            taken = other[groups, rows, place]
            other[groups, rows, place] = codes[groups, rows, place]
            codes[groups, rows, place] = taken
        if not any_changed:
            break
    return np.asarray(codes != nearest)
