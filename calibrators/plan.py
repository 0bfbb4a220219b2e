"""How the tensors are observed: how many at a time, in how many threads, in how many passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trtq.calibrators.memory import find_free_bytes
from trtq.errors import UsageError
from trtq.workers import count_cores

_PART_BYTES = 32 << 20
"""What one run shows: near the caches, and enough that the calls do not count."""
_ENOUGH_BYTES = 256 << 20
"""More at a time makes nothing faster on any machine that was measured."""


@dataclass(frozen=True, slots=True)
class PassPlan:
    """How the passes are made.

    Attributes:
        groups: The tensors of each pass.
        part_samples: How many samples of a feed are run at a time; None: all of it.
        num_runs: How many runs go on at a time.
        threads_a_run: How many threads compute one run.
        keeps_memory: Whether ONNX Runtime may keep memory between runs.
        note: Why there are several passes; empty: there are not.
    """

    groups: tuple[tuple[str, ...], ...]
    part_samples: int | None
    num_runs: int
    threads_a_run: int
    keeps_memory: bool
    note: str = ""


def plan_passes(
    sizes: Mapping[str, int],
    tables: Mapping[str, int],
    feeds: Mapping[str, int],
    may_split: bool,
    memory_bytes: int | None,
) -> PassPlan:
    """Returns a plan that keeps the observed tensors and the tables that count them within the memory.

    How a feed is cut depends on the sizes alone, not on the machine, so that every machine computes the same;
    where not even one tensor fits, the parts get smaller.

    Args:
        sizes: Bytes of each tensor on one sample, or on a feed that may not be split.
        tables: Bytes of each tensor's table, which lasts for a pass.
        feeds: How many feeds each tensor has seen; those of a pass have seen the same.
        may_split: Whether the samples of a feed may be run apart.
        memory_bytes: For both; None: half of what is free.

    Raises:
        UsageError: The memory does not do for one tensor and its table.
    """
    one = max(sizes.values(), default=0)
    most, name = max(((size + tables[name], name) for name, size in sizes.items()), default=(0, ""))
    if memory_bytes is not None and memory_bytes < most:
        raise UsageError(
            f"the calibration memory of {memory_bytes} bytes is too small: tensor {name!r} takes "
            f"{sizes[name]} bytes at a time and its histogram {tables[name]}; give at least {-(-most >> 20)}M"
        )
    limit = memory_bytes if memory_bytes is not None else find_free_bytes() // 2
    part_samples = None
    if may_split:
        fitting = max(0, limit - max(tables.values(), default=0)) // max(1, one)
        part_samples = max(1, min(_PART_BYTES // max(1, sum(sizes.values())), fitting))
        sizes = {name: size * part_samples for name, size in sizes.items()}
    alike = dict[int, list[str]]()
    for name in sizes:
        alike.setdefault(feeds[name], []).append(name)
    costs = {name: size + tables[name] for name, size in sizes.items()}
    groups = tuple(group for number in sorted(alike)[::-1] for group in _group(alike[number], costs, limit))
    largest = max((sum(sizes[name] for name in group) for group in groups), default=0)
    left = max(0, limit - max((sum(tables[name] for name in group) for group in groups), default=0))
    cores = count_cores()
    num_runs = max(1, min(cores, min(left, _ENOUGH_BYTES) // max(1, largest)))
    note = (
        f"the observed tensors take {sum(sizes.values()) / 2**20:.0f} MiB at a time, their histograms "
        f"{sum(tables.values()) / 2**20:.0f} MiB, and {limit / 2**20:.0f} MiB are allowed for both: "
        f"{len(groups)} passes over the data"
    )
    has_more = len(groups) > len(alike)
    keeps_memory = 3 * largest * num_runs <= left
    return PassPlan(groups, part_samples, num_runs, cores // num_runs, keeps_memory, note if has_more else "")


def _group(names: Sequence[str], costs: Mapping[str, int], limit: int) -> Iterator[tuple[str, ...]]:
    """Yields the names in order, as many at a time as the limit allows, one at least."""
    group, taken = list[str](), 0
    for name in names:
        if group and taken + costs[name] > limit:
            yield tuple(group)
            group, taken = [], 0
        group.append(name)
        taken += costs[name]
    if group:
        yield tuple(group)
