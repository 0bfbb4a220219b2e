"""The page of a build: written with it, or made again of its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtq.files import hash_file
from trtq.models.session import count_weight_bytes
from trtq.pipeline.build.command import format_command
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.html.layers import summarize_layers
from trtq.pipeline.deliver.html.page import NAME, render_page
from trtq.pipeline.deliver.html.page_data import NAME as TENSORS
from trtq.pipeline.deliver.html.page_data import PageData, to_json
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import Report

_SIZED = (".onnx", ".data", ".engine")


def measure_sizes(job: Job, stage: Path) -> dict[str, int]:
    """Returns the bytes of the given model, its weights included, and of the models and engine made of it."""
    given = max(job.graph.path.stat().st_size, count_weight_bytes(job.graph.model))
    made = [path for suffix in _SIZED for path in sorted(stage.glob(f"*{suffix}"))]
    return {"model": given, **{path.name: path.stat().st_size for path in made}}


def write_page(stage: Path, job: Job, report: Report, manifest: Manifest, seen: PageData) -> Manifest:
    """Writes what was seen of tensors and layers, and the page, the last but one file of a folder.

    Args:
        stage: The folder, with all its other files.
        job: What was built.
        report: Of the build.
        manifest: Of the build, without outputs.
        seen: The tensors.

    Returns:
        The manifest with the command that does the same, and with the digests of all files.
    """
    seen = replace(seen, layers=summarize_layers(job.graph.model, job.placement))
    if seen != PageData():
        (stage / TENSORS).write_bytes(to_json(seen))
    command = format_command(job, report.auto.skip if report.auto is not None else ())
    manifest = replace(manifest, commands={**manifest.commands, "trtq": command})
    (stage / NAME).write_bytes(render_page(report, manifest, seen))
    return replace(manifest, outputs={path.name: hash_file(path) for path in sorted(stage.iterdir())})
