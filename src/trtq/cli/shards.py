"""Which part of the data a process observes: as the user says it, or as its scheduler does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from trtq.errors import UsageError

SCHEDULERS = "SLURM_ARRAY_TASK_ID and _COUNT, JOB_COMPLETION_INDEX and JOB_COMPLETIONS, RANK and WORLD_SIZE"


def parse_shard(text: str) -> tuple[int, int]:
    """Returns a part, from 1 on, and the number of parts.

    Args:
        text: "3/8", or "auto" for what the scheduler of this process says in its environment.

    Raises:
        UsageError: It is neither, or the environment does not say.
    """
    if text.strip() == "auto":
        return find_shard(os.environ)
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is not a shard; write a part and their number, such as 3/8, or auto")
    return int(found[1]), int(found[2])


def find_shard(environment: Mapping[str, str]) -> tuple[int, int]:
    """Returns the part that a scheduler gives to this process, from 1 on, and the number of parts.

    A SLURM array counts from its own minimum in its own steps; the others count from 0. Kubernetes does not
    tell a pod the number of completions of its job, so that the job must set JOB_COMPLETIONS.

    Raises:
        UsageError: No scheduler says, one says only half of it, or what it says is no part.
    """
    for index, count in _list_pairs():
        if index not in environment:
            continue
        if count not in environment:
            raise UsageError(
                f"--shard auto: {index} is {environment[index]!r}, and {count}, the number of parts, is not "
                f"set; set it, or write the part yourself, such as --shard 3/8"
            )
        return _read(environment, index, count)
    raise UsageError(f"--shard auto: no scheduler says which part this is: none of {SCHEDULERS} is set")


def _list_pairs() -> Iterator[tuple[str, str]]:
    yield "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"
    yield "JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"
    yield "RANK", "WORLD_SIZE"


def _read(environment: Mapping[str, str], index: str, count: str) -> tuple[int, int]:
    is_slurm = index.startswith("SLURM")
    names = [index, count, *(("SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP") if is_slurm else ())]
    texts = {name: environment.get(name, "1" if name.endswith("STEP") else "0") for name in names}
    if wrong := [name for name, text in texts.items() if not re.fullmatch(r"\d{1,9}", text)]:
        raise UsageError(f"--shard auto: {wrong[0]} is {texts[wrong[0]]!r}, which is not a number of a part")
    number, total, *rest = map(int, texts.values())
    first, step = rest or (0, 1)
    part, left = divmod(number - first, max(1, step))
    part += 1
    if left or not 1 <= part <= total:
        raise UsageError(f"--shard auto: {index} is {number} and {count} is {total}: there is no such part")
    return part, total
