"""`trtq package`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.pipeline.deliver.triton.config import Serving
from trtq.pipeline.package import FALLBACKS, Package, PackageSpec, package
from trtq.pipeline.package.deepstream import package_deepstream


@click.command("package", cls=GroupedCommand)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--triton",
    metavar="REPO",
    help="Triton model repository: a local folder, created if necessary.",
)
@click.option(
    "--deepstream",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder for DeepStream: config_infer_primary.txt for nvinfer and the files it refers to.",
)
@click.option(
    "--label-file",
    type=click.Path(path_type=Path),
    help="For --deepstream: class names, one per line.",
)
@click.option("--name", help="Model name.  [default: the folder name without .trtq]")
@click.option(
    "--fallback",
    type=click.Choice(FALLBACKS),
    help="Also add the ONNX model as NAME_onnx: for Triton's ONNX Runtime backend, or for its Python "
    "backend with the package onnxruntime.",
)
@click.option(
    "--ab",
    type=float,
    metavar="PERCENT",
    help="Also add NAME_ab, which sends this percentage of the requests to NAME_onnx and the others to "
    "NAME, and falls back to the other if one fails.",
)
@click.option("--max-batch", type=int, help="Largest batch; 0 turns batching off.  [default: the engine's]")
@click.option(
    "--max-queue-delay",
    type=int,
    default=100,
    show_default=True,
    metavar="MICROSECONDS",
    help="How long a request may wait to be batched with others.",
)
@click.option("--instances", type=int, default=1, show_default=True, help="Model instances per GPU.")
@click.option(
    "--serve-versions",
    default="1",
    show_default=True,
    metavar="N|all",
    help="Serve this many of the newest versions.",
)
@click.option(
    "--warmup-data",
    metavar="DATA",
    help="Data for the warm-up request, in any format of --calib-data.  [default: the calibration data of "
    "the build, if it still exists]",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public Ed25519 key (PEM); the build must be signed with its private key.",
)
@click.option("--ignore-gate", is_flag=True, help="Package a build whose accuracy gate failed.")
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, **given: Any) -> None:
    """Add a build to a Triton model repository, or write it for DeepStream.

    For Triton, a new version is added: the engine and config.pbtxt (batching, optimization profile,
    warm-up with real data). A folder that has changed since the build is refused. Versions are added
    atomically and never replaced. A config.pbtxt that you edited is kept; if it is for another model, the
    command fails.

    For DeepStream, config_infer_primary.txt for nvinfer is written, with the preprocessing of the build,
    and the files that it refers to.

    \b
      trtq package model.trtq --triton models/ --name classifier
      trtq package model.trtq --triton models/ --fallback onnxruntime --ab 10
      trtq package model.trtq --deepstream nvinfer/
    """
    if (given["triton"] is None) == (given["deepstream"] is None):
        raise UsageError("give one of --triton and --deepstream")
    if given["deepstream"] is not None:
        _package_deepstream(folder, given)
        return
    if given["label_file"] is not None:
        raise UsageError("--label-file is for --deepstream")
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


def _package_deepstream(folder: Path, given: Mapping[str, Any]) -> None:
    context = click.get_current_context()
    own = ("deepstream", "label_file", "key", "ignore_gate", "as_json", "quiet", "folder")
    for name in given:
        if name not in own and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"--{name.replace('_', '-')} is for --triton")
    options = {"labels": given["label_file"], "key": given["key"], "ignore_gate": given["ignore_gate"]}
    written = package_deepstream(folder, given["deepstream"], **options)
    if given["as_json"]:
        print_json(asdict(written))
    elif not given["quiet"]:
        console = open_console()
        for name in written.files:
            console.print(Text(f"wrote {Path(written.folder) / name}"), soft_wrap=True)
        for note in written.notes:
            console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)


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
