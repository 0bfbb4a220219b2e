"""Tests of the plan: how many tensors, runs and passes fit into the memory."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from trtq.calibrators import plan as plan_module
from trtq.calibrators.plan import PassPlan, plan_passes
from trtq.errors import UsageError

MB = 1 << 20
TABLE = 1 << 10


def _plan(
    sizes: Mapping[str, int],
    memory: int | None,
    *,
    may_split: bool = False,
    feeds: Mapping[str, int] | None = None,
) -> PassPlan:
    feeds = feeds or dict.fromkeys(sizes, 0)
    memory = None if memory is None else memory + len(sizes) * TABLE
    return plan_passes(sizes, dict.fromkeys(sizes, TABLE), feeds, may_split, memory)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "count_cores", lambda: 4)


def test_what_fits_is_observed_at_once_on_every_core() -> None:
    plan = _plan({"a": MB, "b": MB}, 100 * MB)
    assert plan == PassPlan((("a", "b"),), None, 4, 1, keeps_memory=True)


def test_fewer_runs_go_on_at_a_time_where_memory_is_short() -> None:
    plan = _plan({"a": 10 * MB, "b": 10 * MB}, 50 * MB)
    assert (plan.groups, plan.num_runs, plan.threads_a_run) == ((("a", "b"),), 2, 2)
    assert not plan.keeps_memory


def test_tensors_go_in_groups_where_they_do_not_fit_at_once() -> None:
    plan = _plan({"a": 10 * MB, "b": 10 * MB, "c": 25 * MB, "d": MB}, 25 * MB)
    assert plan.groups == (("a", "b"), ("c",), ("d",))
    assert (plan.num_runs, plan.threads_a_run) == (1, 4)
    assert plan.note == (
        "the observed tensors take 46 MiB at a time, their histograms 0 MiB, and 25 MiB are allowed "
        "for both: 3 passes over the data"
    )


def test_a_tensor_that_fits_nowhere_in_free_memory_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "find_free_bytes", lambda: 2 * (25 * MB + 3 * TABLE))
    assert _plan({"a": 10 * MB, "c": 30 * MB, "d": MB}, None).groups == (("a",), ("c",), ("d",))


def test_histograms_that_do_not_fit_at_once_are_filled_in_passes() -> None:
    sizes = dict.fromkeys("abcde", 0)
    plan = plan_passes(sizes, dict.fromkeys(sizes, MB), sizes, False, 2 * MB)
    assert plan.groups == (("a", "b"), ("c", "d"), ("e",))
    assert "at a time, their histograms 5 MiB, and 2 MiB are allowed" in plan.note


@pytest.mark.parametrize("may_split", [False, True])
def test_too_little_memory_is_refused_with_the_least_that_works(may_split: bool) -> None:
    sizes, tables = {"a": 10 * MB, "b": 5 * MB}, {"a": TABLE, "b": MB}
    feeds, least = dict.fromkeys(sizes, 0), 10 * MB + TABLE
    told = (
        rf"^the calibration memory of 1000 bytes is too small: tensor 'a' takes {10 * MB} bytes at a time "
        rf"and its histogram {TABLE}; give at least 11M$"
    )
    with pytest.raises(UsageError, match=told):
        plan_passes(sizes, tables, feeds, may_split, 1000)
    assert plan_passes(sizes, tables, feeds, may_split, least).groups == (("a",), ("b",))
    with pytest.raises(UsageError, match="too small"):
        plan_passes(sizes, tables, feeds, may_split, least - 1)


def test_parts_get_smaller_where_not_even_one_tensor_fits() -> None:
    assert _plan({"a": 10 * MB}, 100 * MB, may_split=True).part_samples == 3
    plan = _plan({"a": 10 * MB}, 20 * MB, may_split=True)
    assert (plan.part_samples, plan.num_runs) == (2, 1)


def test_feeds_are_cut_by_the_sizes_alone() -> None:
    sizes = {"a": 10 * MB, "b": 5 * MB}
    assert {_plan(sizes, memory, may_split=True).part_samples for memory in (20 * MB, 10_000 * MB)} == {2}
    assert _plan({"a": 100 * MB}, None, may_split=True).part_samples == 1
    assert _plan({"a": 0}, None, may_split=True).part_samples == 32 * MB


def test_tensors_that_have_seen_the_same_go_on_together() -> None:
    plan = _plan({"a": MB, "b": MB, "c": MB}, 100 * MB, feeds={"a": 5, "b": 0, "c": 5})
    assert plan.groups == (("a", "c"), ("b",))
    assert plan.note == ""


def test_half_of_what_is_free_is_taken_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "find_free_bytes", lambda: 2 * (15 * MB + 2 * TABLE))
    assert _plan({"a": 10 * MB, "b": 10 * MB}, None).groups == (("a",), ("b",))
