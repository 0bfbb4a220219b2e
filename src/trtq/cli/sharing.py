"""Options of the commands whose work several workers share."""

from __future__ import annotations

import click

from trtq.cli.options import combine_options
from trtq.cluster import Ray
from trtq.errors import UsageError
from trtq.workers import Processes, Workers

workers_options = combine_options(
    click.option(
        "--workers",
        metavar="WORKERS",
        default="threads",
        show_default=True,
        help="Who does the parts of the work: threads of this process, processes or processes:N of this "
        "machine, ray (the cluster of RAY_ADDRESS, or that this machine belongs to) or ray://host:port. The "
        "result is the same to the last bit.",
    ),
    click.option(
        "--worker-cpus",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Cores for each part of the work on a cluster.",
    ),
)


def find_workers(text: str, cpus: int = 1) -> Workers | None:
    """Returns the workers that a user names; None for the threads of this process.

    Args:
        text: "threads", "processes", "processes:N", "ray" or the address of a cluster, "ray://host:port".
        cpus: Cores for each task on a cluster.

    Raises:
        UsageError: There are no such workers.
    """
    kind, _, number = text.partition(":")
    if text == "threads":
        return None
    if kind == "processes" and (not number or (number.isdigit() and int(number))):
        return Processes(int(number) if number else None)
    if text == "ray" or text.startswith("ray://"):
        return Ray(None if text == "ray" else text, cpus)
    raise UsageError(
        f"{text!r} are no workers; take threads, processes, processes:N, ray (the cluster of RAY_ADDRESS) or "
        f"ray://host:port"
    )
