"""`trtq run`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.options import Given
from trtq.cli.tables import create_table
from trtq.models.operators import use_operators
from trtq.models.signature import show_shape
from trtq.models.spec import OperatorSpec
from trtq.numbers import format_count
from trtq.pipeline.run import RunOutcome, run


@click.command("run", cls=GroupedCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(readable=False),
    metavar="DATA",
    required=True,
    help="Input data, in any format of `trtq build --calib-data`, such as an .npz file or a folder of "
    "images.",
)
@options.take_output("Write the outputs to this .npz file, one array each.  [default: not written]")
@click.option(
    "--samples", type=int, help="Run only this many samples, rounded up to whole batches.  [default: all]"
)
@click.option("--name", help="Name of the build, if FOLDER is an index.  [default: its only build]")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx", "onnxruntime"]),
    help="What runs it; onnxruntime runs the Q/DQ model of any build on the CPU.  [default: the backend of "
    "the build]",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public Ed25519 key (PEM); the build must be signed with its private key.",
)
@options.take(OperatorSpec)
@options.json_option
@options.quiet_option
@options.pass_given
def command(
    given: Given,
    folder: Path,
    data: str,
    output: Path | None,
    samples: int | None,
    name: str | None,
    backend: str | None,
    key: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run a build on data and save its outputs.

    Large inputs are split into batches, and the last batch is padded if the engine needs it. Images are
    preprocessed as for the build. The engine is checked against the manifest. Given an index from
    build-all, the engine for this machine is used.

    \b
      trtq run model.trtq --data photos/ -o outputs.npz
      trtq run model.trtq --data x.npz -o outputs.npz --backend onnxruntime
      trtq run index.json --name detector --data x.npz -o outputs.npz
    """
    use_operators(given.apply(OperatorSpec()))
    with ConsoleWatcher(quiet=quiet) as watcher:
        outcome = run(
            folder,
            data,
            output=output,
            samples=samples,
            name=name,
            backend=backend,
            key=key,
            watcher=watcher,
        )
    if as_json:
        print_json(_to_plain(outcome))
    elif not quiet:
        _print(outcome)


def _to_plain(outcome: RunOutcome) -> dict[str, object]:
    """Returns what is told to programs: the arrays by their dtypes and shapes."""
    shown = {
        name: {"dtype": array.dtype.name, "shape": array.shape} for name, array in outcome.outputs.items()
    }
    keys = ("folder", "file", "backend", "data", "num_samples", "output")
    return {**{key: getattr(outcome, key) for key in keys}, "outputs": shown}


def _print(outcome: RunOutcome) -> None:
    console = open_console()
    rows = create_table("output", "dtype", "shape")
    for name, array in outcome.outputs.items():
        rows.add_row(name, array.dtype.name, show_shape(array.shape))
    console.print(rows)
    ran = f"{outcome.file} ran on {format_count(outcome.num_samples, 'sample')} of {outcome.data}"
    console.print(f"{ran}, by {outcome.backend}", soft_wrap=True)
    if outcome.output:
        console.print(f"written to {outcome.output}", soft_wrap=True)
