"""What the gate says of a class, of few samples and of what is added, where the whole output is near."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import judge
from trtq.records import LostClass, OutputComparison

_GATE = AccuracySpec(min_cosine=0.99, max_drop=1.0)
_OUTPUT = OutputComparison("int8", "fp32", "y", 0.9999, 20.0, 1.0, 0.1, None, 0, ())


def _compare(output: OutputComparison) -> Comparison:
    return Comparison((output,), {}, 100, "evaluation.npz")


def test_a_lost_class_fails_though_nearly_all_places_are_right() -> None:
    output = replace(_OUTPUT, lost=LostClass(4, 3, 595))
    verdict = judge(_compare(output), _GATE, candidate="int8")
    assert verdict.outcome == "fail"
    assert "has 0.9999 of its places as fp32 has them, but class 4 in 3 of 595 only; w" in verdict.reasons[0]


def test_large_numbers_of_a_few_samples_leave_the_others_unverified_unless_labels_tell() -> None:
    output = replace(_OUTPUT, quiet_change_db=1.2)
    verdict = judge(_compare(output), _GATE, candidate="int8")
    assert verdict.outcome == "unverified"
    assert "hide the others: on nine in ten the error of int8 is nearly as large as" in verdict.reasons[0]
    scored = replace(_compare(output), scored=(output.output,))
    assert judge(scored, _GATE, candidate="int8").outcome == "pass"


@pytest.mark.parametrize(("sqnr_db", "outcome"), [(2.9, "fail"), (7.0, "pass")])
def test_what_is_added_to_the_input_may_be_noisy_but_not_lost(sqnr_db: float, outcome: str) -> None:
    output = replace(_OUTPUT, cosine=0.9, part="n", is_added=True, sqnr_db=sqnr_db)
    verdict = judge(_compare(output), _GATE, candidate="int8")
    assert verdict.outcome == outcome
    words = (
        "what the model adds to its input or masks of it, has an SQNR of 2.9 dB to fp32, the gate requires 3"
    )
    assert all(words in reason for reason in verdict.reasons)
