"""Which builds of a file are made, and the jobs that they become."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.cli.build_file import BuildEntry
from trtq.cli.build_jobs import choose_entries, plan_jobs
from trtq.errors import UsageError
from trtq.pipeline.build_all import CommandJob


def _entry(number: int, kind: str, *, needs_gpu: bool = False, several: bool = True) -> BuildEntry:
    name = "abc"[number - 1]
    job = CommandJob(("build", name), 10, needs_gpu, not needs_gpu, name=name, resources=(kind,))
    output = Path(f"{name}.{kind}.trtq")
    return BuildEntry(number, name, Path(f"{name}.onnx"), output, job, kind, several and bool(kind))


ALL = (_entry(1, "l4"), _entry(1, "h100"), _entry(2, ""), _entry(3, "l4", needs_gpu=True), _entry(3, "rtx"))


def test_the_ranges_of_a_model_for_several_kinds_are_made_once_and_first() -> None:
    plan = plan_jobs(ALL, ALL)
    assert [job.after for job in plan.jobs] == [None, None, 0, 0, None, 1, 1]
    assert plan.rows == {2: 0, 3: 1, 4: 2, 5: 3, 6: 4}
    assert plan.jobs[0].arguments == (
        "build", "a", "--share-ranges", "--earlier=a.l4.trtq", "--earlier=a.h100.trtq",
    )  # fmt: skip
    assert plan.jobs[3].arguments == ("build", "a", "--take-shared")
    assert plan.jobs[4] == ALL[2].job
    assert [job.name for job in plan.jobs[:2]] == ["the calibration of a", "the calibration of c"]


def test_ranges_are_made_anywhere_unless_tensorrt_has_a_say_in_them() -> None:
    first, second = plan_jobs(ALL, ALL).jobs[:2]
    assert (first.resources, first.needs_gpu, first.uses_gpu) == ((), False, False)
    assert (second.resources, second.needs_gpu, second.uses_gpu) == (("l4",), False, True)


def test_what_is_built_is_what_kinds_are_asked_for_and_what_says_none() -> None:
    assert choose_entries(ALL, (), is_farm=True) == ALL
    assert choose_entries(ALL[2:3], (), is_farm=False) == ALL[2:3]
    for is_farm in (True, False):
        assert choose_entries(ALL, ("l4",), is_farm=is_farm) == (ALL[0], ALL[2], ALL[3])
    assert plan_jobs(ALL[:1], ALL).jobs[0].arguments[-1] == "--earlier=a.h100.trtq"


def test_kinds_that_nobody_knows_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"^a is for machines of the kind l4, and this machine is not known to be one; "
    ):
        choose_entries(ALL, (), is_farm=False)
    with pytest.raises(
        UsageError, match=r"^--on l5: no build is for such a machine; the kinds are: l4, h100, rtx$"
    ):
        choose_entries(ALL, ("l5",), is_farm=True)
    with pytest.raises(UsageError, match=r"the kinds are: none$"):
        choose_entries(ALL[2:3], ("l5",), is_farm=True)
