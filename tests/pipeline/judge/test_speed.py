"""Tests of the speed gate, by hand-worked ratios."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from trtq.pipeline.judge.speed import (
    CONFIDENCE,
    LOOKS,
    bound_median,
    describe_speed,
    judge_speed,
    refuse_to_judge,
)

TEN = [1.30, 1.10, 1.20, 1.21, 1.22, 1.24, 1.24, 1.25, 1.26, 1.27]
FOUND = "int8 is 1.24 times as fast as fp32 (1.10 to 1.30 with 95% confidence, 10 rounds), the gate requires"


def test_the_interval_lies_between_the_ranks_of_the_sign_test() -> None:
    # of 10: 2 * (1 + 10) / 1024 = 2.1 %, and with the third from each end 2 * 56 / 1024 = 10.9 %
    assert bound_median(TEN, 0.05) == (1.20, 1.27)
    assert bound_median(TEN, 0.11) == (1.21, 1.26)
    assert bound_median(TEN, 0.02) == (1.10, 1.30)
    # of 20: 2 * (1 + 20 + 190 + 1140 + 4845) / 2**20 = 1.2 %, one more of each end 4.1 %
    assert bound_median(range(1, 21), 0.05 / 3) == (5, 16)


def test_too_few_ratios_have_no_interval() -> None:
    assert bound_median([1.0] * 5, 0.05) is None  # 2 / 32 is more than 5 %
    assert bound_median([1.0] * 6, 0.05) == (1.0, 1.0)
    assert bound_median([1.0], 0.9) is None


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draws = np.exp(np.random.default_rng(0).standard_t(2, size=(4000, 12)))  # skewed, with far outliers
    found = [bound_median(list(row), 0.05) for row in draws]
    held = np.mean([low <= 1.0 <= high for low, high in filter(None, found)])
    exact = 1 - 2 * sum(comb(12, count) for count in range(3)) / 2**12
    assert exact >= 0.95
    assert held == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(
    ("wanted", "verdict", "told"),
    [
        (1.1, "pass", ""),
        (
            1.11,
            "unverified",
            f"{FOUND} 1.11, which that does not decide; measure again, at rest, or longer with trtq bench "
            "--seconds",
        ),
        (1.3, "unverified", "the gate requires 1.3, which that does not decide"),
        (1.31, "fail", f"{FOUND} 1.31"),
    ],
)
def test_the_whole_interval_decides(wanted: float, verdict: str, told: str) -> None:
    found = judge_speed(TEN, wanted, "int8", "fp32")
    assert (found.verdict, found.low, found.high, found.rounds) == (verdict, 1.10, 1.30, 10)
    assert found.ratio == pytest.approx(1.24)
    assert told in "; ".join(found.reasons)
    assert bool(found.reasons) == (verdict != "pass")


def test_too_few_rounds_decide_nothing() -> None:
    found = judge_speed([2.0, 2.0, 2.0], 1.05, "int8", "fp32")
    assert (found.verdict, found.ratio, found.low, found.high) == ("unverified", 2.0, None, None)
    assert found.reasons == (
        "int8 is 2.00 times as fast as fp32 (3 rounds, too few for an interval), the gate requires "
        "1.05, which that does not decide; measure again, at rest, or longer with trtq bench --seconds",
    )


def test_what_holds_is_said_too() -> None:
    found = judge_speed(TEN, 1.05, "int8", "fp32")
    assert describe_speed(found) == f"{FOUND} 1.05"


def test_what_was_not_measured_is_unverified() -> None:
    found = refuse_to_judge("there is no GPU", 1.05, "int8 engine")
    assert (found.verdict, found.ratio, found.rounds) == ("unverified", None, 0)
    assert found.reasons == ("the speed of int8 engine is not known: there is no GPU",)


def test_looking_again_is_paid_for() -> None:
    ratios = [*range(1, 21)]
    found = judge_speed(ratios, 6.0, "a", "b")  # 6 to 15 hold with 95.9 %, for one look
    assert bound_median(ratios, 0.05) == (6, 15)
    assert (LOOKS, CONFIDENCE, found.low, found.high) == (3, 0.95, 5, 16)
