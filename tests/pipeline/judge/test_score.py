"""Tests of how answers are scored: top-k by hand, and functions of the user's own with their faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Feed
from trtq.errors import DataError
from trtq.pipeline.judge.score import Labels, Scores, format_score, measure_scores, name_metric

Write = Callable[[str], str]


@pytest.fixture
def metric(tmp_path: Path) -> Write:
    """Writes a script with a function `f(outputs, labels)` and returns its name."""

    def write(body: str) -> str:
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        (tmp_path / "own.py").write_text(f"import numpy as np\nSEEN = []\ndef f(outputs, labels):\n{lines}\n")
        return f"{tmp_path / 'own.py'}:f"

    return write


def scored(
    labels: Labels, *batches: tuple[NDArray[Any], NDArray[Any] | None], models: tuple[str, ...] = ("fp32",)
) -> Scores:
    """Scores one output `y` of models that all say the same."""
    scores = Scores(labels, models)
    for output, wanted in batches:
        arrays = {"x": np.zeros((len(output), 2))} | ({} if wanted is None else {"labels": wanted})
        results = {name: {"y": output} for name in models}
        scores.add(measure_scores(labels, results, Feed(arrays, "a feed", len(output))))
    return scores


_SCORES = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]], np.float32)
_MORE_CLASSES = np.pad(_SCORES, ((0, 0), (0, 5)), constant_values=-1)


def test_top_1_and_top_5_count_places_and_of_equals_the_first() -> None:
    batches = (_MORE_CLASSES, np.array([0, 4, 0])), (_MORE_CLASSES, np.array([5, 0, 5]))
    scores = scored(Labels("labels"), *batches)
    assert scores.result() == {"fp32": 2 / 6}
    assert scores.top5() == {"fp32": 3 / 6}
    chosen = scored(Labels("labels", None, "top-5"), *batches)
    assert (chosen.result(), chosen.top5()) == ({"fp32": 3 / 6}, {})


def test_top_5_of_ten_classes_says_nothing() -> None:
    assert scored(Labels("labels"), (_MORE_CLASSES[:, :10], np.array([0, 4, 0]))).top5() == {}


def test_scores_that_are_not_finite_are_never_among_the_best() -> None:
    broken = np.full((1, 6), np.nan, np.float32)
    broken[0, 2] = 1
    assert scored(Labels("labels"), (broken, np.array([2]))).result() == {"fp32": 1.0}


def test_an_own_metric_gets_all_batches_joined(metric: Write) -> None:
    name = metric("assert outputs['y'].shape == (5, 6)\nreturn float((labels == [7, 8, 9, 7, 8]).all())")
    labels = np.array([7, 8, 9])
    batches = (_SCORES, labels), (_SCORES[:2], labels[:2])
    assert scored(Labels("labels", None, name), *batches, models=("fp32", "int8")).result() == {
        "fp32": 1.0,
        "int8": 1.0,
    }


def test_an_own_metric_may_do_without_labels_and_import_what_lies_beside_it(
    metric: Write, tmp_path: Path
) -> None:
    (tmp_path / "beside_own.py").write_text("ANSWER = 0.25\n")
    name = metric("from beside_own import ANSWER\nassert labels is None\nreturn np.float32(ANSWER)")
    assert scored(Labels(None, None, name), (_SCORES, None)).result() == {"fp32": 0.25}


@pytest.mark.parametrize(
    ("body", "read"),
    [
        ("return float(outputs['y'].any())", ("y",)),
        ("return float(outputs.get('z').any())", ("z",)),
        ("return float('y' in outputs and 'z' in list(outputs))", ()),
        ("return float(all(item.any() for item in outputs.values()))", ("y", "z")),
        ("return float({**outputs}['z'].any())", ("y", "z")),
    ],
)
def test_an_own_metric_scores_the_outputs_that_it_reads(
    metric: Write, body: str, read: tuple[str, ...]
) -> None:
    labels = Labels(None, None, metric(body))
    scores = Scores(labels, ("fp32",))
    results = {"fp32": {"y": _SCORES, "z": _SCORES}}
    scores.add(measure_scores(labels, results, Feed({"x": np.zeros((3, 2))}, "a feed", 3)))
    assert scores.result() == {"fp32": 1.0}
    assert scores.outputs == read


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"own\.py:f failed on the outputs of fp32: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", r"own\.py:f failed on the outputs of fp32: SystemExit: 3"),
        ("outputs['y'][:] = 0", r"failed on the outputs of fp32: ValueError: assignment destination is read"),
        (
            "return float('nan')",
            r"returned nan for the outputs of fp32; it must return 0 to 1, higher is better",
        ),
        ("return np.inf", r"returned inf for the outputs of fp32; it must return 0 to 1"),
        ("return None", r"own\.py:f returned NoneType for fp32; it must return a number"),
        ("return np.ones(3)", r"returned ndarray of shape \(3,\) for fp32; it must return a number"),
        (
            "return 97.5",
            r"returned 97\.5 for the outputs of fp32; it must return 0 to 1, .* divide per cent by",
        ),
        ("return -0.5", r"returned -0\.5 for the outputs of fp32; it must return 0 to 1"),
        ("return True", r"returned bool for fp32; it must return a number"),
        (
            "SEEN.append(1)\nreturn len(SEEN) / 4",
            r"not deterministic: of the same outputs of fp32 it says 0\.25 and then 0\.5; it must not draw",
        ),
    ],
)
def test_an_own_metric_that_goes_wrong_is_named(metric: Write, body: str, message: str) -> None:
    scores = scored(Labels("labels", None, metric(body)), (_SCORES, np.zeros(3, np.int64)))
    with pytest.raises(DataError, match=message):
        scores.result()


def test_labels_of_an_own_metric_are_one_a_sample(metric: Write) -> None:
    labels = Labels("labels", None, metric("return 1.0"))
    with pytest.raises(DataError, match=r"'labels' of a feed have shape \(4, 2\), the feed has 3 samples"):
        scored(labels, (_SCORES, np.zeros((4, 2))))
    with pytest.raises(DataError, match="a feed has no labels 'labels'; it has x"):
        scored(labels, (_SCORES, None))
    assert scored(labels, (_SCORES, np.zeros((3, 2, 2)))).result() == {"fp32": 1.0}


def test_batches_that_cannot_be_joined_are_told(metric: Write) -> None:
    labels = Labels(None, None, metric("return 1.0"))
    scores = scored(labels, (_SCORES, None), (_SCORES[:, :5], None))
    with pytest.raises(
        DataError, match=r"output 'y' has shape \(3, 6\) in one batch and \(3, 5\) in another, which cannot"
    ):
        scores.result()


def test_a_script_without_the_function_is_told(metric: Write) -> None:
    name = metric("return 1.0")
    with pytest.raises(DataError, match="has no function 'g'"):
        Scores(Labels(None, None, f"{name[:-1]}g"), ("fp32",))


def test_metrics_have_titles_and_scores_their_form() -> None:
    assert [name_metric(name) for name in ("top-1", "top-5", "a/b.py:f1")] == [
        "accuracy",
        "top-5 accuracy",
        "f1 of b.py",
    ]
    assert (format_score(0.5, "top-5"), format_score(0.5, "b.py:f1")) == ("50.00%", "0.5000")


@pytest.mark.parametrize(
    ("wanted", "metric", "vouches"),
    [
        (np.arange(20) % 10, "top-1", True),
        (np.arange(20)[::-1] % 10, "top-1", False),  # of another order: 0 of 20
        (np.zeros(20, np.int64), "top-1", False),  # one class, which one answer for all gets right too
        (np.where(np.arange(20) < 19, np.arange(20) % 10, 3), "top-1", True),
        (np.arange(20) % 10, "top-5", True),
        (np.arange(20) % 5, "top-5", False),  # five answers for all get them right too
    ],
)
def test_labels_vouch_only_where_a_model_beats_one_answer_for_all(
    wanted: NDArray[Any], metric: str, vouches: bool
) -> None:
    output = np.eye(10)[np.arange(20) % 10]
    scores = scored(Labels("labels", None, metric), (output[:7], wanted[:7]), (output[7:], wanted[7:]))
    scores.result()
    assert scores.outputs == (("y",) if vouches else ())
