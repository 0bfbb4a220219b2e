"""`trtq export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trtq.cli import options
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.models.families import FAMILIES
from trtq.models.inputs import parse_input, parse_sizes
from trtq.models.target import TASKS
from trtq.numbers import format_bytes, format_count
from trtq.pipeline.export import DEFAULT_OPSET, ExportedFile, ExportOptions, export


@click.command("export", cls=GroupedCommand)
@click.argument("target")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file to write."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:DIMS[:DTYPE]",
    help="An input, such as x:Nx3x224x224:float32 (repeatable, in order). A capital letter is a dynamic dim.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="DIM=SIZE",
    help="Size of a dynamic dim in the example input (repeatable).  [default: 2 on axis 0, 64 on others]",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint: .safetensors, or a PyTorch state_dict.",
)
@click.option("--trust", is_flag=True, help="Allow loading pickles, which runs the code in them.")
@click.option("--no-pretrained", is_flag=True, help="Use random weights for a library's model.")
@click.option(
    "--opset", type=click.IntRange(13, 23), default=DEFAULT_OPSET, show_default=True, help="ONNX opset."
)
@click.option("--data", type=click.Path(path_type=Path), help="An .npz with more inputs to compare on.")
@click.option(
    "--family",
    type=click.Choice(list(FAMILIES)),
    help="For your own module: write the settings for this kind of model.",
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="For hf: export a causal language model with its KV cache as inputs and outputs.",
)
@options.json_option
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
def command(target: str, output: Path, **given: Any) -> None:
    """Export a PyTorch module to ONNX and check that both agree.

    TARGET is package.module:callable (returns an nn.Module; the current folder is searched first),
    torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, or a .pt2 or TorchScript file. The ONNX model is
    simplified and compared with PyTorch on random inputs; if they differ, the exit code is 3. Input
    shapes and preprocessing are written to a .toml next to it, for trtq build.

    \b
      trtq export torchvision:resnet18 -o resnet18.onnx
      trtq export hf:FOLDER --task text-generation -o decoder.onnx
      trtq export mypackage.nets:detector --weights best.pt --input x:Nx3x640x640 -o detector.onnx
    """
    chosen = ExportOptions(
        inputs=tuple(parse_input(text) for text in given["inputs"]),
        sizes=parse_sizes(given["sizes"]),
        weights=given["weights"],
        trust=given["trust"],
        pretrained=not given["no_pretrained"],
        opset=given["opset"],
        data=given["data"],
        family=given["family"],
        task=given["task"],
    )
    with ConsoleWatcher(quiet=given["quiet"]) as watcher:
        exported = export(target, output, options=chosen, watcher=watcher)
    if given["as_json"]:
        print_json(
            {
                "path": str(exported.path),
                "settings": None if exported.settings is None else str(exported.settings),
                "difference": exported.difference,
                "compared": exported.num_compared,
                "nodes": exported.num_nodes,
            }
        )
    elif not given["quiet"]:
        _print(exported)


def _print(exported: ExportedFile) -> None:
    console = open_console()
    weights = exported.path.with_name(f"{exported.path.name}.data")  # beside a large model
    size = format_bytes(sum(path.stat().st_size for path in (exported.path, weights) if path.exists()))
    console.print(
        f"written to {exported.path}  {size}  {format_count(exported.num_nodes, 'node')}", soft_wrap=True
    )
    if exported.settings is not None:
        console.print(f"settings in {exported.settings}", soft_wrap=True)
    difference = f"at most {exported.difference:.2g} of an output's range"
    console.print(
        f"PyTorch and ONNX differ by {difference}, on {format_count(exported.num_compared, 'input')}"
    )
