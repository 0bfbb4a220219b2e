"""`trtq compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.tables import create_comparison_table, print_accuracy, print_logits
from trtq.errors import GateError
from trtq.json import to_plain
from trtq.pipeline.compare import compare
from trtq.pipeline.judge.gate import judge_pair


@click.command("compare")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@options.spec_option
@click.option(
    "--data", "eval_data", metavar="DATA", help="Data to compare on, as for `trtq build --calib-data`."
)
@click.option("--labels", metavar="NAME|FILE.npy", help="Class indices: an array of --data, or a .npy file.")
@click.option("--eval-output", metavar="NAME", help="The output that the labels belong to.")
@click.option(
    "--samples",
    "eval_samples",
    type=int,
    help="Compare only so many samples.  [default: all with labels, else 128]",
)
@click.option("--batch-size", "calib_batch_size", type=int, help="Samples a batch.  [default: 8]")
@options.gate_options
@options.json_option
@options.talk_options
def command(reference: Path, candidate: Path, **given: Any) -> None:
    """Compare the outputs of two ONNX models, the first being right, on the same data.

    The second may be a build folder: then its engine is run, which needs the TensorRT and the GPU that it was
    built for.

    \b
      trtq compare model.onnx model.int8.onnx --data eval.npz --labels labels
      trtq compare model.onnx model.trtq --data eval.npz
    """
    spec = options.spec_from(reference, given)
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        comparison = compare(reference, candidate, spec=spec, watcher=watcher)
    verdict = judge_pair(comparison, spec.accuracy)
    if given["as_json"]:
        print_json({"verdict": verdict.outcome, "reasons": verdict.reasons, **to_plain(comparison)})
    elif not given["quiet"]:
        console = open_console()
        if comparison.accuracy:
            print_accuracy(console, comparison.accuracy, comparison.num_samples, comparison.metric)
        if comparison.top5:
            print_accuracy(console, comparison.top5, comparison.num_samples, "top-5")
        console.print(create_comparison_table(comparison.outputs))
        print_logits(console, comparison.logits)
        console.print(f"on {comparison.num_samples} samples of {comparison.data}", soft_wrap=True)
    if verdict.outcome == "fail":
        raise GateError("the accuracy gate failed: " + "; ".join(verdict.reasons))
