"""`trtq package`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.pipeline.deliver.triton.config import Serving
from trtq.pipeline.package import FALLBACKS, Package, PackageSpec, package


@click.command("package", cls=GroupedCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--triton",
    metavar="REPO",
    required=True,
    help="Triton's model repository: a local folder, made if there is none.",
)
@click.option("--name", help="Name of the model.  [default: the folder's, without .trtq]")
@click.option(
    "--fallback",
    type=click.Choice(FALLBACKS),
    help="Also add the folder's ONNX model, as NAME_onnx: for Triton's ONNX Runtime backend, or for its "
    "Python backend, where the package onnxruntime runs it.",
)
@click.option(
    "--ab",
    type=float,
    metavar="PERCENT",
    help="Also add NAME_ab, a model that sends this share of the requests to NAME_onnx and the others to "
    "NAME; if one fails, the other answers.",
)
@click.option(
    "--max-batch", type=int, help="Largest batch; 0: do not join requests.  [default: the engine's]"
)
@click.option(
    "--max-queue-delay",
    type=int,
    default=100,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request may wait to be joined with others.",
)
@click.option("--instances", type=int, default=1, show_default=True, help="Copies of the model on each GPU.")
@click.option(
    "--serve-versions",
    default="1",
    show_default=True,
    metavar="N|all",
    help="How many of the newest versions are served.",
)
@click.option(
    "--warmup-data",
    metavar="DATA",
    help="Data whose first sample warms the server up, as for --calib-data.  [default: the calibration "
    "data of the build, if it is still there]",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A public Ed25519 key in PEM: the build must be signed by its owner.",
)
@click.option("--ignore-gate", is_flag=True, help="Package a build whose accuracy gate failed.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, **given: Any) -> None:
    """Add a build to a model repository of the Triton Inference Server, as a new version.

    Writes config.pbtxt (batching, the engine's profile, warm-up with real data) and the engine. A folder that
    has changed since the build is refused. A version appears whole or not at all and never replaces another.
    A configuration that somebody has edited is kept; one of another model is refused.

    \b
      trtq package model.trtq --triton models/ --name classifier
      trtq package model.trtq --triton models/ --fallback onnxruntime --ab 10
    """
    versions = _count(given["serve_versions"])
    serving = Serving(given["max_batch"], given["max_queue_delay"], given["instances"], versions)
    spec = PackageSpec(
        given["name"],
        given["fallback"],
        given["ab"],
        given["warmup_data"],
        given["ignore_gate"],
        given["key"],
        serving,
    )
    packaged = package(folder, given["triton"], spec)
    if given["as_json"]:
        print_json(asdict(packaged))
    elif not given["quiet"]:
        _print(packaged)


def _count(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UsageError(f"--serve-versions is a number or all, got {text!r}")
    return int(text)


def _print(packaged: Package) -> None:
    console = open_console()
    rows = create_table("model", "version", "")
    for item in packaged.models:
        rows.add_row(item.name, str(item.version), "new" if item.is_new else "was there already")
    console.print(rows)
    for note in packaged.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    console.print(f"in {packaged.repository}", soft_wrap=True)
