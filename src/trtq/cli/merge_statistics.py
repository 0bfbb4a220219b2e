"""`trtq merge-statistics`."""

from __future__ import annotations

from pathlib import Path

import click

from trtq.calibrators.statistics_file import merge_statistics, read_statistics, statistics_to_bytes
from trtq.cli import options
from trtq.cli.console import open_console
from trtq.errors import ArtifactError
from trtq.files import check_output, write_atomically
from trtq.numbers import format_count


@click.command("merge-statistics")
@click.argument("parts", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.take_output("The statistics file to write.", is_required=True)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(parts: tuple[Path, ...], output: Path, quiet: bool) -> None:
    """Merge the calibration statistics of all shards of the data, in any order.

    \b
      trtq calibrate model.onnx --calib-data calib.npz --shard 1/2 --save-statistics a.npz
      trtq calibrate model.onnx --calib-data calib.npz --shard 2/2 --save-statistics b.npz
      trtq merge-statistics a.npz b.npz -o all.npz
      trtq calibrate model.onnx --statistics all.npz
    """
    check_output(output, *parts)
    merged = merge_statistics([read_statistics(part) for part in parts], [str(part) for part in parts])
    if missing := merged.missing_shards:
        raise ArtifactError(
            f"part {', '.join(map(str, missing))} of {merged.source.num_shards} of the data is missing; "
            f"observe it with `trtq calibrate --shard {missing[0]}/{merged.source.num_shards}`"
        )
    write_atomically(output, statistics_to_bytes(merged))
    if not quiet:
        console = open_console()
        samples = format_count(merged.num_samples, "sample")
        console.print(f"{format_count(len(merged.histograms), 'tensor')} over {samples}")
        console.print(f"written to {output}", soft_wrap=True)
