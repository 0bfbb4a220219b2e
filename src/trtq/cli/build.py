"""`trtq build`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from trtq.cli import builders, options, targets
from trtq.cli.console import ConsoleWatcher, open_console, print_answer
from trtq.cli.options import Given
from trtq.cli.tables import print_report
from trtq.cli.targets import Formats
from trtq.errors import GateError
from trtq.models.spec import AccuracySpec, EvaluationSpec, LayerSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report, to_json
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import LAYER_FORMATS


@click.command("build")
@options.model_argument
@options.take(Formats, "int8", "fp8", "nvfp4", "fp16")
@options.take(Target, "requantize")
@options.spec_option
@options.take_calibration()
@options.take(QuantizationSpec)
@options.take(LayerSpec)
@options.take(Target, "op_types")
@targets.high_precision_option
@options.take(Target, "quantization")
@targets.weight_options
@builders.builder_options
@options.take(EvaluationSpec)
@options.take(AccuracySpec)
@options.take(Target, "auto", "formats")
@options.take_output("Folder.  [default: MODEL.trtq]")
@click.option(
    "--sign-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Sign the folder with this private key unless the gate fails; see trtq sign. An earlier build is "
    "used again only if this key signed it.",
)
@options.json_option
@options.talk_options
@options.pass_given
def command(
    given: Given,
    model: Path,
    output: Path | None,
    sign_key: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Build a verified INT8 (or FP16) engine from a float ONNX model, or from one with Q/DQ.

    Calibrates and quantizes the model, builds the engine, reads back which layers run in INT8, compares the
    engine with the float model, and writes everything to one folder. Settings in model.toml beside the model
    need not be repeated here. A model that already has Q/DQ is repaired where TensorRT would refuse it
    (`trtq lint` shows the repairs); its layers with Q/DQ keep their scales, and its float layers are
    quantized.

    \b
      trtq build model.onnx --int8 --calib-data calib.npz
      trtq build model.onnx --int8 --calib-data images/ --skip '^head' --compute-capability 8.9
      trtq build model.onnx --int8 --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 \\
          --max-shapes x:32x3x224x224
      trtq build model.onnx --weights int4 --calib-data calib.npz
    """
    with ConsoleWatcher(quiet=quiet) as watcher:
        report = build(
            model,
            spec=given.read_spec(model),
            target=targets.read_target(given),
            output=output,
            random_data=given.random_data,
            sign_key=sign_key,
            watcher=watcher,
        )
    if as_json:
        print_answer(to_json(report).decode())
    elif not quiet:
        print_report(open_console(), report, verbose=verbose, folder=Path(report.output))
    if report.verdict == "fail":
        raise GateError(f"the {report.failed_gates} gate failed: {'; '.join(report.reasons)}{_offer(report)}")


def _offer(report: Report) -> str:
    """Returns what may help: --auto, where layers are quantized and that may be the cause."""
    if report.auto is not None or report.calibration is None or report.precision not in LAYER_FORMATS:
        return ""
    if "accuracy" not in report.failed_gates:
        return ""
    if any("quantization is not the cause" in reason for reason in report.reasons):
        return ""
    measure = shlex.join(["trtq", "sensitivity", report.output])
    return f"; --auto finds the cheapest layers to keep float, `{measure}` shows what each costs"
