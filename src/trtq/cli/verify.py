"""`trtq verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.text import Text

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.errors import ArtifactError
from trtq.numbers import format_bytes
from trtq.pipeline.deliver.integrity import Integrity
from trtq.pipeline.verify import verify

_SIGNATURES = {
    "good": "signed by the owner of the key",
    "unchecked": "signed; --key says by whom",
    "none": "not signed",
}


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A public Ed25519 key in PEM: the folder must be signed by its owner.",
)
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, key: Path | None, as_json: bool, quiet: bool) -> None:
    """Check every file of a build folder, and its signature.

    Hashes manifest.json and every file that it names again. The exit code is 2 if a file has changed, is
    missing or is not part of the build. An engine is executable input: where others can write, only a
    signature proves that it is yours.

    \b
      trtq verify model.trtq
      trtq verify model.trtq --key public.pem
    """
    found = verify(folder, key=key)
    if as_json:
        print_json({**asdict(found), "intact": found.is_intact})
    elif not quiet:
        _print(found)
    if not found.is_intact:
        raise ArtifactError(f"{folder} is not what was built: {found.problems}")


def _print(found: Integrity) -> None:
    console = open_console()
    for style, names in (("changed", found.changed), ("missing", found.missing), ("unknown", found.unknown)):
        for name in names:
            console.print(Text.assemble((f"{style:8}", "bold red"), name), soft_wrap=True)
    state = ("as built", "bold green") if found.is_intact else ("NOT AS BUILT", "bold red")
    facts = f"  {found.num_files} files, {format_bytes(found.num_bytes)}  {_SIGNATURES[found.signature]}"
    console.print(Text.assemble(state, facts), soft_wrap=True)
