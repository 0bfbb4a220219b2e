"""How near the search by formats comes to the cheapest mixture, on made-up models whose errors add up.

    .venv/bin/python benchmarks/search_gap.py --output benchmarks/results/search-gap-2026-11-30.json

No model runs. Each layer has a cost and an error in each format, the search measures the former exactly and
the latter a quarter off, and a score that falls with a power of the error decides. What is found is compared
with the best of all mixtures, which knows the errors: the gap is a share of what 8 bits can save at most.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from tools import circumstances

from trtq.calibrators.batches import Batches
from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.mixed_precision import DataSize, EffectMeter, Forms, Step, choose_layers
from trtq.pipeline.judge.sensitivity import Distance, Effect

_GATE = AccuracySpec(min_cosine=-1.0, max_drop=1.0)
_MARGIN = 0.9
"""The points that the search uses up."""
_OVERHEAD = 0.002
"""What it adds to the cost of each step."""
_SIZE = DataSize(num_feeds=8, num_samples=64)
_SHAPES = ((12, 1), (12, 2), (40, 2), (60, 1), (97, 2))
"""Layers, and formats of 8 bits: ViT-S has 97 layers."""
_POWERS = (0.5, 0.75, 1.0)
_CASES = 40
_GRID = 4000

Numbers = Mapping[str, Mapping[str, float]]


@dataclass
class MadeUp(EffectMeter):
    """A model of which the errors are known.

    Attributes:
        errors: Of each layer in each format; 1 loses one point.
        told: The same, as they are measured alone.
        power: Of the error that the score falls with.
    """

    errors: Numbers = field(default_factory=dict)
    told: Numbers = field(default_factory=dict)
    power: float = 1.0

    def __post_init__(self) -> None:
        """Has no session to share."""

    def measure_alone(self, pairs: Sequence[Step], batches: Batches) -> dict[Step, Effect]:
        """Returns what is told of the error, at the cost of eight samples for each."""
        self.samples_run += 9 * len(pairs)
        return {pair: _effect(self.told[pair.layer][pair.form], None) for pair in pairs}

    def measure_forms(
        self, mixtures: Mapping[str, Forms], batches: Batches
    ) -> tuple[Mapping[str, Effect], float | None]:
        """Returns the sums of the errors."""
        self.samples_run += _SIZE.num_samples * (len(mixtures) + 1)
        sums = {name: _sum(self.errors, forms) for name, forms in mixtures.items()}
        return {name: _effect(total, 1 - total**self.power / 100) for name, total in sums.items()}, 1.0


def main() -> None:
    """Prints the gap for each shape and power, and writes them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    rows = []
    for shape in _SHAPES:
        for power in _POWERS:
            gaps, passes = zip(*(measure(*shape, power, case) for case in range(_CASES)), strict=True)
            rows.append(
                {"layers": shape[0], "formats": shape[1], "power": power}
                | {"gap": round(statistics.mean(gaps), 4), "gap_90": round(sorted(gaps)[-_CASES // 10], 4)}
                | {"passes": round(statistics.mean(passes), 1)}
            )
            print(json.dumps(rows[-1]), flush=True)
    if given.output is not None:
        given.output.write_text(json.dumps({**circumstances(["trtq"]), "rows": rows}, indent=1) + "\n")


def measure(num_layers: int, num_formats: int, power: float, case: int) -> tuple[float, float]:
    """Returns the gap of one search, and its passes over both halves of the data."""
    rng = np.random.default_rng((num_layers, num_formats, case))
    errors, costs = make_up(rng, num_layers, num_formats)
    told = {
        layer: {form: e * rng.lognormal(0, 0.25) for form, e in own.items()} for layer, own in errors.items()
    }
    meter = MadeUp(cast(Any, None), lambda forms: forms, errors=errors, told=told, power=power)
    choice = choose_layers(meter, costs, _GATE, cast(Batches, _Unread()), _SIZE)
    most = _MARGIN ** (1 / power)
    saved = sum(own["fp16"] - own["int8"] for own in costs.values())
    gap = (_price(costs, choice.forms()) - find_least_cost(errors, costs, most)) / saved
    return gap, meter.samples_run / (2 * _SIZE.num_samples)


def make_up(rng: np.random.Generator, num_layers: int, num_formats: int) -> tuple[Numbers, Numbers]:
    """Returns the errors of layers in 8 bits, two to six times what is allowed together, and their costs."""
    costs, errors = rng.lognormal(0, 1, num_layers), rng.lognormal(0, 1.5, num_layers)
    costs, errors = costs / costs.sum(), errors * rng.uniform(2, 6) / errors.sum()
    forms = ("int8", "fp8")[:num_formats]
    of_others = errors * rng.lognormal(-0.3, 0.8, num_layers)
    names = [f"layer{index}" for index in range(num_layers)]
    return (
        {
            name: dict(zip(forms, map(float, own), strict=False))
            for name, own in zip(names, np.stack([errors, of_others], axis=1), strict=True)
        },
        {
            name: {**dict.fromkeys(forms, float(cost) / 2), "fp16": float(cost)}
            for name, cost in zip(names, costs, strict=True)
        },
    )


def find_least_cost(errors: Numbers, costs: Numbers, most: float) -> float:
    """Returns the cost of the cheapest mixture of at most this error (dynamic programming over the error)."""
    least = np.zeros(_GRID + 1)  # by the error so far, rounded up
    for layer, own in costs.items():
        found = np.full(_GRID + 1, math.inf)
        for form in own:
            used = math.ceil(errors[layer].get(form, 0.0) / most * _GRID)
            if used <= _GRID:
                after = least[: _GRID + 1 - used] + _price({layer: own}, {layer: form})
                found[used:] = np.minimum(found[used:], after)
        least = found
    return float(least[_GRID])


def _price(costs: Numbers, forms: Forms) -> float:
    return sum(costs[layer][form] + _OVERHEAD * (form != "int8") for layer, form in forms.items())


def _sum(errors: Numbers, forms: Forms) -> float:
    return sum(errors[layer].get(form, 0.0) for layer, form in forms.items())


def _effect(error: float, score: float | None) -> Effect:
    noise = error / 100
    return Effect(
        {"y": Distance(1 / math.sqrt(1 + noise), -10 * math.log10(noise) if noise else math.inf)}, score
    )


class _Unread:
    """Stands for data that nobody reads."""

    def take_every(self, start: int, step: int) -> _Unread:
        return self


if __name__ == "__main__":
    main()
