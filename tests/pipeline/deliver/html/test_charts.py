"""Tests of the geometry of charts, against places that are worked out by hand."""

from __future__ import annotations

import math

import pytest

from trtq.pipeline.deliver.html.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Tick,
    draw_bar,
    draw_histogram,
)
from trtq.pipeline.deliver.html.page_data import Clip, TensorSummary


def tensor_of(*counts: int, width: float = 0.5, amaxes: tuple[float, ...] = (1.0,)) -> TensorSummary:
    clips = [Clip(amax, 0.0, 40.0) for amax in amaxes]
    methods = {f"method {number}": clip for number, clip in enumerate(clips)}
    return TensorSummary("x", -1.0, 2.0, sum(counts), 0, counts, width, clips[0], methods)


def test_counts_are_drawn_on_a_logarithmic_axis() -> None:
    chart = draw_histogram(tensor_of(512, 16, 0, 1))
    assert chart is not None
    # log2 of twice the count is 10, 5 and 1 of 10; the plot is 100 high and ends at 124.
    assert (TOP, BOTTOM) == (24, 124)
    assert chart.area == "M0 124V24h1V74h1V124h1V114h1V124z"
    assert chart.bin_width == (RIGHT - LEFT) / 4


def test_equal_neighbours_are_one_step() -> None:
    chart = draw_histogram(tensor_of(4, 4, 4, 0, 0))
    assert chart is not None
    assert chart.area == "M0 124V24h3V124h2V124z"


def test_ranges_end_where_the_axis_says() -> None:
    chart = draw_histogram(tensor_of(9, 3, 2, 1, amaxes=(1.0, 2.0, 0.5, 7.0)))  # the axis goes to 2
    assert chart is not None
    middle = (LEFT + RIGHT) / 2
    assert chart.used == middle
    assert [mark.x for mark in chart.marks] == [middle, RIGHT, (LEFT + middle) / 2, RIGHT]
    assert len({mark.y for mark in chart.marks}) == 4  # so that none hides another one


@pytest.mark.parametrize(
    ("top", "texts"),
    [
        (2.0, ["0", "0.5", "1", "1.5", "2"]),
        (13.3, ["0", "5", "10"]),
        (0.007, ["0", "0.002", "0.004", "0.006"]),
    ],
)
def test_magnitudes_at_the_axis_are_round(top: float, texts: list[str]) -> None:
    chart = draw_histogram(tensor_of(3, 1, width=top / 2, amaxes=(top,)))
    assert chart is not None
    assert [tick.text for tick in chart.x_ticks] == texts
    assert chart.x_ticks[0] == Tick(LEFT, "0")


@pytest.mark.parametrize(
    ("highest", "texts"), [(1, ["1"]), (999, ["1", "10", "10²"]), (10**9, ["1", "10³", "10⁶", "10⁹"])]
)
def test_counts_at_the_axis_are_powers_of_ten(highest: int, texts: list[str]) -> None:
    chart = draw_histogram(tensor_of(highest))
    assert chart is not None
    assert [tick.text for tick in chart.y_ticks] == texts
    assert all(TOP <= tick.place <= BOTTOM for tick in chart.y_ticks)


@pytest.mark.parametrize("counts", [(), (0, 0)])
def test_a_tensor_of_zeros_has_no_chart(counts: tuple[int, ...]) -> None:
    assert draw_histogram(tensor_of(*counts)) is None


@pytest.mark.parametrize(
    ("value", "length"),
    [(30.0, 50.0), (0.0, 0.0), (-5.0, 0.0), (90.0, 100.0), (math.inf, 100.0), (math.nan, 0.0), (None, 0.0)],
)
def test_a_bar_stays_between_nothing_and_its_track(value: float | None, length: float) -> None:
    assert draw_bar(value, 60.0) == length
