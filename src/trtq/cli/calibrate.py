"""`trtq calibrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from trtq.calibrators.ranges import ranges_to_json
from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, result_console
from trtq.errors import ArtifactError
from trtq.files import refuse_input, write_atomically
from trtq.pipeline.stages import calibrate


@click.command("calibrate")
@options.model_argument
@options.spec_option
@options.calibration_options
@options.layer_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("ranges.json"),
    show_default=True,
    help="The ranges file to write.",
)
@options.json_option
@options.talk_options
def command(model: Path, **given: Any) -> None:
    """Estimate the ranges of a model's tensors from data.

    \b
      trtq calibrate model.onnx --calib-data calib.npz --calib-method mse --output ranges.json
    """
    folder = given["output"].absolute().parent
    if not folder.is_dir():  # told now, not when the work is done
        raise ArtifactError(
            f"cannot write {given['output']}: there is no folder {folder}; "
            f"make it, or choose another with --output"
        )
    spec = options.spec_from(model, given)
    refuse_input(given["output"], model, given["spec"], spec.calibration.data, spec.evaluation.data)
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        ranges = calibrate(
            model,
            spec=spec,
            target=options.target_from(given),
            random_data=given["random_data"],
            watcher=watcher,
        )
    content = ranges_to_json(ranges)
    write_atomically(given["output"], content)
    if given["as_json"]:
        sys.stdout.write(content.decode())
    elif not given["quiet"]:
        console = result_console()
        console.print(f"{len(ranges.tensors)} tensors over {ranges.num_samples} samples by {ranges.method}")
        console.print(f"written to {given['output']}", soft_wrap=True)
