"""`trtq build`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from trtq.cli import options, scales, targets
from trtq.cli.console import ConsoleWatcher, open_console
from trtq.cli.tables import print_report
from trtq.errors import GateError
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report, to_json


@click.command("build")
@options.model_argument
@click.option("--int8", is_flag=True, help="Build an INT8 engine (the default without --weights).")
@click.option("--fp16", is_flag=True, help="Build the FP16 engine alone; with --int8 it changes nothing.")
@click.option(
    "--requantize",
    is_flag=True,
    help="Of a model with Q/DQ: make symmetric INT8 of zero points and types that have no exact repair.",
)
@options.spec_option
@options.calibration_options
@options.repair_option
@scales.weight_granularity_option
@scales.activations_option
@options.layer_options
@options.precision_options
@targets.quantization_option
@options.weight_options
@targets.target_options
@options.evaluation_options
@options.gate_options
@click.option(
    "--auto",
    is_flag=True,
    help="If the gate fails, keep the cheapest layers out of INT8 that make it hold: chosen on every other "
    "batch of the evaluation data, judged on the rest.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder.  [default: MODEL.trtq]")
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign the folder with this private key, unless the gate fails; see trtq sign. Of an earlier build "
    "only what it has signed is used again.",
)
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Build a verified INT8 (or FP16) engine from a float ONNX model, or from one with Q/DQ.

    Calibrates the model, quantizes it, builds the engine, reads back which layers run in INT8, compares it
    with the float model, and writes everything to one folder. What is set in model.toml beside the model
    need not be given. A model that has Q/DQ already is repaired where TensorRT would refuse it; `trtq lint`
    tells how.

    \b
      trtq build model.onnx --int8 --calib-data calib.npz
      trtq build model.onnx --int8 --calib-data images/ --skip '^head' --compute-capability 8.9
      trtq build model.onnx --int8 --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 \\
          --max-shapes x:32x3x224x224
      trtq build model.onnx --weights int4 --calib-data calib.npz
    """
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        report = build(
            model,
            spec=options.spec_from(model, given),
            target=options.target_from(given),
            output=given["output"],
            random_data=given["random_data"],
            sign_key=given["sign_key"],
            watcher=watcher,
        )
    if given["as_json"]:
        sys.stdout.write(to_json(report).decode())
    elif not given["quiet"]:
        print_report(open_console(), report, verbose=given["verbose"], folder=Path(report.output))
    if report.verdict == "fail":
        raise GateError("the accuracy gate failed: " + "; ".join(report.reasons) + _offer(report))


def _offer(report: Report) -> str:
    """Returns what may help: --auto, where INT8 is judged and quantization may be the cause."""
    if report.auto is not None or report.calibration is None or report.precision != "int8":
        return ""
    if any("quantization is not the cause" in reason for reason in report.reasons):
        return ""
    return "; --auto finds the cheapest layers to keep out of INT8, trtq sensitivity shows what each costs"
