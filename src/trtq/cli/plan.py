"""`trtq plan`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.sizes import parse_decimal_bytes
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.numbers import format_bytes
from trtq.pipeline.engine.profiles import parse_shapes
from trtq.pipeline.formats import FP16
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.plan import KV_CACHES, DynamicSizes, MemoryPlan, parse_count, plan_model, plan_params


@click.command("plan", cls=GroupedCommand)
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--params", metavar="COUNT", help="Number of parameters, such as 10B, instead of a model.")
@click.option(
    "--gpu-memory",
    type=parse_decimal_bytes,
    metavar="SIZE",
    help="GPU memory, to show what fits. 8GB is 8 * 10^9 bytes, 8GiB is 8 * 2^30.",
)
@click.option("--batch", type=int, help="Batch size, for dynamic first axes.  [default: 1]")
@click.option("--seq", type=int, help="Size of all other dynamic axes.")
@click.option("--past", type=int, help="Number of tokens in the KV cache of a decoder (past_key_values).")
@click.option(
    "--new", type=int, help="Number of new tokens per run; the attention mask covers both.  [default: --seq]"
)
@click.option(
    "--kv-cache",
    type=click.Choice(KV_CACHES),
    default=FP16.name,
    show_default=True,
    help="Count the KV cache of a decoder in this format.",
)
@click.option(
    "--shapes", multiple=True, metavar="NAME:DIMS", help="Full shapes of inputs, such as name:1x3x224x224."
)
@click.option("--workspace", type=parse_decimal_bytes, metavar="SIZE", help="Scratch memory of the engine.")
@click.option(
    "--block-size",
    type=click.Choice([str(size) for size in BLOCK_SIZES]),
    default="64",
    show_default=True,
    help="For int4 and nf4: weights per scale.",
)
@click.option("--double-quant", is_flag=True, help="For nf4: count the scales in 8 bits.")
@click.option(
    "--skip",
    multiple=True,
    metavar="REGEX",
    help="Do not quantize nodes whose names match (repeatable).",
)
@click.option(
    "--quantize-sensitive",
    is_flag=True,
    help="Also count lm_head, proj_out, ... as quantized, like the option of trtq build.",
)
@options.json_option
def command(
    model: Path | None,
    params: str | None,
    gpu_memory: int | None,
    batch: int | None,
    seq: int | None,
    past: int | None,
    new: int | None,
    kv_cache: str,
    shapes: tuple[str, ...],
    workspace: int | None,
    block_size: str,
    double_quant: bool,
    skip: tuple[str, ...],
    quantize_sensitive: bool,
    as_json: bool,
) -> None:
    """Estimate the GPU memory a model needs in each precision, and show what fits.

    Nothing is built. INT8, FP8, INT4 and NF4 mean weight-only quantization (`trtq build --weights`), with
    the rest in FP16.

    \b
      trtq plan model.onnx --gpu-memory 8GB --batch 1 --seq 512
      trtq plan decoder.onnx --gpu-memory 8GB --past 4096 --new 1
      trtq plan --params 10B --gpu-memory 8GB
    """
    if model is not None and params is None:
        plan = plan_model(
            model,
            sizes=DynamicSizes(
                batch=1 if batch is None else batch,
                seq=seq,
                shapes=parse_shapes(",".join(shapes)) if shapes else {},
                past=past,
                new=new,
            ),
            kv_cache=kv_cache,
            gpu_memory_bytes=gpu_memory,
            workspace_bytes=workspace or 0,
            block_size=int(block_size),
            double_quant=double_quant,
            skip=skip,
            quantize_sensitive=quantize_sensitive,
        )
    elif params is not None and model is None:
        sizing: dict[str, object] = {
            "batch": batch,
            "seq": seq,
            "shapes": shapes,
            "workspace": workspace,
            "skip": skip,
        }
        sizing |= {"past": past, "new": new, "quantize-sensitive": quantize_sensitive or None}
        sizing |= {"kv-cache": kv_cache if kv_cache != FP16.name else None}
        if unused := next((name for name, value in sizing.items() if value not in (None, ())), None):
            raise UsageError(f"--{unused} is for a model, which --params is not")
        plan = plan_params(
            parse_count(params),
            gpu_memory_bytes=gpu_memory,
            block_size=int(block_size),
            double_quant=double_quant,
        )
    else:
        raise UsageError("give a model, or --params with a number of parameters, such as 10B")
    if as_json:
        schemes = [{**asdict(item), "total_bytes": item.total_bytes} for item in plan.schemes]
        mixture = plan.mixture and {**asdict(plan.mixture), "command": plan.mixture.command}
        print_json({**asdict(plan), "schemes": schemes, "mixture": mixture})
    else:
        _print(plan)


def _print(plan: MemoryPlan) -> None:
    console = open_console()
    noun = "weight" if plan.num_params == 1 else "weights"
    console.print(f"{plan.subject}  {plan.num_params:,} {noun}", soft_wrap=True)
    has_state = any(item.state_bytes for item in plan.schemes)
    headers = ["weights", "bits each", "engine", "activations", *(["of it state"] if has_state else [])]
    headers += ["total", *(["fits"] if plan.gpu_memory_bytes is not None else [])]
    rows = create_table("precision", *headers, numbers=len(headers))
    for item in plan.schemes:
        sizes = format_bytes(item.weights_bytes), format_bytes(item.engine_bytes)
        cells = [sizes[0], f"{item.bits_per_weight:.2f}", sizes[1]]
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
        chosen = f"{plan.recommended.upper() if plan.recommended else 'none'}: {plan.reason}"
        console.print(f"recommended for {format_bytes(plan.gpu_memory_bytes)}: {chosen}", soft_wrap=True)
    if plan.mixture is not None and plan.mixture.memory is not None:
        total = format_bytes(plan.mixture.memory.total_bytes)
        console.print(f"or a mixture, {total} in all: {plan.mixture}", soft_wrap=True)
        console.print(f"  {plan.mixture.command}", soft_wrap=True)
