"""Tests of the part of the data that a scheduler gives to a process."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from trtq.cli.shards import find_shard, parse_shard
from trtq.errors import UsageError


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "8"}, (1, 8)),
        ({"SLURM_ARRAY_TASK_ID": "8", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1"}, (8, 8)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "14",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 3),
        ),
        ({"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "4"}, (4, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (2, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "JOB_COMPLETION_INDEX": "0", "JOB_COMPLETIONS": "1"}, (1, 1)),
    ],
)
def test_a_scheduler_says_which_part_it_is(environment: Mapping[str, str], shard: tuple[int, int]) -> None:
    assert find_shard(environment) == shard


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, r"^--shard auto: no scheduler says which part this is: none of SLURM_ARRAY_TASK_ID and "),
        (
            {"JOB_COMPLETION_INDEX": "3"},
            r"is '3', and JOB_COMPLETIONS, the number of parts, is not set; set it",
        ),
        ({"RANK": "x", "WORLD_SIZE": "2"}, r"RANK is 'x', which is not a number of a part$"),
        (
            {
                "SLURM_ARRAY_TASK_ID": "13",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "10",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            r"SLURM_ARRAY_TASK_ID is 13 and SLURM_ARRAY_TASK_COUNT is 3: there is no such part$",
        ),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK is 2 and WORLD_SIZE is 2: there is no such part$"),
    ],
)
def test_what_says_no_part_is_refused(environment: Mapping[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_shard(environment)


def test_auto_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    assert parse_shard("auto") == (3, 4)
    assert parse_shard(" 3/8 ") == (3, 8)
    with pytest.raises(
        UsageError, match=r"^'3' is not a shard; write a part and their number, such as 3/8, or"
    ):
        parse_shard("3")
