"""Encodings by short names."""

from __future__ import annotations

from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import PerChannel, PerTensor


def int8_along(axis: int | None) -> Encoding:
    """Returns INT8 with a scale for each channel, or one for all."""
    return Encoding(INT8, PerTensor() if axis is None else PerChannel(axis))


def int8_scheme(rule: str, *places: int, weight: Encoding | None = None) -> LayerScheme:
    """Returns the scheme of a layer that takes INT8 at the places."""
    return LayerScheme(rule, tuple((place, int8_along(None)) for place in places), weight)
