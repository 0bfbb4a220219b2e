"""A job with further layers kept float, and the layers that are better kept so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from trtq.calibrators.ranges import Ranges
from trtq.kept import Fallback
from trtq.pipeline.build.job import Job
from trtq.pipeline.engine.backend import Precision
from trtq.pipeline.formats import LAYER_FORMATS
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, Placement

NO_KERNEL = "no-kernel: "
"""Begins the reason of a layer that was quantized first, and that the builder ran in float all the same."""


def keep_layers(job: Job, ranges: Ranges, reasons: Mapping[str, str]) -> Job:
    """Returns the job with these layers kept float too.

    A layer that is kept can make another input of an Add the one to quantize. Where that has no range, the
    Add is kept as well.

    Args:
        job: An INT8 build.
        ranges: Of its tensors.
        reasons: Why, by the name of the layer.
    """
    while True:
        job = replace(job, kept={**job.kept, **reasons})
        missing = {*job.placement.activations} - ranges.tensors.keys()
        reasons = {
            node.name: f"tensor {tensor!r} has no range"
            for node in job.placement.quantized
            for _, tensor in node.activations
            if tensor in missing
        }
        if not reasons:
            return job


def hold_layers(job: Job, ranges: Ranges, forms: Mapping[str, str], explain: Callable[[str], str]) -> Job:
    """Returns the job with layers in these formats, and those float whose format is none of layers.

    Args:
        job: A build with Q/DQ.
        ranges: Of its tensors.
        forms: The name of the format by layer.
        explain: Why a layer is float, by its name.
    """
    found = {name: LAYER_FORMATS[form] for name, form in forms.items() if form in LAYER_FORMATS}
    others = {name: form for name, form in found.items() if form is not job.target.form}
    floats = [name for name in forms if name not in found]
    return keep_layers(replace(job, forms=others), ranges, {name: explain(name) for name in floats})


def add_other_formats(job: Job) -> Job:
    """Returns the job with the layers too that only another of the formats of its target takes, in that."""
    target, found = job.target, dict(job.forms)
    if len(target.code_formats) < 2:
        return job
    placed = {node.name for node in job.placement.quantized}
    for name in target.code_formats:
        for node in place_in(job, name).quantized:
            if node.name not in placed:
                found.setdefault(node.name, node.scheme.form)
    return replace(job, forms=found)


def place_in(job: Job, form: Precision) -> Placement:
    """Returns what the job quantizes with all layers in one format."""
    return replace(job, forms={}, target=replace(job.target, precision=form, formats=())).placement


def list_forms(job: Job) -> dict[str, str]:
    """Returns the name of the format of each quantized node."""
    return {node.name: node.scheme.form.name for node in job.placement.without_closed.quantized}


def find_float_fallbacks(job: Job, fallbacks: Sequence[Fallback]) -> dict[str, str]:
    """Returns the layers that are better built in float, with the reason: codes only cost accuracy there.

    What the user asked for by name or type stays, and so does what the builder removed or does not tell of.

    Args:
        job: Whose Q/DQ model was built.
        fallbacks: The layers that have Q/DQ and do not run in what they were asked in.
    """
    forced = [re.compile(pattern) for pattern in job.spec.layers.force]
    quantized = {node.name for node in job.placement.layers}
    return {
        item.node: f"{NO_KERNEL}the builder ran it as {item.runs_as} despite its Q/DQ"
        for item in fallbacks
        if item.node in quantized
        and item.op_type in DEFAULT_OP_TYPES
        and item.runs_as not in ("none", "unknown")
        and not any(pattern.search(item.node) for pattern in forced)
    }
