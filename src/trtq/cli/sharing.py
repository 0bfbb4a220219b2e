"""Options of the commands whose work several workers share."""

from __future__ import annotations

import click

from trtq.cli.options import combine_options
from trtq.cluster import Ray
from trtq.errors import UsageError
from trtq.workers import Processes, Workers

_MOST_PROCESSES = 1024

workers_options = combine_options(
    click.option(
        "--workers",
        metavar="WORKERS",
        default="threads",
        show_default=True,
        help="Where the work runs: threads of this process, processes or processes:N on this machine, ray "
        "(the cluster at RAY_ADDRESS, or the one that this machine belongs to) or ray://host:port. "
        "Calibration, trials, GPTQ and AWQ, the choice of formats, and comparisons are shared, unless "
        "a TensorRT engine runs here. The result is bit-identical.",
    ),
    click.option(
        "--worker-cpus",
        type=click.IntRange(1),
        help="Cores per task on a cluster.  [default: 1]",
    ),
)


def find_workers(text: str, cpus: int | None = None) -> Workers | None:
    """Returns the workers that a user names; None for the threads of this process.

    Args:
        text: "threads", "processes", "processes:N", "ray" or the address of a cluster, "ray://host:port".
        cpus: Cores for each task on a cluster; None: 1.

    Raises:
        UsageError: There are no such workers, or they are no cluster and the cores are given.
    """
    workers = _parse(text, cpus or 1)
    if cpus is not None and not isinstance(workers, Ray):
        raise UsageError("--worker-cpus is for a cluster; add --workers ray, or leave it out")
    return workers


def _parse(text: str, cpus: int) -> Workers | None:
    kind, _, number = text.partition(":")
    if text == "threads":
        return None
    if kind == "processes" and (not number or (number.isdecimal() and 1 <= int(number) <= _MOST_PROCESSES)):
        return Processes(int(number) if number else None)
    if text == "ray" or text.startswith("ray://"):
        return Ray(None if text == "ray" else text, cpus)
    raise UsageError(
        f"{text!r} is not a valid --workers value; use threads, processes, processes:N (1 to "
        f"{_MOST_PROCESSES}), ray (the cluster of RAY_ADDRESS) or ray://host:port"
    )
