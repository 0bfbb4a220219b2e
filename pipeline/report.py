"""The page of a build, made again of its folder, and two builds side by side."""

from __future__ import annotations

from pathlib import Path

from trtq.errors import UsageError
from trtq.pipeline.deliver.html.page import render_page
from trtq.pipeline.deliver.html.page_data import NAME as TENSORS
from trtq.pipeline.deliver.html.page_data import read_page_data
from trtq.pipeline.deliver.integrity import read_whole_manifest, refuse_changed
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.side_by_side import PairRow, compare_reports
from trtq.pipeline.judge.sensitivity import read_sensitivity


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
    measured = read_sensitivity(Path(sensitivity)) if sensitivity is not None else None
    if measured is not None and not {item.name for item in measured.layers} & {
        layer.name for layer in seen.layers
    }:
        raise UsageError(
            f"{sensitivity} is of {measured.model}, none of whose layers is one of {folder}; "
            f"measure the model of this build"
        )
    return render_page(read_report(folder / REPORT), manifest, seen, measured)


def compare_builds(first: Path | str, second: Path | str) -> list[PairRow]:
    """Returns what is the same and what differs between two build folders.

    Raises:
        ArtifactError: One is no build folder, or its manifest or report was changed since.
    """
    folders = (Path(first), Path(second))
    for folder in folders:
        _read_unchanged(folder)
    return compare_reports(*(read_report(folder / REPORT) for folder in folders))


def _read_unchanged(folder: Path) -> Manifest:
    """Returns the manifest of a folder whose report is the one that the build wrote."""
    manifest = read_whole_manifest(folder)
    refuse_changed(folder, manifest, *(name for name in (REPORT, TENSORS) if name in manifest.outputs))
    return manifest
