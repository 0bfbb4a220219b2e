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
    help="What to run on, in every form of `trtq build --calib-data`: an .npz or .npy file, a folder of .npz "
    "files or of images, script.py:function, or a .json file of inputs saved by Polygraphy.",
)
@options.take_output("The .npz file for the outputs, one array each.  [default: none is written]")
@click.option(
    "--samples", type=int, help="Run only this many samples, rounded up to batches.  [default: all]"
)
@click.option("--name", help="Of the build, where FOLDER is an index.  [default: it has one alone]")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt-rtx", "onnxruntime"]),
    help="What runs it: onnxruntime runs the Q/DQ model of any build on the CPU, each node as it stands.  "
    "[default: what it was built for]",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A public Ed25519 key in PEM: the build must be signed by its owner.",
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
    """Run what was built on data, and write its outputs.

    More samples than the engine takes at once are split, and a last batch that is too small for it is filled
    up. Pictures are prepared as for the build. The file that is run is checked against the manifest. Of an
    index that build-all wrote, the engine for this machine is taken.

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
