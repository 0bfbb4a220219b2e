"""The files of a build folder beside the models and the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from trtq.calibrators.batches import Batches
from trtq.calibrators.cache import format_cache, to_cache
from trtq.calibrators.ranges import Ranges, ranges_to_json
from trtq.files import hash_file
from trtq.models.session import count_weight_bytes
from trtq.pipeline.build.command import format_command
from trtq.pipeline.build.engine import EngineBuild
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver import manifest
from trtq.pipeline.deliver.html.graph import summarize_graph
from trtq.pipeline.deliver.html.layers import summarize_layers
from trtq.pipeline.deliver.html.page import NAME as PAGE
from trtq.pipeline.deliver.html.page import render_page
from trtq.pipeline.deliver.html.page_data import NAME as TENSORS
from trtq.pipeline.deliver.html.page_data import PageData, to_json
from trtq.pipeline.deliver.html.thumbnails import draw_thumbnails
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import CACHE, RANGES, REPORT
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.deliver.report import to_json as report_to_json
from trtq.pipeline.graph.cache_ranges import rename_as_in_file

_SIZED = (".onnx", ".data", ".engine")


def measure_sizes(job: Job, stage: Path) -> dict[str, int]:
    """Returns the bytes of the given model, its weights included, and of the models and engine made of it."""
    given = max(job.graph.path.stat().st_size, count_weight_bytes(job.graph.model))
    made = [path for suffix in _SIZED for path in sorted(stage.glob(f"*{suffix}"))]
    return {"model": given, **{path.name: path.stat().st_size for path in made}}


def write_folder(
    stage: Path, job: Job, ranges: Ranges | None, report: Report, engine: EngineBuild, tensors: PageData
) -> None:
    """Writes ranges, cache, report, page and, last, the manifest with the digests of all files.

    A cache of TensorRT's calibrators is for INT8 alone.

    Args:
        stage: The folder, with the models and the engine.
        job: What was built.
        ranges: Of the activations.
        report: Of the build.
        engine: With what each layer runs as, and the vendor's own commands.
        tensors: What the page shows of tensors.
    """
    if ranges is not None:
        (stage / RANGES).write_bytes(ranges_to_json(ranges))
    if ranges is not None and ranges.tensors and not (ranges.formats or job.is_implicit):
        (stage / CACHE).write_bytes(format_cache(rename_as_in_file(to_cache(ranges), job.graph)))
    for name, content in job.extra_files.items():
        (stage / name).write_bytes(content)
    (stage / REPORT).write_bytes(report_to_json(report))
    layers = summarize_layers(job.graph.model, job.placement)
    data = replace(
        tensors,
        layers=layers,
        graph=summarize_graph(job.graph.model) if layers else (),
        thumbnails=draw_thumbnails(job.evaluation, report.comparison),
    )
    if data != PageData():
        (stage / TENSORS).write_bytes(to_json(data))
    contract = _create_manifest(job, engine)
    (stage / PAGE).write_bytes(render_page(report, contract, data))
    outputs = {path.name: hash_file(path) for path in sorted(stage.iterdir())}
    (stage / manifest.NAME).write_bytes(manifest.to_json(replace(contract, outputs=outputs)))


def _create_manifest(job: Job, engine: EngineBuild) -> Manifest:
    """Returns the manifest without the digests of the files."""
    return Manifest(
        inputs={
            str(job.graph.path): job.graph.sha256,
            **job.sources,
            **_hash_data(job),
        },
        outputs={},
        versions={**manifest.collect_versions(), job.backend.name: job.backend.version()},
        settings={"model": asdict(job.spec.shown), "target": asdict(job.target)},
        layers=engine.layers,
        commands={**engine.commands, "trtq": format_command(job)},
        keys=job.keys,
    )


def _hash_data(job: Job) -> Mapping[str, str]:
    """Returns the digests of the reference, and of the content of the data without batch size and count."""
    reference = job.spec.evaluation.reference
    given = {} if reference is None else {f"reference: {reference}": job.reference_sha256}
    data: dict[str, Batches | None] = {"calibration": job.calibration, "evaluation": job.evaluation}
    return given | {
        f"{use}: {item.origin}": re.split("[/:]", item.digest)[0] if item.digest else "unknown"
        for use, item in data.items()
        if item
    }
