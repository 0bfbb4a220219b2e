"""Tests of the small copies of the worst pictures."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.models.signature import TensorSpec
from trtq.pipeline.deliver.html.thumbnails import draw_thumbnails
from trtq.records import OutputComparison, WorstSample

SHADES = {"a.png": (250, 10, 10), "b.png": (10, 250, 10), "c.png": (10, 10, 250)}


@pytest.fixture
def pictures(tmp_path: Path) -> Batches:
    """Three pictures of one color each, in batches of two."""
    for name, color in SHADES.items():
        Image.new("RGB", (320, 160), color).save(tmp_path / name)
    return open_batches(str(tmp_path), [TensorSpec("x", "float32", ("N", 3, 160, 320))], 2)


def compared(*worst: tuple[int, str]) -> OutputComparison:
    samples = tuple(WorstSample(0.9, place, name) for place, name in worst)
    return OutputComparison("int8", "fp32", "y", 0.9, 7.5, 0.5, 0.1, None, 0, samples)


def test_the_worst_pictures_are_drawn_small_in_their_colors(pictures: Batches) -> None:
    drawn = draw_thumbnails(pictures, [compared((2, "c.png"), (0, "a.png")), compared((2, "c.png"))])
    assert [*drawn] == ["c.png", "a.png"]
    for name, text in drawn.items():
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert (image.format, image.size) == ("JPEG", (96, 48))
        assert np.abs(np.asarray(image).mean(axis=(0, 1)) - SHADES[name]).max() < 6


def test_three_of_a_comparison_and_twelve_in_all_are_drawn(tmp_path: Path) -> None:
    for place in range(40):
        Image.new("L", (8, 8), place).save(tmp_path / f"{place:02}.png")
    data = open_batches(str(tmp_path), [TensorSpec("x", "float32", ("N", 3, 8, 8))], 8)
    every = [(place, f"{place:02}.png") for place in range(40)]
    assert len(draw_thumbnails(data, [compared(*every[:6])])) == 3
    assert (
        len(draw_thumbnails(data, [compared(*every[start : start + 3]) for start in range(0, 36, 3)])) == 12
    )


def test_none_is_drawn_of_another_picture_or_of_no_picture(pictures: Batches, tmp_path: Path) -> None:
    assert draw_thumbnails(pictures, [compared((1, "c.png"), (1, ""), (7, "z.png"))]) == {}
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    arrays = open_batches(str(tmp_path / "x.npz"), [TensorSpec("x", "float32", ("N", 3, 8, 8))], 2)
    assert draw_thumbnails(arrays, [compared((1, "c.png"))]) == {}
    assert draw_thumbnails(None, [compared((1, "c.png"))]) == {}
