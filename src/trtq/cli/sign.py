"""`trtq sign`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.cli.console import echo
from trtq.pipeline.sign import sign


@click.command("sign")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Private Ed25519 key (PEM), without a passphrase.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, key: Path, quiet: bool) -> None:
    """Sign a build folder.

    Writes manifest.sig next to manifest.json, which has the digests of all other files. A folder that has
    changed since the build is not signed.

    \b
      openssl genpkey -algorithm ed25519 -out private.pem
      openssl pkey -in private.pem -pubout -out public.pem
      trtq sign model.trtq --key private.pem
      trtq verify model.trtq --key public.pem
    """
    path = sign(folder, key)
    if not quiet:
        echo(f"written to {path}")
