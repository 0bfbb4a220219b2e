"""`trtq cache`."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from trtq.calibrators.cache import (
    ALGORITHMS,
    CalibrationCache,
    compare_caches,
    format_cache,
    format_version,
    parse_cache,
    parse_version,
    read_bytes,
    read_cache,
    replace_header,
    to_hex,
)
from trtq.calibrators.ranges import QMAX, read_ranges
from trtq.cli import options
from trtq.cli.console import open_console, print_json
from trtq.cli.help import GuessingGroup
from trtq.cli.tables import create_table
from trtq.errors import UsageError
from trtq.files import check_output, write_atomically
from trtq.numbers import format_count
from trtq.pipeline.cache import export_cache
from trtq.pipeline.graph.onnx_file import list_model_files

_SHORT = {name: short for short, name in ALGORITHMS.items()}
_FILE = click.Path(path_type=Path)
_to_option = click.option(
    "--to", type=click.Choice(list(ALGORITHMS)), help="The calibrator that will read it."
)


@click.group("cache", cls=GuessingGroup)
def command() -> None:
    """Show, convert, compare and write TensorRT's calibration caches.

    \b
      trtq cache show calibration.cache
      trtq cache convert calibration.cache --to entropy2 --tensorrt 10.3
      trtq cache diff old.cache new.cache
      trtq cache export ranges.json --tensorrt 8.6 --model model.onnx
    """


@command.command("show")
@click.argument("file", type=_FILE)
@options.json_option
def show_cache(file: Path, as_json: bool) -> None:
    """Show who wrote a cache, and the scale of each tensor in it."""
    cache = read_cache(file)
    if as_json:
        tensors = [
            {"tensor": name, "scale": scale, "amax": scale * QMAX, "hex": to_hex(scale)}
            for name, scale in cache.scales.items()
        ]
        print_json({**_header_to_plain(cache), "tensors": tensors})
        return
    console = open_console()
    zeros = sum(1 for scale in cache.scales.values() if scale == 0)
    console.print(
        f"{format_count(len(cache.scales), 'tensor')} by {cache.origin}"
        + (f", {zeros} with scale 0" if zeros else "")
    )
    rows = create_table("tensor", "hex", "scale", "amax", numbers=3)
    for name, scale in cache.scales.items():
        rows.add_row(name, to_hex(scale), f"{scale:.6g}", f"{scale * QMAX:.6g}")
    console.print(rows)


@command.command("convert")
@click.argument("file", type=_FILE)
@_to_option
@click.option("--tensorrt", metavar="VERSION", help="The TensorRT that will read it, such as 8.6.1 or 10.3.")
@options.take_output("The cache to write.  [default: FILE with both in its name]")
def convert(file: Path, to: str | None, tensorrt: str | None, output: Path | None) -> None:
    """Rewrite the header of a cache, so that another calibrator or TensorRT reads it.

    TensorRT ignores a cache of another calibrator or release and calibrates again without a message. The
    scales stay the same, byte for byte, and so does the part of the header that is not given.
    """
    if to is None and tensorrt is None:
        raise UsageError("nothing to convert to: give --to, --tensorrt or both")
    version = parse_version(tensorrt) if tensorrt is not None else None
    old = read_cache(file)
    content = replace_header(read_bytes(file), version=version, algorithm=ALGORITHMS[to] if to else None)
    new = parse_cache(content)
    if output is None:
        assert new.version is not None
        assert new.algorithm is not None
        name = _SHORT.get(new.algorithm, new.algorithm)
        output = file.with_name(f"{file.stem}.{name}-{format_version(new.version)}{file.suffix}")
    check_output(output, file)
    write_atomically(output, content)
    console = open_console()
    console.print(f"{format_count(len(new.scales), 'tensor')} by {old.origin}, now for {new.origin}")
    console.print(f"written to {output}", soft_wrap=True)


@command.command("diff")
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@options.json_option
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Show the tensors that only one of two caches has, and the scales that differ.

    Headers do not count. The exit code is 0 whether they differ or not.
    """
    ours, theirs = read_cache(first), read_cache(second)
    found = compare_caches(ours, theirs)
    if as_json:
        print_json(
            {
                "equal": found.count == 0,
                "first": _header_to_plain(ours),
                "second": _header_to_plain(theirs),
                "only_first": found.only_first,
                "only_second": found.only_second,
                "changed": [
                    {**asdict(pair), "ratio": pair.ratio if math.isfinite(pair.ratio) else None}
                    for pair in found.changed
                ],
            }
        )
        return
    console = open_console()
    console.print(f"first:  {format_count(len(ours.scales), 'tensor')} by {ours.origin}")
    console.print(f"second: {format_count(len(theirs.scales), 'tensor')} by {theirs.origin}")
    verb = "differs" if found.count == 1 else "differ"
    console.print(f"{format_count(found.count, 'tensor')} {verb}" if found.count else "equal")
    if not found.count:
        return
    rows = create_table("tensor", "first", "second", "second / first", numbers=3)
    lines = [(name, f"{ours.scales[name]:.6g}", "-", "-") for name in found.only_first]
    lines += [(name, "-", f"{theirs.scales[name]:.6g}", "-") for name in found.only_second]
    lines += [(at.tensor, f"{at.first:.6g}", f"{at.second:.6g}", f"{at.ratio:.8g}") for at in found.changed]
    for line in lines:
        rows.add_row(*line)
    console.print(rows)


@command.command("export")
@click.argument("ranges", type=_FILE)
@click.option(
    "--tensorrt", metavar="VERSION", required=True, help="The TensorRT that will read it, such as 8.6.1."
)
@_to_option
@options.take_path(
    "--model",
    text="The ONNX file that TensorRT will read; tensors get the names that they have in it.  [default: the "
    "names of trtq's own graph, where BatchNormalization is folded]",
)
@options.take_output("The cache to write.  [default: calibration.cache]")
def export(ranges: Path, tensorrt: str, to: str | None, model: Path | None, output: Path | None) -> None:
    """Write a ranges file as a calibration cache, for TensorRT 10.16 and older."""
    output = output or Path("calibration.cache")
    check_output(output, ranges, *([] if model is None else list_model_files(model, output)))
    version = parse_version(tensorrt)
    cache = export_cache(read_ranges(ranges), version, ALGORITHMS[to or "entropy2"], model)
    write_atomically(output, format_cache(cache))
    console = open_console()
    if model is None:
        console.print(
            Text("names are those of trtq's own graph; --model takes those of the file", style="dim")
        )
    console.print(f"{format_count(len(cache.scales), 'tensor')} for {cache.origin}")
    console.print(f"written to {output}", soft_wrap=True)


def _header_to_plain(cache: CalibrationCache) -> dict[str, Any]:
    version = None if cache.version is None else format_version(cache.version)
    return {"version": cache.version, "tensorrt": version, "algorithm": cache.algorithm}
