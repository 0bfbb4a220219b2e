"""What each layer costs in each number format on a GPU: the time that multiplying or reading takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtq.pipeline.formats import FORMATS, FP16, LAYER_FORMATS
from trtq.pipeline.formats.throughput import GpuSpeed
from trtq.pipeline.judge.macs import LayerWork

FLOAT = FP16.name
"""Stands for what is not quantized, whatever it computes in."""
Costs = Mapping[str, Mapping[str, float]]
"""By layer, then by the name of the format; a layer has no other formats than those."""


def price_layers(
    works: Mapping[str, LayerWork], forms: Mapping[str, Sequence[str]], speed: GpuSpeed
) -> dict[str, dict[str, float]]:
    """Returns the cost of each layer in each of its formats, as a share of the cost of all layers in FP16.

    A layer takes the longer of the times in which it multiplies and in which it reads and writes (the
    roofline model of Williams et al., CACM 52:4, 2009): its operands in its format, its results in FP16. A
    format that the GPU does not multiply in is multiplied in FP16.

    Args:
        works: Of all layers of the model; others cost nothing.
        forms: The formats of the layers that are asked about.
        speed: That of the GPU.
    """
    total = sum(_price(work, FLOAT, speed) for work in works.values()) or 1.0
    nothing = LayerWork(0)
    return {
        name: {form: _price(works.get(name, nothing), form, speed) / total for form in own}
        for name, own in forms.items()
    }


def _price(work: LayerWork, form: str, speed: GpuSpeed) -> float:
    bits = {**FORMATS, **LAYER_FORMATS}[form].bits
    size = (work.operands * bits + work.results * FP16.bits) / 8
    return max(work.macs / speed.throughput.get(form, 1.0), size * speed.macs_per_byte)
