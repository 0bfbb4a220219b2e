"""`trtq demo`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.cli.console import echo
from trtq.models.demo import write_demo


@click.command("demo")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("demo"))
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, quiet: bool) -> None:
    """Write a small trained model with data, for trying out trtq.

    A handwritten digit classifier, its calibration data, its labelled evaluation data, and a model.toml
    that names them.

    \b
      trtq demo demo/
      trtq build demo/model.onnx --int8
    """
    for path in write_demo(folder):
        if not quiet:
            echo(f"wrote {path}")
