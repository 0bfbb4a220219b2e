"""The page of a build, made again of its folder, and two builds side by side."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from trtq.errors import UsageError
from trtq.pipeline.deliver.html.page import render_page, render_pair
from trtq.pipeline.deliver.html.page_data import NAME as TENSORS
from trtq.pipeline.deliver.html.page_data import PageData, read_page_data
from trtq.pipeline.deliver.html.rows import list_layer_rows
from trtq.pipeline.deliver.integrity import read_whole_manifest, refuse_changed
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.side_by_side import PairRow, compare_layers, compare_reports, name_builds
from trtq.pipeline.judge.sensitivity import Sensitivity, read_sensitivity


def report(folder: Path | str, sensitivity: Path | str | None = None) -> bytes:
    """Returns the page of a build folder, made again of its report: the same one, unless more is given.

    Args:
        folder: That `build` wrote.
        sensitivity: What `trtq sensitivity` wrote of the same model, to show what each layer costs.

    Raises:
        ArtifactError: It is not a build folder, or its manifest, report or tensors were changed since; the
            other file is broken.
        UsageError: The other file has no layer of this build.
    """
    folder = Path(folder)
    manifest = _read_unchanged(folder)
    seen = read_page_data(folder)
    measured = _read_sensitivity(folder, seen, sensitivity)
    return render_page(read_report(folder / REPORT), manifest, seen, measured)


@dataclass(frozen=True, slots=True)
class BuildPair:
    """Two builds side by side.

    Attributes:
        rows: What they have and what changed.
        page: The same as a page, with the layers that only one of them keeps float.
    """

    rows: tuple[PairRow, ...]
    page: bytes


def compare_builds(first: Path | str, second: Path | str) -> BuildPair:
    """Returns what is the same and what differs between two build folders.

    Args:
        first: The build that the other is measured by.
        second: The other.

    Raises:
        ArtifactError: One is no build folder, or its manifest or report was changed since.
    """
    folders = Path(first), Path(second)
    for folder in folders:
        _read_unchanged(folder)
    reports = [read_report(folder / REPORT) for folder in folders]
    rows = compare_reports(*reports)
    return BuildPair(tuple(rows), render_pair(name_builds(*folders), rows, compare_layers(*reports)))


def list_layers(folder: Path | str, sensitivity: Path | str | None = None) -> bytes:
    """Returns the layers of a build folder as CSV, as the page shows them, below a line of names.

    Levels are SQNR in dB, empty where there are none. Layers that stay float follow those with codes.

    Args:
        folder: That `build` wrote.
        sensitivity: What `trtq sensitivity` wrote of the same model, for the measured level.

    Raises:
        ArtifactError, UsageError: As of `report`.
    """
    folder = Path(folder)
    manifest, report = _read_unchanged(folder), read_report(folder / REPORT)
    seen = read_page_data(folder)
    measured = _read_sensitivity(folder, seen, sensitivity)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    levels = (*(["output_db"] if measured else []), "input_db", "weight_db")
    writer.writerow(("layer", "type", "runs_as", *levels, "tensor", "amax", "reason"))
    for row in list_layer_rows(seen, manifest, measured):
        tensor = None if row.tensor is None else seen.tensors[row.tensor]
        numbers = ("" if level.db is None else f"{level.db:.3f}" for level in row.levels)
        read = ("", "") if tensor is None else (tensor.name, f"{tensor.used.amax:.6g}")
        writer.writerow((row.name, row.op_type, row.runs_as, *numbers, *read, ""))
    for node in report.kept_float:
        writer.writerow((node.name, node.op_type, "", *[""] * len(levels), "", "", node.reason))
    return text.getvalue().encode(errors="backslashreplace")


def _read_sensitivity(folder: Path, seen: PageData, path: Path | str | None) -> Sensitivity | None:
    """Returns what was measured of the layers of a build; None without a file."""
    if path is None:
        return None
    measured = read_sensitivity(Path(path))
    if not {item.name for item in measured.layers} & {layer.name for layer in seen.layers}:
        raise UsageError(
            f"{path} is of {measured.model}, none of whose layers is one of {folder}; "
            f"measure the model of this build"
        )
    return measured


def _read_unchanged(folder: Path) -> Manifest:
    """Returns the manifest of a folder whose report is the one that the build wrote."""
    manifest = read_whole_manifest(folder)
    refuse_changed(folder, manifest, *(name for name in (REPORT, TENSORS) if name in manifest.outputs))
    return manifest
