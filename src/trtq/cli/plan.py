"""`trtq plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.sizes import parse_bytes
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.numbers import format_bytes
from trtq.pipeline.engine.profiles import parse_shapes
from trtq.pipeline.formats.scheme import BLOCK_SIZES
from trtq.pipeline.plan import MemoryPlan, Sizes, parse_count, plan_model, plan_params


@click.command("plan")
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--params", metavar="COUNT", help="Instead of a model: so many parameters, such as 10B.")
@click.option(
    "--gpu-memory",
    metavar="SIZE",
    help="What the GPU has: says what fits. 8GB is 10^9 bytes times 8, 8GiB 2^30.",
)
@click.option("--batch", type=int, help="Size of the open first axes.  [default: 1]")
@click.option("--seq", type=int, help="Size of all other open axes.")
@click.option(
    "--shapes", multiple=True, metavar="NAME:DIMS", help="Whole shapes of inputs: name:1x3x224x224."
)
@click.option("--workspace", metavar="SIZE", help="Scratch memory that the engine is granted.")
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    default="64",
    show_default=True,
    help="Elements to a scale, for int4 and nf4.",
)
@click.option("--skip", multiple=True, metavar="REGEX", help="Keeps its precision (repeatable).")
@options.json_option
def command(model: Path | None, **given: Any) -> None:
    """Show what a model needs of a GPU in each precision, and what fits.

    Nothing is built. INT8, INT4 and NF4 are those of `trtq build --weights`, with the rest in FP16.

    \b
      trtq plan model.onnx --gpu-memory 8GB --batch 1 --seq 512
      trtq plan --params 10B --gpu-memory 8GB
    """
    if (model is None) == (given["params"] is None):
        raise UsageError("give a model, or --params with a number of parameters, such as 10B")
    memory = parse_bytes(given["gpu_memory"], decimal=True) if given["gpu_memory"] is not None else None
    block_size = int(given["block_size"])
    if model is None:
        sizing = ("batch", "seq", "shapes", "workspace", "skip")
        if found := next((name for name in sizing if given[name]), None):
            raise UsageError(f"--{found} is for a model, which --params is not")
        plan = plan_params(parse_count(given["params"]), gpu_memory_bytes=memory, block_size=block_size)
    else:
        batch = given["batch"] if given["batch"] is not None else 1
        plan = plan_model(
            model,
            sizes=Sizes(
                batch, given["seq"], parse_shapes(",".join(given["shapes"])) if given["shapes"] else {}
            ),
            gpu_memory_bytes=memory,
            workspace_bytes=parse_bytes(given["workspace"], decimal=True) if given["workspace"] else 0,
            block_size=block_size,
            skip=given["skip"],
        )
    if given["as_json"]:
        schemes = [{**asdict(item), "total_bytes": item.total_bytes} for item in plan.schemes]
        print_json({**asdict(plan), "schemes": schemes})
    else:
        _print(plan)


def _print(plan: MemoryPlan) -> None:
    console = open_console()
    console.print(f"{plan.subject}  {plan.num_params:,} weights", soft_wrap=True)
    has_state = any(item.state_bytes for item in plan.schemes)
    headers = ["weights", "bits each", "engine", "activations", *(["of it state"] if has_state else [])]
    headers += ["total", *(["fits"] if plan.gpu_memory_bytes is not None else [])]
    rows = create_table("precision", *headers, numbers=len(headers))
    for item in plan.schemes:
        cells = [
            format_bytes(item.weights_bytes),
            f"{item.bits_per_weight:.2f}",
            format_bytes(item.engine_bytes),
        ]
        cells.append(format_bytes(item.activations_bytes) if item.activations_bytes else "-")
        cells += [format_bytes(item.state_bytes)] if has_state else []
        cells.append(format_bytes(item.total_bytes))
        cells += ["yes" if item.fits else "no"] if item.fits is not None else []
        rows.add_row(item.name.upper(), *cells)
    console.print(rows)
    reserve = max((item.reserve_bytes for item in plan.schemes), default=0)
    console.print(f"total: engine, activations, and {format_bytes(reserve)} for CUDA and scratch memory")
    for note in plan.notes:
        console.print(f"  {note}", soft_wrap=True)
    if plan.gpu_memory_bytes is not None:
        chosen = plan.recommended.upper() if plan.recommended else "none"
        console.print(
            f"recommended for {format_bytes(plan.gpu_memory_bytes)}: {chosen}: {plan.reason}", soft_wrap=True
        )
