"""The page of a build: written with it, or made again of its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtq.errors import UsageError
from trtq.files import sha256_of
from trtq.models.session import num_weight_bytes
from trtq.pipeline.build.command import command_of
from trtq.pipeline.deliver.html.layers import layers_of
from trtq.pipeline.deliver.html.page import NAME, page_of
from trtq.pipeline.deliver.html.seen import NAME as TENSORS
from trtq.pipeline.deliver.html.seen import Seen, read_seen, to_json
from trtq.pipeline.deliver.integrity import refuse_changed, whole_manifest
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.build.job import Job
from trtq.pipeline.judge.sensitivity import read_sensitivity

_SIZED = (".onnx", ".data", ".engine")


def sizes_of(job: Job, stage: Path) -> dict[str, int]:
    """Returns the bytes of the given model, its weights included, and of the models and engine made of it."""
    given = max(job.graph.path.stat().st_size, num_weight_bytes(job.graph.model))
    made = [path for suffix in _SIZED for path in sorted(stage.glob(f"*{suffix}"))]
    return {"model": given, **{path.name: path.stat().st_size for path in made}}


def write_page(stage: Path, job: Job, report: Report, manifest: Manifest, seen: Seen) -> Manifest:
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
    seen = replace(seen, layers=layers_of(job.graph.model, job.placement))
    if seen != Seen():
        (stage / TENSORS).write_bytes(to_json(seen))
    command = command_of(job, report.auto.skip if report.auto is not None else ())
    manifest = replace(manifest, commands={**manifest.commands, "trtq": command})
    (stage / NAME).write_bytes(page_of(report, manifest, seen))
    return replace(manifest, outputs={path.name: sha256_of(path) for path in sorted(stage.iterdir())})


