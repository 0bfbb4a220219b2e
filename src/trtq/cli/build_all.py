"""`trtq build-all`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from trtq.calibrators.memory import find_free_bytes
from trtq.cli import options
from trtq.cli.build_file import read_builds
from trtq.cli.build_jobs import choose_entries, plan_jobs
from trtq.cli.build_run import Run, RunFiles
from trtq.cli.build_summary import encode_summary, find_worst, list_cases, print_results, write_builds
from trtq.cli.ci import ci_options, take_ci_files
from trtq.cli.console import ConsoleWatcher, open_console, print_answer
from trtq.cli.help import GroupedCommand
from trtq.cli.sharing import find_workers
from trtq.cli.sizes import parse_bytes
from trtq.cluster import Ray
from trtq.errors import UsageError
from trtq.models.operators import use_operators
from trtq.models.spec import OperatorSpec
from trtq.numbers import format_bytes
from trtq.pipeline.bench.machine import describe_machine
from trtq.pipeline.build_all import Limits, run_jobs
from trtq.pipeline.build_all.farm import Farm, run_on_farm
from trtq.workers import Processes, count_cores


@click.command("build-all", cls=GroupedCommand)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=Path("trtq.toml"))
@click.option(
    "--jobs",
    type=click.IntRange(1),
    help="Builds to run at a time on this machine.  [default: half of the cores, at least 2]",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for all running builds together, such as 8G. A build starts when its estimated memory is "
    "free.  [default: 90% of the free memory]",
)
@click.option(
    "--workers",
    metavar="WORKERS",
    default="processes",
    show_default=True,
    help="Where the builds run: processes on this machine, ray (the cluster at RAY_ADDRESS, or the one "
    "that this machine belongs to) or ray://host:port.",
)
@click.option(
    "--worker-cpus",
    type=click.IntRange(1),
    help="Cores per build on a cluster.  [default: 1]",
)
@click.option(
    "--autoscaling",
    is_flag=True,
    help="The cluster starts nodes on demand: wait for kinds of nodes that are not there yet.",
)
@click.option(
    "--on",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="Build only what is for this kind of machine, or for any machine (repeatable). Without a cluster, "
    "it says what kind this machine is.",
)
@options.take_output("JSON file for the summary.  [default: summary.json next to FILE]")
@click.option(
    "--index",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file for the list of engines, for trtq.load.  [default: index.json next to FILE]",
)
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign every folder with this private key unless its gate fails, and the index; see trtq sign.",
)
@ci_options
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print failures only.")
@click.pass_context
def command(ctx: click.Context, /, file: Path, **given: Any) -> None:
    """Build several models, described in one file.

    Each [[build]] in FILE names a model and sets options of `trtq build` as keys, without dashes;
    [defaults] applies to all. Everything is checked before any work starts. Each build runs in its own
    process, and a failed build does not stop the others. The exit code is the worst of all: 4, then 5, 2,
    3. Unchanged models are not built again, so running the command again resumes an interrupted one.

    On a Ray cluster, a build with on = ["nvidia-l4", "nvidia-h100"] is built once for each, on a node
    with this custom resource. index.json lists the engines; trtq.load picks the one for its machine.

    \b
      trtq build-all trtq.toml --jobs 2 --memory 8G
      trtq build-all farm.toml --workers ray --sign-key private.pem
    """
    farm = _find_farm(file, given)
    everything = read_builds(
        file if farm is None else file.absolute(), given["sign_key"], is_elsewhere=farm is not None
    )
    entries = choose_entries(everything, given["kinds"], is_farm=farm is not None)
    plan, beside = plan_jobs(entries, everything), file.parent
    places = RunFiles(given["output"] or beside / "summary.json", given["index"] or beside / "index.json")
    files = take_ci_files(("build-all", file), given)
    files.check(file, output=places.summary, index=places.index)
    places.check()
    run = Run(plan, everything, places)
    with ConsoleWatcher(quiet=given["quiet"] or given["as_json"]) as watcher:
        watcher.stage("Building", len(entries))
        for entry in everything:
            if entry not in entries:
                watcher.note(f"{entry.title} is skipped: --on names other kinds of machines")
        if farm is None:
            _run_here(run, given, watcher)
        else:
            run_on_farm(plan.jobs, farm, run.begin(watcher), run.end(watcher), watcher.note)
    files.write(write_builds(files.title, run.results), list_cases(run.results))
    if given["as_json"]:
        print_answer(encode_summary(run.results).decode())
    else:
        print_results(run.results, quiet=given["quiet"])
    if run.unwritten:
        raise run.unwritten[0]
    if not (given["as_json"] or given["quiet"]):
        open_console().print(f"written to {places.summary} and {places.index}", soft_wrap=True)
    ctx.exit(find_worst([item.exit_code or 0 for item in run.results]))


def _find_farm(file: Path, given: Mapping[str, Any]) -> Farm | None:
    """Returns the cluster to build on; None: this machine.

    Raises:
        UsageError: There are no such workers, or an option is for the others.
    """
    workers = find_workers(given["workers"], given["worker_cpus"])
    if isinstance(workers, Ray):
        if given["jobs"] or given["memory"]:
            name = "--jobs" if given["jobs"] else "--memory"
            raise UsageError(
                f"{name} is for the processes of this machine; a cluster starts what its machines have room "
                f"for; leave it out, or leave --workers out"
            )
        use_operators(OperatorSpec())  # the libraries that the environment names, by whole paths
        return Farm(workers, file, grows=given["autoscaling"])
    if workers != Processes():
        raise UsageError(
            f"--workers {given['workers']} builds nothing; use processes (and --jobs N), ray or "
            "ray://host:port"
        )
    if given["autoscaling"]:
        raise UsageError("--autoscaling is for a cluster; add --workers ray, or leave it out")
    return None


def _run_here(run: Run, given: Mapping[str, Any], watcher: ConsoleWatcher) -> None:
    """Runs the builds in processes of this machine."""
    memory = parse_bytes(given["memory"]) if given["memory"] else find_free_bytes() * 9 // 10
    if memory < 1:
        raise UsageError(f"--memory must be at least 1 byte, got {given['memory']}")
    for job in run.plan.jobs:
        if job.memory_bytes > memory and job.result is not None:
            watcher.warn(
                f"{job.name} may need {format_bytes(job.memory_bytes)}, more than the "
                f"{format_bytes(memory)} available: it runs alone"
            )
    limits = Limits(given["jobs"] or max(2, math.ceil(count_cores() / 2)), memory)
    begin, gpu = run.begin(watcher), describe_machine().gpu
    end = run.end(watcher)
    run_jobs(
        run.plan.jobs,
        limits,
        lambda number: begin(number, ""),
        lambda number, outcome: end(number, replace(outcome, gpu=gpu)),
    )
