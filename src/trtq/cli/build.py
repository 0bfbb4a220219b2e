"""`trtq build`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from trtq.cli import builders, options, targets
from trtq.cli.build_plan import print_plan
from trtq.cli.ci import CiFiles, ci_options
from trtq.cli.console import ConsoleWatcher, open_console, print_answer, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.markdown import write_report
from trtq.cli.next_steps import list_next, print_next, refuse_failed
from trtq.cli.options import Given
from trtq.cli.sharing import find_workers, workers_options
from trtq.cli.tables import print_report
from trtq.cli.verdicts import list_build_cases
from trtq.errors import UsageError
from trtq.models.spec import AccuracySpec, EvaluationSpec, LayerSpec, OperatorSpec, QuantizationSpec
from trtq.pipeline.build import build, shared
from trtq.pipeline.build.delivery import choose_places
from trtq.pipeline.build.dry import plan_build
from trtq.pipeline.build.shared import PIPED
from trtq.pipeline.deliver.report import to_json
from trtq.pipeline.deliver.tracking import log_build, require_mlflow
from trtq.pipeline.engine.asked import Formats
from trtq.pipeline.engine.target import Target


@click.command("build", cls=GroupedCommand)
@options.model_argument
@options.take(Formats, "int8", "fp8", "nvfp4", "fp16")
@options.take(Target, "requantize")
@options.spec_option
@options.take_calibration()
@options.take_pictures()
@options.take(QuantizationSpec)
@options.take(LayerSpec)
@options.take(Target, "op_types", "kv_cache")
@targets.high_precision_option
@options.take(Target, "quantization")
@targets.weight_options
@builders.builder_options
@options.take(OperatorSpec)
@options.take(EvaluationSpec)
@options.take(AccuracySpec)
@options.take(Target, "auto", "formats")
@options.take_output(
    "Build folder. If the name ends in .engine, .plan or .trt, the engine is also copied to that file "
    "unless the gate fails, and the folder is next to it.  [default: MODEL.trtq]"
)
@click.option("--dry-run", is_flag=True, help="Show the plan without running a model or writing anything.")
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign the folder with this private key unless the gate fails; see trtq sign. An earlier build is "
    "reused only if this key signed it.",
)
@click.option(
    "--mlflow",
    metavar="NAME",
    help="Log the build to MLflow (MLFLOW_TRACKING_URI), and register it as the next version of the model "
    "NAME unless the gate fails.",
)
@workers_options
@click.option("--share-ranges", is_flag=True, hidden=True, help="Make the ranges alone; for build-all.")
@click.option(
    "--earlier",
    type=click.Path(path_type=Path),
    multiple=True,
    hidden=True,
    help="A folder whose ranges --share-ranges takes if they are the same.",
)
@click.option("--take-shared", is_flag=True, hidden=True, help="Take the ranges of --share-ranges on stdin.")
@ci_options
@options.json_option
@options.talk_options
@options.pass_given
def command(
    given: Given,
    model: Path,
    output: Path | None,
    dry_run: bool,
    sign_key: Path | None,
    workers: str,
    worker_cpus: int | None,
    share_ranges: bool,
    earlier: tuple[Path, ...],
    take_shared: bool,
    mlflow: str | None,
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Build a verified INT8 (or FP8, FP16, ...) engine from an ONNX model.

    Calibrates and quantizes the model, builds the engine, checks which layers run in INT8, compares the
    outputs with those of the float model, and writes everything to one folder. Settings in model.toml
    next to the model need not be repeated here. If the model already has Q/DQ, its scales are kept, what
    TensorRT would reject is repaired (see `trtq lint`), and its float layers are quantized.

    \b
      trtq build model.onnx --int8 --calib-data calib.npz
      trtq build model.onnx --int8 --calib-data images/ --skip '^head' --compute-capability 8.9
      trtq build model.onnx --int8 --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 \\
          --max-shapes x:32x3x224x224
      trtq build model.onnx --weights int4 --calib-data calib.npz
      trtq build model.onnx --int8 --calib-data calib.npz --dry-run
    """
    wanted: dict[str, Any] = {
        "spec": given.read_spec(model),
        "target": targets.read_target(given),
        "output": output,
        "random_data": given.random_data,
    }
    if dry_run:
        shares = {"--workers": workers != "threads", "--worker-cpus": worker_cpus is not None}
        _refuse_unused({"--summary": summary, "--junit": junit, "--mlflow": mlflow, **shares})
        _show_plan(model, {**wanted, "sign_key": sign_key}, as_json=as_json, quiet=quiet)
        return
    files = CiFiles(f"trtq build {model}", summary, junit)
    files.check(model, *wanted["spec"].sources)
    if mlflow is not None:
        require_mlflow(mlflow)
    with files.tell_errors(), ConsoleWatcher(quiet=quiet) as watcher:
        wanted |= {"sign_key": sign_key, "watcher": watcher, "workers": find_workers(workers, worker_cpus)}
        if share_ranges:
            print_answer(PIPED.encode(shared.share_ranges(model, **wanted, earlier=earlier)).decode())
            return
        given_ranges = PIPED.decode(sys.stdin.buffer.read(), "stdin") if take_shared else None
        report = build(model, **wanted, shared=given_ranges)
    cases = list_build_cases(report, wanted["spec"].accuracy)
    files.write(write_report(report, cases), cases)
    tracked = log_build(report, mlflow) if mlflow is not None else None
    lines = [] if as_json or quiet else list_next(report)
    if as_json:
        print_answer(to_json(report).decode())
    elif not quiet:
        console, engine = open_console(), choose_places(output).engine
        print_report(console, report, verbose=verbose, folder=Path(report.output), engine=engine)
        if tracked is not None:
            version = f", version {tracked.version} of {mlflow}" if tracked.version else ""
            console.print(f"logged to {tracked.server}: run {tracked.run_id}{version}", soft_wrap=True)
        print_next(console, report, lines)
    refuse_failed(report, lines)


def _refuse_unused(options: Mapping[str, Any]) -> None:
    """Refuses what is of no use with --dry-run, which runs nothing that could be told or shared.

    Raises:
        UsageError: There is such an option.
    """
    if unused := [name for name, value in options.items() if value]:
        raise UsageError(f"{unused[0]} has no effect with --dry-run: no model is run and nothing is written")


def _show_plan(model: Path, wanted: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Prints what a build would do."""
    with ConsoleWatcher(quiet=quiet) as watcher:
        plan = plan_build(model, **wanted, watcher=watcher)
    if as_json:
        print_json(plan)
    elif not quiet:
        print_plan(open_console(), plan)
