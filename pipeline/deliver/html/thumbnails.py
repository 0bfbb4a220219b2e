"""Small copies of the pictures that the worst samples are."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from trtq.models.preprocess import restore_image

if TYPE_CHECKING:
    from trtq.calibrators.batches import Batches
    from trtq.records import OutputComparison

NUM_WORST = 3
"""Of each comparison."""
_MOST = 12
_PIXELS = 96
_QUALITY = 75


def can_draw(data: Batches | None) -> bool:
    """Returns whether data is files of pictures, of which any can be read without the others."""
    return data is not None and bool(data.preprocess and data.part and data.feed_samples and data.num_samples)


def draw_thumbnails(data: Batches | None, compared: Sequence[OutputComparison]) -> dict[str, str]:
    """Returns JPEGs of the pictures among the worst samples, as the model sees them, in base64 by name.

    They have at most 96 pixels a side, and are at most 12; none are drawn of data of another kind, as of
    `can_draw`.

    Args:
        data: What was compared.
        compared: What names the worst samples.
    """
    if data is None or data.preprocess is None or not can_draw(data):
        return {}
    worst = {one.name: one.sample for item in compared for one in item.worst[:NUM_WORST] if one.name}
    found = {}
    for name, sample in islice(worst.items(), _MOST):
        place, inside = divmod(sample, data.feed_samples or 1)
        for feed in data.every(place, data.num_samples or 1):  # the one that holds it
            if feed.names[inside : inside + 1] == (name,):  # else the engine did not take all before it
                pictures = next(array for array in feed.arrays.values() if array.ndim == 4)
                found[name] = _encode(restore_image(pictures[inside], data.preprocess))
    return found


def _encode(image: Any) -> str:
    image.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
