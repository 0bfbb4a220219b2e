"""Tests of the gate."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.gate import Verdict, judge, judge_pair, list_checks
from trtq.pipeline.judge.tally import UnevenOutput
from trtq.records import OutputComparison, WorstSample, cosine_of_noise

_GATE = AccuracySpec(min_cosine=0.99, max_drop=1.0)


def _pair(
    candidate: str, reference: str, cosine: float, *, nonfinite: int = 0, output: str = "y"
) -> OutputComparison:
    worst = tuple(WorstSample(cosine - 0.01 * (4 - place), 10 + place) for place in range(4))
    return OutputComparison(candidate, reference, output, cosine, 20.0, 1.0, 0.1, None, nonfinite, worst)


def _comparison(*outputs: OutputComparison, **accuracy: float) -> Comparison:
    return Comparison(outputs, accuracy, 100, "evaluation.npz")


def _all(int8: float, fp16: float, int8_to_fp16: float) -> Comparison:
    return _comparison(
        _pair("int8", "fp32", int8), _pair("int8", "fp16", int8_to_fp16), _pair("fp16", "fp32", fp16)
    )


def test_near_outputs_pass() -> None:
    assert judge(_all(0.995, 0.9999, 0.995), _GATE, candidate="int8") == Verdict("pass", ())


def test_the_gate_itself_passes() -> None:
    assert judge(_all(0.99, 0.99, 0.99), _GATE, candidate="int8").outcome == "pass"


def test_a_far_output_fails_with_the_output_the_numbers_and_the_worst_samples() -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.95), _pair("int8", "fp32", 0.999, output="z"))
    assert judge(comparison, _GATE, candidate="int8") == Verdict(
        "fail",
        (
            "output 'y' has cosine 0.9500 to fp32, the gate requires 0.99; worst samples: 10 "
            "(0.9100), 11 (0.9200), 12 (0.9300)",
        ),
    )


def test_a_good_fp16_is_a_second_reference() -> None:
    verdict = judge(_all(0.995, 0.9999, 0.98), _GATE, candidate="int8")
    assert verdict.outcome == "fail"
    assert [reason[:40] for reason in verdict.reasons] == ["output 'y' has cosine 0.9800 to fp16, th"]


def test_a_bad_fp16_is_no_reference() -> None:
    assert judge(_all(0.995, 0.9, 0.9), _GATE, candidate="int8") == Verdict("pass", ())


@pytest.mark.parametrize("fp16", [0.9, math.nan])
def test_a_bad_fp16_is_blamed_for_a_bad_int8(fp16: float) -> None:
    verdict = judge(_all(0.91, fp16, 0.999), _GATE, candidate="int8")
    assert verdict.outcome == "fail"
    assert len(verdict.reasons) == 2
    assert verdict.reasons[0].startswith("output 'y' has cosine 0.9100 to fp32")
    assert verdict.reasons[1] == (
        f"FP16 alone has cosine {fp16:.4f} to fp32 on output 'y': quantization is not the cause; keep layers "
        f"in FP32 with --keep-fp32, or the whole rest with --high-precision fp32"
    )


def test_fp16_is_not_blamed_for_what_an_inexact_repair_did_to_it_too() -> None:
    verdict = judge(_all(0.91, 0.9, 0.999), _GATE, candidate="int8", is_inexact=True)
    assert verdict.reasons[1:] == (
        "the repaired model has cosine 0.9000 to fp32 on output 'y' with the rest in FP16 too: the "
        "repairs that round again may be the cause; export the model so that it needs none",
    )


def test_a_bad_fp16_that_is_judged_itself_is_not_blamed_twice() -> None:
    comparison = _comparison(_pair("fp16", "fp32", 0.9))
    verdict = judge(comparison, _GATE, candidate="fp16")
    assert verdict.outcome == "fail"
    assert len(verdict.reasons) == 1


def test_fp16_is_not_judged_by_what_int8_does() -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.5), _pair("fp16", "fp32", 0.9999))
    assert judge(comparison, _GATE, candidate="fp16").outcome == "pass"


def test_values_that_are_not_finite_fail_with_their_number() -> None:
    comparison = _comparison(_pair("int8", "fp32", math.nan, nonfinite=7))
    (reason,) = judge(comparison, _GATE, candidate="int8").reasons
    assert reason.startswith("output 'y' has 7 NaN or infinite values where fp32 has numbers; worst")


def test_a_reference_that_is_not_finite_fails() -> None:
    verdict = judge(_comparison(_pair("int8", "fp32", math.nan)), _GATE, candidate="int8")
    assert verdict == Verdict(
        "fail",
        (
            "output 'y' cannot be compared: its values in fp32 are NaN, infinite or too large; "
            "check the model and its data",
        ),
    )


def test_lost_accuracy_fails_with_the_numbers() -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.999), fp32=0.975, int8=0.96, fp16=0.9)
    assert judge(comparison, _GATE, candidate="int8") == Verdict(
        "fail", ("accuracy falls from 97.50% (fp32) to 96.00%, by 1.50 points; the gate allows 1",)
    )


@pytest.mark.parametrize("int8", [0.96, 0.97, 0.99])
def test_a_drop_up_to_the_gate_passes(int8: float) -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.999), fp32=0.97, int8=int8)
    assert judge(comparison, _GATE, candidate="int8").outcome == "pass"


def test_a_bad_fp16_is_blamed_for_lost_accuracy_too() -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.999), _pair("fp16", "fp32", 0.5), fp32=0.97, int8=0.5)
    verdict = judge(comparison, _GATE, candidate="int8")
    assert [reason[:20] for reason in verdict.reasons] == ["accuracy falls from ", "FP16 alone has cosin"]


def test_without_the_accuracy_of_both_nothing_is_said_of_it() -> None:
    comparison = _comparison(_pair("int8", "fp32", 0.999), int8=0.1)
    assert judge(comparison, _GATE, candidate="int8").outcome == "pass"


def test_without_a_comparison_nothing_is_verified() -> None:
    assert judge(None, _GATE, candidate="int8") == Verdict(
        "unverified", ("there was no float model or no data to compare with",)
    )


@pytest.mark.parametrize("candidate", ["engine", "int8"])
def test_a_candidate_that_was_not_run_is_not_judged(candidate: str) -> None:
    comparison = _comparison(_pair("fp16", "fp32", 0.999), fp32=0.9, fp16=0.9)
    assert judge(comparison, _GATE, candidate=candidate) == Verdict(
        "unverified", (f"{candidate} was not run, so its accuracy is unknown",)
    )


def test_the_engine_is_judged_like_a_model() -> None:
    comparison = _comparison(
        _pair("engine", "fp32", 0.5), _pair("int8", "fp32", 0.999), _pair("fp16", "fp32", 1)
    )
    verdict = judge(comparison, _GATE, candidate="engine")
    assert verdict.outcome == "fail"
    assert verdict.reasons[0].startswith("output 'y' has cosine 0.5000 to fp32")
    assert judge(comparison, _GATE, candidate="int8").outcome == "pass"


def test_random_data_verifies_nothing() -> None:
    assert judge(_all(0.1, 0.1, 0.1), _GATE, candidate="int8", is_random=True) == Verdict(
        "unverified", ("the data was random, so its accuracy means nothing",)
    )


def test_a_pair_of_any_names_is_judged() -> None:
    near = _comparison(_pair("b.onnx", "a.onnx", 0.999), **{"a.onnx": 0.9, "b.onnx": 0.9})
    assert judge_pair(near, _GATE) == Verdict("pass", ())
    far = _comparison(_pair("b.onnx", "a.onnx", 0.5), **{"a.onnx": 0.9, "b.onnx": 0.8})
    verdict = judge_pair(far, _GATE)
    assert verdict.outcome == "fail"
    assert [reason[:32] for reason in verdict.reasons] == [
        "output 'y' has cosine 0.5000 to ",
        "accuracy falls from 90.00% (a.on",
    ]


def test_a_pair_without_labels_is_judged_by_its_outputs() -> None:
    assert judge_pair(_comparison(_pair("b", "a", 0.999)), _GATE).outcome == "pass"
    assert judge_pair(_comparison(_pair("b", "a", math.nan)), _GATE).outcome == "fail"


def test_a_metric_decides_where_the_output_that_it_reads_has_other_sizes() -> None:
    uneven = UnevenOutput("int8", "fp32", "boxes", 7)
    for score, outcome in ((0.9, "pass"), (0.2, "fail")):
        accuracy = {"fp32": 0.9, "int8": score}
        found = Comparison((), accuracy, 100, metric="own.py:map", scored=("boxes",), uneven=(uneven,))
        assert judge_pair(found, _GATE).outcome == outcome
        assert judge(found, _GATE, candidate="int8").outcome == outcome
        assert [check.outcome for check in list_checks(found, _GATE)] == [outcome]


def test_a_metric_does_not_vouch_for_other_sizes_of_what_it_does_not_read() -> None:
    uneven = UnevenOutput("int8", "fp32", "boxes", 7)
    found = replace(_comparison(_pair("int8", "fp32", 0.999), fp32=0.9, int8=0.9), scored=("y",))
    assert judge(found, _GATE, candidate="int8").outcome == "pass"
    told = (
        "output 'boxes' of int8 differs in size from that of fp32 in 7 samples, because its shape "
        "depends on values, so it was not compared; give a custom metric that reads it, or a model "
        "that ends before that",
    )
    for item in (replace(found, uneven=(uneven,)), replace(found, outputs=(), uneven=(uneven,))):
        assert judge(item, _GATE, candidate="int8") == Verdict("unverified", told)
        assert judge_pair(item, _GATE) == Verdict("unverified", told)


def test_fp16_is_not_blamed_where_int8_is_much_worse() -> None:
    comparison = _comparison(
        replace(_pair("int8", "fp32", 0.91), sqnr_db=8.0), replace(_pair("fp16", "fp32", 0.98), sqnr_db=14.5)
    )
    (reason,) = judge(comparison, _GATE, candidate="int8").reasons
    assert reason.startswith("output 'y' has cosine 0.9100 to fp32")


def test_a_drop_of_another_metric_is_told_by_its_name() -> None:
    comparison = replace(_all(0.999, 0.9999, 0.999), accuracy={"fp32": 0.912, "fp16": 0.91, "int8": 0.85})
    own = judge(replace(comparison, metric="a/own.py:f1"), _GATE, candidate="int8").reasons
    assert own == ("f1 of own.py falls from 0.9120 (fp32) to 0.8500, by 6.20 points; the gate allows 1",)
    (reason,) = judge(replace(comparison, metric="top-5"), _GATE, candidate="int8").reasons
    assert reason.startswith("top-5 accuracy falls from 91.20% (fp32) to 85.00%")


def test_a_loud_sample_does_not_hide_the_others() -> None:
    base = _pair("int8", "fp32", 0.9999)
    half = replace(base, median_cosine=0.98, low_cosine=0.5)
    assert judge(_comparison(half), _GATE, candidate="int8") == Verdict(
        "fail",
        (
            "output 'y' has cosine 0.9999 to fp32 as a whole, but 0.9800 or less in half of its "
            "samples, where the gate requires 0.99; worst samples: 10 (0.9599), 11 (0.9699), 12 "
            "(0.9799)",
        ),
    )
    few = replace(base, low_cosine=0.95)
    (reason,) = judge(_comparison(few), _GATE, candidate="int8").reasons
    assert (
        "as a whole, but 0.9500 or less in a twentieth of its samples, where the gate requires 0.96" in reason
    )
    assert judge(_comparison(replace(base, low_cosine=0.9601)), _GATE, candidate="int8").outcome == "pass"


def test_values_that_are_judged_apart_must_be_near_too() -> None:
    output = replace(_pair("int8", "fp32", 0.9999), apart=7, apart_cosine=0.5)
    (reason,) = judge(_comparison(output), _GATE, candidate="int8").reasons
    assert (
        "but 0.5000 on the 7 values that hardly change or rule classes out, where the gate requires 0.99"
        in reason
    )


def test_a_doubt_leaves_what_passes_unverified_and_what_fails_failed() -> None:
    doubt = "the metric says 0"
    good, bad = (replace(_all(item, 0.9999, 0.999), doubts=(doubt,)) for item in (0.999, 0.5))
    assert judge(good, _GATE, candidate="int8") == Verdict("unverified", (doubt,))
    assert judge(bad, _GATE, candidate="int8").outcome == "fail"
    assert judge_pair(replace(_comparison(_pair("b", "a", 0.999)), doubts=(doubt,)), _GATE) == Verdict(
        "unverified", (doubt,)
    )


def test_one_sample_is_no_evidence() -> None:
    one = replace(_all(0.999, 0.9999, 0.999), num_samples=1)
    assert judge(one, _GATE, candidate="int8") == Verdict(
        "unverified", ("only one sample was compared; give more data",)
    )


def test_samples_that_all_give_the_same_are_no_evidence() -> None:
    same = _comparison(replace(_pair("int8", "fp32", 0.999), varies=False))
    assert judge(same, _GATE, candidate="int8") == Verdict(
        "unverified",
        ("the outputs of fp32 are the same for all 100 samples, so they prove nothing; check the data",),
    )
    equal = _comparison(replace(_pair("int8", "fp32", 1.0), varies=False, max_abs=0.0, sqnr_db=math.inf))
    assert judge(equal, _GATE, candidate="int8").outcome == "unverified"


def test_nothing_at_all_is_no_evidence() -> None:
    nothing = Verdict("unverified", ("nothing was compared",))
    assert judge_pair(Comparison(), _GATE) == nothing
    assert judge_pair(replace(_comparison(_pair("b", "a", 1.0)), num_samples=0), _GATE) == nothing


def test_an_output_that_never_changes_is_not_vouched_for_by_another() -> None:
    changing = replace(_pair("int8", "fp32", 1.0, output="copy"), sqnr_db=math.inf, max_abs=0.0)
    constant = replace(_pair("int8", "fp32", 0.999), varies=False)
    assert judge(_comparison(constant, changing), _GATE, candidate="int8") == Verdict(
        "unverified",
        ("output 'y' of fp32 is the same for all samples, so it proves nothing; is that right?",),
    )
    rounded = replace(constant, sqnr_db=70.0)  # a constant in FP16
    assert judge(_comparison(rounded, changing), _GATE, candidate="int8").outcome == "pass"


def test_a_dead_output_fails_however_near_its_offset_is() -> None:
    dead = replace(_pair("int8", "fp32", 0.999), is_dead=True)
    assert judge(_comparison(dead), _GATE, candidate="int8") == Verdict(
        "fail", ("output 'y' of int8 is the same for all samples, where that of fp32 differs",)
    )


def test_noise_as_large_as_what_changes_is_no_evidence_without_labels() -> None:
    lost = replace(_pair("int8", "fp32", 0.999), change_db=-0.04)
    both = _comparison(lost, replace(_pair("int8", "fp16", 0.999), change_db=-1.0))
    assert judge(both, _GATE, candidate="int8") == Verdict(
        "unverified",
        (
            "the error of int8 on output 'y' is as large as the difference between samples (-0.0 dB), "
            "so a constant output would score as well; give samples that differ more, or labels",
        ),
    )
    scored = replace(both, accuracy={"fp32": 0.9, "int8": 0.9}, scored=("y",))
    assert judge(scored, _GATE, candidate="int8").outcome == "pass"
    another = replace(scored, scored=("classes",))
    assert judge(another, _GATE, candidate="int8").outcome == "unverified"
    nearly = judge(_comparison(replace(lost, change_db=5.9)), _GATE, candidate="int8")
    assert "is nearly as large as the difference between samples (5.9 dB)" in nearly.reasons[0]
    near = _comparison(replace(lost, change_db=6.1))
    assert judge(near, _GATE, candidate="int8").outcome == "pass"
    loose = replace(_GATE, min_cosine=0.9)  # allows as much noise in the whole
    assert judge(_comparison(replace(lost, change_db=1.1)), loose, candidate="int8").outcome == "pass"


def test_a_gate_that_wants_equal_outputs_says_what_fails() -> None:
    soft = replace(_pair("int8", "fp32", 1.0), sqnr_db=40.0)
    verdict = judge(_comparison(soft), replace(_GATE, min_cosine=1.0), candidate="int8")
    assert "too large or too small: 40.0 dB, where the gate requires inf" in verdict.reasons[0]


@pytest.mark.parametrize(("cosine", "outcome"), [(0.76, "pass"), (0.74, "fail"), (0.5, "fail")])
def test_entries_that_are_lost_beside_louder_ones_fail(cosine: float, outcome: str) -> None:
    output = replace(_pair("int8", "fp32", 0.9999), entry_cosine=cosine, entry=(3, 32))
    for gate in (_GATE, replace(_GATE, min_cosine=0.9)):
        verdict = judge(_comparison(output), gate, candidate="int8")
        assert verdict.outcome == outcome
        words = f"{cosine:.4f} by the noise in some of its channels, tokens or columns, such as index 3 of 32"
        assert all(words in reason for reason in verdict.reasons)


def test_where_the_change_is_not_known_only_equal_outputs_pass() -> None:
    unknown = replace(_pair("int8", "fp32", 0.999), is_change_known=False)
    verdict = judge(_comparison(unknown), _GATE, candidate="int8")
    assert verdict == Verdict(
        "unverified",
        (
            "how much output 'y' of fp32 differs between samples is not known; give labels, or samples of "
            "one shape",
        ),
    )
    equal = replace(unknown, sqnr_db=math.inf)
    assert judge(_comparison(equal), _GATE, candidate="int8").outcome == "pass"


def test_a_reference_that_is_mostly_not_finite_is_no_evidence() -> None:
    verdict = judge(_comparison(replace(_pair("int8", "fp32", 1.0), known=0.001)), _GATE, candidate="int8")
    assert verdict.outcome == "unverified"
    assert verdict.reasons == (
        "output 'y' of fp32 is NaN or infinite but for 0.1%; check the model and its data",
    )
    most = replace(_pair("int8", "fp32", 1.0), known=0.5)
    assert judge(_comparison(most), _GATE, candidate="int8").outcome == "pass"


def test_values_that_are_too_small_or_too_large_fail_though_their_cosine_is_1() -> None:
    base = _pair("int8", "fp32", 1.0)
    third = replace(base, sqnr_db=20 * math.log10(3 / 2))  # a third of each value
    (reason,) = judge(_comparison(third), _GATE, candidate="int8").reasons
    told = (
        "has cosine 1.0000 to fp32 as a whole, but too large or too small: 3.5 dB, where the gate "
        "requires 11.0"
    )
    assert told in reason
    assert judge(_comparison(replace(base, sqnr_db=11.0)), _GATE, candidate="int8").outcome == "pass"
    assert judge(_comparison(replace(base, sqnr_db=10.9)), _GATE, candidate="int8").outcome == "fail"


@pytest.mark.parametrize(
    ("sqnr_db", "cosine"), [(math.inf, 1.0), (10 * math.log10(50), 0.99), (0.0, 0.5), (-math.inf, -1.0)]
)
def test_noise_has_a_cosine(sqnr_db: float, cosine: float) -> None:
    assert cosine_of_noise(sqnr_db) == pytest.approx(cosine)
