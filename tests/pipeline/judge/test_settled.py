"""Tests that data is left unread only where the rest of it cannot change that a candidate fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up import batches_of
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.compare import Comparison, compare_models
from trtq.pipeline.judge.gate import is_settled, judge, list_checks
from trtq.pipeline.judge.metrics import measure_batch
from trtq.pipeline.judge.settled import FailureRule, find_most_samples
from trtq.pipeline.judge.tally import Tally
from trtq.workers import Threads, Workers

_GATE = AccuracySpec(min_cosine=0.99)
_RULE = FailureRule("int8", _GATE.min_cosine, least_samples=4)
_DATA = replace(batches_of([np.zeros((4, 8), np.float32)] * 10), feed_samples=4)
_GOOD = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def _spoiled(number: int, value: float = 0.0) -> NDArray[np.float32]:
    """Returns the good samples, of which so many begin with a half of zeros, or of another value."""
    rows = _GOOD.copy()
    rows[:number, :4] = value
    return rows


def _seen(*answers: NDArray[np.float32], candidate: str = "int8", reference: str = "fp32") -> Tally:
    tally = Tally()
    for answer in answers:
        tally.add([((candidate, reference, ("y", "")), measure_batch(answer, _GOOD, 4))])
    return tally


@pytest.mark.parametrize(("number", "has_failed"), [(2, False), (3, True)])
def test_more_than_a_twentieth_of_all_samples_is_enough(number: int, has_failed: bool) -> None:
    assert find_most_samples(_DATA) == 44
    assert _RULE.has_failed(_seen(_spoiled(number)), _DATA) == has_failed


def test_what_has_failed_fails_however_good_the_rest_is() -> None:
    tally = _seen(_spoiled(3), *[_GOOD] * 10)
    (found,) = tally.compare_outputs([""] * 44)
    assert found.judged_cosine < _GATE.min_cosine


def test_a_value_that_is_not_finite_is_enough_whatever_the_number_of_samples() -> None:
    tally = _seen(_spoiled(1, np.nan))
    assert _RULE.has_failed(tally, replace(_DATA, num_samples=None))
    (found,) = _seen(_spoiled(1, np.nan), *[_GOOD] * 10).compare_outputs([""] * 44)
    assert not found.judged_cosine >= _GATE.min_cosine


@pytest.mark.parametrize(
    ("data", "open_outputs"),
    [
        (replace(_DATA, num_samples=None), ()),
        (replace(_DATA, feed_samples=None), ()),
        (_DATA, ("y",)),
    ],
)
def test_nothing_is_told_of_data_without_end_or_outputs_of_any_size(
    data: Batches, open_outputs: tuple[str, ...]
) -> None:
    assert not _RULE.has_failed(_seen(_spoiled(4)), data, open_outputs)


def test_parts_that_may_have_more_noise_end_nothing() -> None:
    assert not _RULE.has_failed(_seen(_spoiled(4)), _DATA, noisy=(("y", ""),))
    assert _RULE.has_failed(_seen(_spoiled(1, np.nan)), _DATA, noisy=(("y", ""),))


def test_what_holds_on_the_data_that_was_read_does_not_pass() -> None:
    good, bad = (_seen(*answers).compare_outputs([""] * 8)[0] for answers in ([_GOOD] * 2, [_spoiled(4)] * 2))
    found = Comparison((good, replace(bad, output="z")), {}, 8, "made up", is_settled=True)
    first, second = list_checks(found, _GATE, "int8")
    assert (first.outcome, second.outcome) == ("unverified", "fail")
    assert first.found.endswith("; the rest of the data was not read")
    assert is_settled(judge(found, _GATE, candidate="int8").reasons)
    whole = replace(found, is_settled=False)
    assert list_checks(whole, _GATE, "int8")[0].outcome == "pass"
    assert not is_settled(judge(whole, _GATE, candidate="int8").reasons)


def test_some_samples_are_read_anyway() -> None:
    rule = replace(_RULE, least_samples=5)
    assert not rule.has_failed(_seen(_spoiled(4)), _DATA)
    assert rule.has_failed(_seen(_spoiled(4), _GOOD), _DATA)


@pytest.mark.parametrize("names", [("fp16", "fp32"), ("int8", "fp16")])
def test_other_pairs_decide_nothing(names: tuple[str, str]) -> None:
    assert not _RULE.has_failed(_seen(_spoiled(4), candidate=names[0], reference=names[1]), _DATA)


@pytest.mark.parametrize("workers", [None, Threads(2)])
@pytest.mark.parametrize(("is_bad", "read"), [(True, 4), (False, 40)])
def test_a_comparison_ends_with_the_feed_that_settles_it(
    path_of: Callable[..., Path], is_bad: bool, read: int, workers: Workers | None
) -> None:
    text = "g (float[N, 4] x) => (float[N, 3] y) {{ y = MatMul (x, {}) }}"
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    models = {
        "fp32": path_of(text.format("w"), w=weight),
        "int8": path_of(text.format("v"), v=weight * (-1 if is_bad else 1)),
    }
    rows = np.random.default_rng(1).standard_normal((10, 4, 4)).astype(np.float32)
    data, told = replace(batches_of(list(rows)), feed_samples=4), list[int]()
    pairs = [("int8", "fp32")]
    found = compare_models(models, pairs, data, progress=told.append, failure=_RULE, workers=workers)
    assert (found.num_samples, sum(told), found.is_settled) == (read, read, is_bad)
    verdict = judge(found, _GATE, candidate="int8")
    assert verdict.outcome == ("fail" if is_bad else "pass")
    said = "only the first 4 samples of made up were read: no others can change this"
    assert (said in verdict.reasons) == is_bad
    whole = compare_models(models, pairs, data)
    assert judge(whole, _GATE, candidate="int8").outcome == verdict.outcome
