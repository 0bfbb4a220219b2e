"""`trtq init`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click

from trtq.cli import options
from trtq.cli.console import echo, open_console
from trtq.cli.help import GroupedCommand
from trtq.cli.options import Given
from trtq.errors import UsageError
from trtq.files import as_argument, check_output, is_there, refuse_name, resolve_name, write_atomically
from trtq.models.preprocess import Preprocess, describe
from trtq.models.spec import CalibrationSpec, EvaluationSpec, ModelSpec, find_path
from trtq.pipeline.calibrate.data import find_settings_file
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.pipeline.init import PRESETS, InitialSettings, ModelHints, find_hints, init


@click.command("init", cls=GroupedCommand)
@options.model_argument
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    help="Kind of model: one of these image families, text (encoder, bert), or arrays.  [default: guessed "
    "from the model]",
)
@options.take_one(CalibrationSpec, "data")
@options.take(EvaluationSpec, "data", "labels")
@options.take_pictures()
@options.take_output("The settings file.  [default: MODEL.toml next to the model, where trtq build finds it]")
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@click.option("-y", "--yes", "is_sure", is_flag=True, help="Ask nothing and accept all guesses.")
@options.quiet_option
@options.pass_given
def command(
    given: Given,
    model: Path,
    preset: str | None,
    output: Path | None,
    force: bool,
    is_sure: bool,
    quiet: bool,
) -> None:
    """Write a commented settings file to start from.

    It guesses the inputs, the image preprocessing and the data from the model, from a
    preprocessor_config.json and from data next to the model. In a terminal it asks questions, with its
    guesses as defaults.

    \b
      trtq init model.onnx
      trtq init model.onnx --preset yolo --calib-data street/
    """
    path = output or resolve_name(model).with_suffix(".toml")
    check_output(path, *list_model_files(model, path))
    if path.exists() and not force:
        raise UsageError(f"{path} already exists; --force overwrites it, -o names another file")
    hints = find_hints(model)
    asks = sys.stdin.isatty() and not (is_sure or quiet)
    if asks:
        preset, hints = _ask(hints, preset, given)
    known = replace(
        ModelSpec(),
        calibration=given.apply(ModelSpec().calibration),
        evaluation=given.apply(ModelSpec().evaluation),
    )
    changes = {change.field: change.value for change in given.find(Preprocess)}
    found = init(model, preset=preset, spec=known, preprocess=changes, hints=hints, folder=path.parent)
    spec = found.spec
    for source in (spec.calibration.data, spec.evaluation.data, spec.evaluation.labels):
        refuse_name(Path(str(source)))
    write_atomically(path, found.text.encode())
    if not quiet:
        _print(path, model, found)


def _ask(hints: ModelHints, preset: str | None, given: Given) -> tuple[str, ModelHints]:
    """Returns what a person answers, the guesses standing for Enter."""
    for item in hints.graph.inputs:
        echo(f"input {item}", err=True)
    if preset is None:
        echo(f"it seems to be {hints.preset}: {hints.reason}", err=True)
        preset = click.prompt("preset", default=hints.preset, type=click.Choice(PRESETS), err=True)
    if not given.find(CalibrationSpec, "data"):
        hints = replace(hints, calibration=_ask_for_data("calibration", hints.calibration))
    if not given.find(EvaluationSpec, "data"):
        hints = hints.with_evaluation(_ask_for_data("evaluation", hints.evaluation))
    return str(preset), hints


def _ask_for_data(purpose: str, guess: str | None) -> str | None:
    text: str = click.prompt(f"{purpose} data, a file or folder", default=guess or "", err=True)
    return text.strip() or None


def _print(path: Path, model: Path, found: InitialSettings) -> None:
    """Prints what was written, what to look at, and what comes next."""
    console = open_console()
    console.print(f"written to {path}: {found.preset}, {found.reason}", soft_wrap=True)
    if found.has_pictures:
        console.print(f"pictures: {describe(found.spec.preprocess)}", soft_wrap=True)
    if found.spec.calibration.data is None:
        console.print(
            "no data was found: name it as data in [calibration], or give --calib-data", soft_wrap=True
        )
    for data in filter(None, map(find_path, (found.spec.calibration.data, found.spec.evaluation.data))):
        is_one_path = not {*"*?{:"} & {*data}  # no pattern, and no function of a script
        if is_one_path and not is_there(path.parent / data):
            console.print(f"there is no {data} yet, which a build needs", soft_wrap=True)
    found_beside = find_settings_file(model)
    is_found = found_beside is not None and found_beside.samefile(path)
    words = [
        "trtq",
        "build",
        as_argument(str(model)),
        "--int8",
        *([] if is_found else ["--spec", as_argument(str(path))]),
    ]
    console.print(f"next: {shlex.join(words)}", soft_wrap=True)
