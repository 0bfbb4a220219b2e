"""Tests of the judge of quantized models: scores by hand, and which data and tensors are used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from made_up import batches_of
from numpy.typing import NDArray

from trtq.calibrators.ranges import Range, Ranges
from trtq.models.session import open_session
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge import trials
from trtq.pipeline.judge.trials import Candidate, SampleScores, TrialJudge, _measure_powers, open_trial_judge

_NET = """
net (float[N, 2] x) => (float[N, 2] y, float[N, 2] p) {
  [one] y = MatMul (x, w)
  p = Softmax <axis = 1> (y)
}"""


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    return graph_of(_NET, w=np.diag([1.0, 127.0]).astype(np.float32))


def ranges_of(amax: float) -> Ranges:
    return Ranges({"x": Range(amax, -amax, amax)}, "made", "0", "none", 1)


def feeds_of(number: int, size: int = 2) -> list[NDArray[np.float32]]:
    return [np.full((size, 2), index, np.float32) for index in range(number)]


def _judge(graph: Graph, arrays: list[NDArray[np.float32]], num_samples: int = 64) -> TrialJudge:
    judge = open_trial_judge(graph.model, place(graph.model, force=["."]), batches_of(arrays), num_samples)
    assert judge is not None
    return judge


def scores_of(judge: TrialJudge, *amaxes: float) -> list[SampleScores]:
    candidates = [Candidate(ranges_of(amax)) for amax in amaxes]
    judge.advance(candidates, len(judge.feeds))
    return [item.scores() for item in candidates]


# Scores


def test_scores_are_by_sample_and_by_output(graph: Graph) -> None:
    arrays = [np.ones((2, 2), np.float32), np.array([[0, 1], [0, 100]], np.float32)]
    judge = replace(_judge(graph, arrays), outputs=("y",))
    judge = replace(judge, reference=tuple((feed[0],) for feed in judge.reference))
    (found,) = scores_of(judge, 50.0)
    step = 50 / 127  # 1 becomes 3 steps, and 100 is clipped to 50
    lost = [1 - 3 * step, 50.0]
    assert found.samples == pytest.approx([20 * math.log10(1 / abs(lost[0])), 20 * math.log10(2)], abs=1e-3)
    whole = 10 * math.log10((1 + 100**2) / (lost[0] ** 2 + lost[1] ** 2))
    assert found.outputs == pytest.approx([whole], abs=1e-3)
    assert found.db == pytest.approx((found.samples.mean() + whole) / 2)


def test_exact_wrong_and_silent_outputs_have_finite_scores(graph: Graph) -> None:
    arrays = [np.ones((2, 2), np.float32), np.array([[0, 127], [0, 0]], np.float32)]
    judge = replace(_judge(graph, arrays), outputs=("y",))
    judge = replace(judge, reference=tuple((feed[0],) for feed in judge.reference))
    exact, wrong = scores_of(judge, 127.0, 1e-30)
    assert exact.samples.tolist() == [80.0, 0.0]  # the other sample has no signal
    assert exact.outputs.tolist() == [80.0]
    assert wrong.samples[0] == pytest.approx(0, abs=0.1)


def test_all_is_lost_where_the_size_of_an_output_differs() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    for size in (1, 3):
        powers, lost = _measure_powers(np.ones((size, 2), np.float32), wanted, 2)
        assert (powers.tolist(), lost.tolist()) == ([25.0, 4.0], [25.0, 4.0])


def _scores(*samples: float, whole: float | None = None) -> SampleScores:
    return SampleScores(np.array(samples), np.array([np.mean(samples) if whole is None else whole]))


@pytest.mark.parametrize(
    ("scores", "clearly"),
    [
        (_scores(11, 11.1, 10.9, 11), True),
        (_scores(10.1, 10.1, 10.1, 10.1), False),  # less than 0.2 dB
        (_scores(20, 4, 18, 3), False),  # by chance
        (_scores(11, 11.1, 10.9, 11, whole=5), False),  # the worst samples lose more than the others gain
        (_scores(10, 10, 10, 10), False),
    ],
)
def test_better_is_better_by_more_than_chance(scores: SampleScores, clearly: bool) -> None:
    assert scores.is_clearly_above(_scores(10, 10, 10, 10)) == clearly


@pytest.mark.parametrize(
    ("scores", "may"),
    [
        (_scores(9, 9.1, 8.9, 9), False),
        (_scores(10, 10, 10, 10), False),
        (_scores(5, 12, 4, 13), True),  # by chance
        (_scores(9, 9.1, 8.9, 9, whole=12), True),  # what the worst samples gain is worth more
        (_scores(10.3, 10.3, 10.3, 10.3), True),
    ],
)
def test_what_can_hardly_win_is_told_from_what_may(scores: SampleScores, may: bool) -> None:
    assert scores.may_be_above(_scores(10, 10, 10, 10)) == may


def test_few_samples_tell_only_what_is_far_behind() -> None:
    own, behind, far = _scores(10, 10, 10, 10), _scores(9, 10.4, 9, 10.4), _scores(6, 7.4, 6, 7.4)
    assert [behind.may_be_above(own, errors=errors) for errors in (1, 4)] == [False, True]
    assert not far.may_be_above(own, errors=4)


def test_of_one_sample_anything_may_come() -> None:
    assert _scores(1).may_be_above(_scores(10))


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_powers_hold_whatever_the_size_of_the_values(scale: float, dtype: type) -> None:
    scale = min(max(scale, 1e-3), 1e3) if dtype is np.float16 else scale
    theirs = np.array([[3, 4], [0, 2.0]]) * scale
    ours = theirs + np.array([[0.5, 0], [0, 0]]) * scale
    signal, noise = _measure_powers(ours.astype(dtype), theirs.astype(dtype), 2)
    assert signal / scale**2 == pytest.approx([25, 4], rel=1e-2)
    assert noise / scale**2 == pytest.approx([0.25, 0], rel=1e-2)


def test_candidates_go_on_where_they_stopped(graph: Graph) -> None:
    judge = _judge(graph, [np.full((2, 2), index, np.float32) for index in range(8)])
    whole, parts = Candidate(ranges_of(50.0)), Candidate(ranges_of(50.0))
    judge.advance([whole], 4)
    judge.advance([parts], 1)
    assert parts.scores().samples.size == 2
    parts.close()
    judge.advance([parts, whole], 4)
    assert parts.scores().samples.tolist() == whole.scores().samples.tolist()
    assert whole.scores(1).samples.tolist() == whole.scores().samples[:2].tolist()


def test_the_best_candidates_keep_their_sessions(graph: Graph) -> None:
    judge = _judge(graph, feeds_of(8))
    candidates = [Candidate(ranges_of(amax)) for amax in (0.1, 50.0, 0.2, 0.3, 0.4, 60.0, 0.5, 70.0, 0.6)]
    judge.advance(candidates, 1)
    assert [item.ranges.tensors["x"].amax for item in candidates if item.session] == [50.0, 60.0, 70.0]
    kept = candidates[1].session
    judge.advance(candidates[1:2], 2)
    assert candidates[1].session is kept


@pytest.mark.parametrize(("kind", "optimize"), [("float", True), ("float16", False)])
def test_candidates_run_on_the_fastest_kernels_where_all_is_fp32(
    graph_of: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch, kind: str, optimize: bool
) -> None:
    weight = np.eye(2, dtype=np.float32 if optimize else np.float16)
    graph = graph_of(f"net ({kind}[N, 2] x) => ({kind}[N, 2] y) {{ y = MatMul (x, w) }}", w=weight)
    opened = Mock(wraps=open_session)
    monkeypatch.setattr(trials, "open_session", opened)
    judge = _judge(graph, [item.astype(weight.dtype) for item in feeds_of(4)])
    judge.advance([Candidate(ranges_of(50.0))], 1)
    assert [call.kwargs["optimize"] for call in opened.call_args_list] == [optimize] * 2


def test_one_sample_proves_nothing() -> None:
    assert not _scores(50).is_clearly_above(_scores(10))


# What is looked at


def test_every_second_feed_is_held_back_and_the_first_few_are_spread(graph: Graph) -> None:
    judge = _judge(graph, feeds_of(16), 16)
    assert [int(feed.arrays["x"][0, 0]) for feed in judge.feeds] == [1, 9, 3, 11, 5, 13, 7, 15]
    assert judge.num_samples == 16


@pytest.mark.parametrize(("number", "wanted"), [(100, 8), (31, 8), (5, 8)])
def test_no_more_is_held_back_than_asked_for(graph: Graph, number: int, wanted: int) -> None:
    judge = _judge(graph, feeds_of(number), wanted)
    held = sorted(int(feed.arrays["x"][0, 0]) for feed in judge.feeds)
    assert len(held) == min(number // 2, wanted // 2)
    assert all(index % 2 for index in held)
    assert held[-1] >= number // 2  # not the beginning alone


_FIXED = """
net (float[N, 2] x) => (float[M, 4] y) {
  [one] z = MatMul (x, w)
  y = Reshape (z, shape)
}"""


@pytest.mark.parametrize(
    ("text", "kind", "held"),
    [
        (_NET, np.float32, [1, 3, 5, 7] * 2),  # the first part of every feed, then the second
        (_FIXED, np.float32, [1, 3, 5, 7]),  # a part of two samples does not have that shape
        (_NET.replace("float[", "float16["), np.float16, [1, 3, 5, 7]),  # each run unpacks the weights
    ],
)
def test_feeds_are_judged_in_parts_where_that_is_the_same(
    graph_of: Callable[..., Graph], text: str, kind: type, held: list[int]
) -> None:
    graph = graph_of(text, w=np.eye(2, dtype=kind), **({"shape": np.array([2, 4])} if text is _FIXED else {}))
    batches = replace(batches_of([item.astype(kind) for item in feeds_of(8, 4)]), feed_samples=4)
    judge = open_trial_judge(graph.model, place(graph.model, force=["."]), batches, 64)
    assert judge is not None
    assert [int(feed.arrays["x"][0, 0]) for feed in judge.feeds] == held
    assert {feed.num_samples for feed in judge.feeds} == {16 // len(held)}
    assert judge.num_samples == 16
    (found,) = scores_of(judge, 50.0)
    assert found.samples.size == 16


def test_one_feed_leaves_nothing_to_judge_by(graph: Graph) -> None:
    assert open_trial_judge(graph.model, place(graph.model), batches_of(feeds_of(1)), 8) is None


def test_outputs_of_whole_numbers_are_not_judged(graph_of: Callable[..., Graph]) -> None:
    model = graph_of("net (float[3, 3] x) => (int64[3, 1] y) { y = ArgMax (x) }").model
    assert open_trial_judge(model, place(model), batches_of(feeds_of(4)), 8) is None


@pytest.mark.parametrize(("memory_bytes", "left"), [(1, 0), (5 * 2 * 16, 1), (1 << 40, 3)])
def test_no_more_sessions_are_open_than_there_is_memory_for(
    graph: Graph, memory_bytes: int, left: int
) -> None:
    placement, amaxes = place(graph.model, force=["."]), (0.1, 50.0, 0.2, 0.3, 0.4, 60.0, 0.5)
    judge = open_trial_judge(graph.model, placement, batches_of(feeds_of(8)), 64, memory_bytes=memory_bytes)
    assert judge is not None
    candidates = [Candidate(ranges_of(amax)) for amax in amaxes]
    judge.advance(candidates, 1)
    assert sum(item.session is not None for item in candidates) == left
    wanted = [Candidate(ranges_of(amax)) for amax in amaxes]
    _judge(graph, feeds_of(8)).advance(wanted, 1)
    assert [item.scores().db for item in candidates] == [item.scores().db for item in wanted]
