"""Perplexity and divergence against hand-worked numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.pipeline.judge.logits import LogitsMetrics, find_mask, find_tokens, measure_logits


def test_even_odds_of_four_have_a_perplexity_of_four() -> None:
    metrics = LogitsMetrics()
    even = np.zeros((2, 3, 4), np.float32)
    metrics.add(measure_logits(even, even, np.array([[0, 1, 2], [3, 3, 3]])))
    found = metrics.result("int4", "fp32", "logits")
    assert found.kl_nats == 0
    assert found.perplexity == pytest.approx(4)
    assert found.reference_perplexity == pytest.approx(4)


def test_the_divergence_of_two_coins() -> None:
    """KL((1/2, 1/2) || (3/4, 1/4)) = ln 2 - ln 3 / 2; the next token is the first with probability 3/4."""
    fair = np.zeros((1, 2, 2), np.float32)
    biased = np.log(np.array([[[3, 1], [3, 1]]], np.float32))
    metrics = LogitsMetrics()
    metrics.add(measure_logits(biased, fair, np.array([[1, 0]])))
    found = metrics.result("a", "b", "logits")
    assert found.kl_nats == pytest.approx(math.log(2) - math.log(3) / 2)
    assert found.perplexity == pytest.approx(4 / 3)
    assert found.reference_perplexity == pytest.approx(2)


@given(st.integers(0, 1000), st.floats(-50, 50))
def test_a_constant_added_to_all_logits_changes_nothing_and_batches_add_up(seed: int, shift: float) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.standard_normal((2, 4, 5, 9))
    ids = rng.integers(0, 9, (4, 5))
    whole, parts = LogitsMetrics(), LogitsMetrics()
    whole.add(measure_logits(ours, theirs, ids))
    parts.add(measure_logits(ours[:1] + shift, theirs[:1], ids[:1]))
    parts.add(measure_logits(ours[1:], theirs[1:] + shift, ids[1:]))
    first, second = whole.result("a", "b", "y"), parts.result("a", "b", "y")
    assert first.kl_nats >= 0
    assert second.kl_nats == pytest.approx(first.kl_nats, abs=1e-9)
    assert second.perplexity == pytest.approx(first.perplexity)


def test_impossible_tokens_of_the_reference_count_nothing() -> None:
    metrics = LogitsMetrics()
    masked = np.array([[[0, 0, -np.inf]]])
    metrics.add(measure_logits(np.zeros((1, 1, 3)), masked, np.array([[0]])))
    found = metrics.result("a", "b", "y")
    assert found.kl_nats == pytest.approx(math.log(3 / 2))
    assert math.isnan(found.perplexity)  # one token has no next one


def test_a_hopeless_model_has_an_infinite_perplexity() -> None:
    metrics = LogitsMetrics()
    sure = np.zeros((1, 2, 2))
    sure[..., 0] = 1000
    metrics.add(measure_logits(sure, sure, np.array([[1, 1]])))
    assert metrics.result("a", "b", "y").perplexity == math.inf


IDS = np.array([[1, 5, 2], [3, 0, 9]])


@pytest.mark.parametrize(
    ("output", "logits", "is_logits"),
    [
        ("logits", np.zeros((2, 3, 10), np.float32), True),
        ("lm_logits", np.zeros((2, 3, 10), np.float16), True),
        ("y", np.zeros((2, 3, 9000), np.float32), True),
        ("last_hidden_state", np.zeros((2, 3, 768), np.float32), False),
        ("logits", np.zeros((2, 3, 9), np.float32), False),  # 9 is no token of it
        ("logits", np.zeros((2, 4, 10), np.float32), False),
        ("logits", np.zeros((2, 10), np.float32), False),
        ("logits", np.zeros((2, 3, 10), np.int64), False),
    ],
)
def test_what_looks_like_logits(output: str, logits: np.ndarray, is_logits: bool) -> None:
    feed = {"attention_mask": np.ones((2, 3), np.int64), "ids": IDS, "x": np.ones((2, 3), np.float32)}
    assert find_tokens(output, logits, feed) == ("ids" if is_logits else None)


@pytest.mark.parametrize(
    ("names", "tokens"),
    [
        (("position_ids", "ids"), "ids"),
        (("token_type_ids", "input_ids"), "input_ids"),
        (("ids", "token_ids"), "token_ids"),
        (("words", "lengths"), None),  # no telling
        (("first_ids", "second_ids"), None),
        (("labels",), None),
        (("words",), "words"),
    ],
)
def test_which_input_holds_the_tokens(names: tuple[str, ...], tokens: str | None) -> None:
    logits = np.zeros((2, 3, 10), np.float32)
    assert find_tokens("logits", logits, dict.fromkeys(names, IDS)) == tokens


def test_padding_is_no_token() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 1, 5, 9))
    ids = np.array([[0, 4, 5, 6, 0]])
    inputs = {"ids": ids, "causal_mask": ids * 0 + 1, "attention_mask": np.array([[0, 1, 1, 1, 0]])}
    padded, bare = LogitsMetrics(), LogitsMetrics()
    padded.add(measure_logits(ours, theirs, ids, find_mask(ids, inputs)))
    bare.add(measure_logits(ours[:, 1:4], theirs[:, 1:4], ids[:, 1:4]))
    assert padded.result("a", "b", "y") == bare.result("a", "b", "y")
    assert find_mask(ids, {"mask": ids, "other_mask": np.ones((5, 5))}) is None  # not of 0 and 1, not (N, T)


def test_numbers_outside_the_vocabulary_are_no_tokens() -> None:
    metrics = LogitsMetrics()
    metrics.add(measure_logits(np.zeros((1, 2, 4)), np.zeros((1, 2, 4)), np.array([[-100, 4]])))
    found = metrics.result("a", "b", "y")
    assert math.isnan(found.kl_nats)
    assert math.isnan(found.perplexity)


def test_agreement_is_told_by_the_place_in_the_sequence() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((3, 6, 40))
    candidate = reference.copy()
    candidate[0, 3] = -candidate[0, 3]
    candidate[:, 5] += rng.standard_normal((3, 40))
    mask = np.ones((3, 6), bool)
    mask[2, 5] = False
    metrics = LogitsMetrics()
    for index in range(3):  # one at a time, the first shorter than the others
        length = 4 if index == 0 else 6
        part = (slice(index, index + 1), slice(length))
        metrics.add(measure_logits(candidate[part], reference[part], np.ones((1, length), int), mask[part]))
    found = metrics.result("a", "b", "y")
    spans = {(item.first, item.last): item for item in found.spans}
    assert [*spans] == [(0, 0), (1, 1), (2, 3), (4, 5)]
    assert (spans[0, 0].kl_nats, spans[0, 0].top1, spans[0, 0].top5) == (0, 1, 1)
    assert spans[2, 3].top1 == pytest.approx(5 / 6)
    assert 5 / 6 <= spans[2, 3].top5 < 1
    five = [
        len({*np.argsort(a)[-5:]} & {*np.argsort(b)[-5:]}) / 5
        for a, b in zip(candidate[1:2, 5], reference[1:2, 5], strict=True)
    ]
    assert spans[4, 5].top5 == pytest.approx((1 + 1 + five[0]) / 3)
    counts = [3, 3, 6, 3]
    for name in ("kl_nats", "top1", "top5"):
        mean = np.average([getattr(item, name) for item in found.spans], weights=counts)
        assert getattr(found, name) == pytest.approx(mean)
