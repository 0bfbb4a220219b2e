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
from trtq.pipeline.deliver.index import IndexIntegrity
from trtq.pipeline.deliver.integrity import Integrity
from trtq.pipeline.verify import verify, verify_index

_SIGNATURES = {
    "good": "signed by the owner of the key",
    "unchecked": "its signature is not checked without --key",
    "none": "not signed",
}


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Public Ed25519 key (PEM); the folder must be signed with its private key.",
)
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, key: Path | None, as_json: bool, quiet: bool) -> None:
    """Check every file of a build folder, and its signature.

    Hashes manifest.json and every file that it lists. The exit code is 2 if a file has changed, is
    missing or does not belong to the build. Given an index from build-all, all its folders are checked;
    the index has its own signature. An engine contains executable code: where others can write, only a
    signature proves that it is yours.

    \b
      trtq verify model.trtq
      trtq verify model.trtq --key public.pem
      trtq verify index.json --key public.pem
    """
    is_index = folder.suffix == ".json" and not folder.is_dir()
    found = verify_index(folder, key=key) if is_index else verify(folder, key=key)
    if as_json:
        print_json({**asdict(found), "intact": found.is_intact})
    elif not quiet:
        _print_index(found) if isinstance(found, IndexIntegrity) else _print(found)
    if not found.is_intact:
        raise ArtifactError(f"{folder} is not what was built: {found.problems}")


def _print_index(found: IndexIntegrity) -> None:
    console = open_console()
    for path, item in found.folders.items():
        _print(item, path)
    for path, reason in found.others.items():
        state = ("NOT AS BUILT", "bold red")
        console.print(Text.assemble(f"{path}  ", state, f"  {reason}"), soft_wrap=True)
    console.print(Text(f"{found.index}  {_SIGNATURES[found.signature]}"), soft_wrap=True)


def _print(found: Integrity, path: str = "") -> None:
    console = open_console()
    for style, names in (("changed", found.changed), ("missing", found.missing), ("unknown", found.unknown)):
        for name in names:
            console.print(Text.assemble((f"{style:8}", "bold red"), name), soft_wrap=True)
    state = ("as built", "bold green") if found.is_intact else ("NOT AS BUILT", "bold red")
    facts = f"  {found.num_files} files, {format_bytes(found.num_bytes)}"
    signed = "" if path else f"  {_SIGNATURES[found.signature]}"
    console.print(Text.assemble(f"{path}  " if path else "", state, facts, signed), soft_wrap=True)
