"""Ranges are refused for a model that has other tensors or channels than the one that was calibrated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_watcher import RecordingWatcher

from trtq.calibrators.ranges import Channels, Range, Ranges, Shapes
from trtq.errors import UsageError
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate.data import place_layers
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.quantize.fit import check_fit

_RANGE = Range(1.0, -1.0, 1.0)
_SHAPE = Shapes((1, 32), (8, 32), (8, 32))


@pytest.fixture
def check(path_of: Callable[..., Path]) -> Callable[..., list[str]]:
    weights = {"w": np.ones((32, 64), np.float32), "v": np.ones((64, 32), np.float32)}
    text = "g (float[N,32] x) => (float[N,32] y) { [a] h = MatMul (x, w) [b] y = MatMul (h, v) }"
    graph, watcher = load(path_of(text, **weights), min_opset=19), RecordingWatcher()

    def run(tensors: tuple[str, ...] = ("x", "h"), **given: Any) -> list[str]:
        ranges = Ranges(dict.fromkeys(tensors, _RANGE), "minmax", "0", "x.npz", 8, **given)
        check_fit(ranges, graph, place_layers(graph, ModelSpec(), Target(), watcher), watcher)
        return watcher.warnings

    return run


def test_ranges_of_another_file_of_the_model_are_taken(check: Callable[..., list[str]]) -> None:
    seen = Channels(mean=(0.0,) * 64)
    (warning,) = check(shapes={"x": _SHAPE}, channels={"h": seen})
    assert warning.startswith("the ranges were calibrated for another file than ")


def test_ranges_of_random_numbers_are_told(check: Callable[..., list[str]]) -> None:
    assert check(is_random=True)[0] == (
        "the ranges come from random numbers: the accuracy of what has them means nothing"
    )


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"tensors": ("a", "b")}, r"^the ranges hold nothing for tensor 'x' and 1 more; they were cal"),
        (
            {"shapes": {"x": Shapes((1, 16), (8, 16), (8, 16))}},
            r"^the ranges were calibrated for another model: its input 'x' had shape 8x16, and this one has "
            r"32 channels; calibrate again$",
        ),
        ({"shapes": {"x": Shapes((8,), (8,), (8,))}}, "its input 'x' had shape 8, and this one has 32 chan"),
        (
            {"channels": {"h": Channels(scale=(1.0,) * 48)}},
            "its tensor 'h' had 48 channels, and has 64 channels here",
        ),
    ],
)
def test_ranges_of_another_model_are_refused(
    check: Callable[..., list[str]], given: dict[str, Any], match: str
) -> None:
    with pytest.raises(UsageError, match=match):
        check(**given)
