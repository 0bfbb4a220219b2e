"""The layers and tensors of the page, worst first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trtq.pipeline.deliver.html.charts import HistogramChart, draw_bar, draw_histogram
from trtq.pipeline.deliver.html.page_data import Clip, LayerSummary, PageData, TensorSummary
from trtq.pipeline.deliver.html.view import format_dtype
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.graph.placement import QUANTIZABLE
from trtq.pipeline.judge.sensitivity import Sensitivity

MOST_DB = 60.0
"""The longest bar: noise of a thousandth of the signal."""
LOW_DB = 20.0
"""Below it noise is more than a tenth of the signal: bars of another colour."""


@dataclass(frozen=True, slots=True)
class Level:
    """A ratio of signal to noise with its bar: `db` is None where there is none, `length` in per cent."""

    db: float | None
    length: float
    low: bool


@dataclass(frozen=True, slots=True)
class LayerRow:
    """A quantized layer: what it runs as, the number of the tensor it reads, and the levels of its chart."""

    name: str
    op_type: str
    runs_as: str
    tensor: int | None
    levels: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method's range of a tensor: its place among the methods, and whether it is the one that is used."""

    place: int
    name: str
    clip: Clip
    used: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A tensor with its chart; `number` counts from 0 in graph order."""

    number: int
    tensor: TensorSummary
    readers: tuple[str, ...]
    chart: HistogramChart | None
    rows: tuple[MethodRow, ...]


def list_layer_rows(seen: PageData, manifest: Manifest, measured: Sensitivity | None) -> tuple[LayerRow, ...]:
    """Returns the quantized layers, those with the lowest ratio first."""
    tensors = {tensor.name: (number, tensor) for number, tensor in enumerate(seen.tensors)}
    alone = {} if measured is None else {item.name: item.alone.sqnr_db for item in measured.layers}
    rows = []
    for layer in seen.layers:
        if layer.op_type not in QUANTIZABLE:
            continue
        read = [tensors[name] for name in layer.tensors if name in tensors]
        ratios = [tensor.used.sqnr_db for _, tensor in read if tensor.used.sqnr_db is not None]
        levels = [_level(min(ratios, default=None)), _level(layer.weight_sqnr_db)]
        if measured is not None:
            levels.insert(0, _level(alone.get(layer.name)))
        runs_as = format_dtype(manifest.layers.get(layer.name, ""))
        rows.append(LayerRow(layer.name, layer.op_type, runs_as, read[0][0] if read else None, tuple(levels)))
    return tuple(sorted(rows, key=lambda row: _worst(row.levels[:1] if measured else row.levels)))


def _level(db: float | None) -> Level:
    return Level(db, draw_bar(db, MOST_DB), db is not None and not db >= LOW_DB)


def _worst(levels: Sequence[Level]) -> float:
    found = [-math.inf if math.isnan(level.db) else level.db for level in levels if level.db is not None]
    return min(found, default=math.inf)


def list_cards(seen: PageData) -> tuple[Card, ...]:
    """Returns the tensors, those with the lowest ratio first."""
    readers = _readers(seen.layers)
    cards = (
        Card(
            number,
            tensor,
            tuple(readers.get(tensor.name, ())),
            draw_histogram(tensor),
            tuple(_methods(tensor, seen.method)),
        )
        for number, tensor in enumerate(seen.tensors)
    )
    return tuple(sorted(cards, key=_of_card))


def _of_card(card: Card) -> float:
    db = card.tensor.used.sqnr_db
    return math.inf if db is None else db


def _methods(tensor: TensorSummary, asked: str) -> Iterator[MethodRow]:
    """Yields the methods' ranges, and the used one if it is of none of them; of equals, the one asked for."""
    amax = tensor.used.amax
    equal = [name for name, clip in tensor.methods.items() if math.isclose(clip.amax, amax, rel_tol=1e-6)]
    used = asked if asked in equal else next(iter(equal), None)
    for place, (name, clip) in enumerate(tensor.methods.items()):
        yield MethodRow(place, name, clip, name == used)
    if used is None:
        yield MethodRow(-1, "used", tensor.used, used=True)


def _readers(layers: Sequence[LayerSummary]) -> Mapping[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for layer in layers:
        for tensor in layer.tensors:
            readers.setdefault(tensor, []).append(layer.name)
    return readers
