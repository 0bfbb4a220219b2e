"""A digest for each stage of a build of everything that its result depends on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trtq.calibrators.batches import Batches
from trtq.calibrators.entropy import Auto
from trtq.calibrators.estimate import describe
from trtq.files import hash_file, is_file
from trtq.models.operators import list_custom_ops, list_plugins
from trtq.models.script import load_function
from trtq.models.spec import ModelSpec
from trtq.pipeline.bench.machine import describe_machine
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.manifest import collect_versions, make_key
from trtq.pipeline.engine.gpu import find_compute_capability


def make_keys(job: Job) -> dict[str, str]:
    """Returns the digests of "ranges", of "engine", and of "everything"."""
    ranges = make_key(collect_versions(), job.graph.sha256, _hash_data(job.shape_data), *_list_ranged(job))
    judged = (
        _hash_data(job.evaluation),
        job.spec.shown.evaluation,
        job.reference_sha256,
        replace(job.spec.accuracy, min_speedup=None),
        _hash_metric(job.spec),
    )
    engine = make_key(
        ranges,
        job.spec.layers,
        job.spec.inputs,
        job.target,
        (job.strategy.quantization, job.strategy.rest.name, job.strategy.is_typed),
        [node.to_key() for node in job.placement.quantized],
        job.backend.name,
        job.backend.version(),
        job.backend.overflows(),
        _hash_libraries(list_plugins()),
        judged if job.target.searches else (),  # then they decide which layers are quantized
        find_compute_capability() if "compute_capabilities" in job.backend.lacks else "",
    )
    return {
        "ranges": ranges,
        "engine": engine,
        "everything": make_key(engine, *judged, *_list_speed(job.spec)),
    }


def make_shared_key(job: Job) -> str:
    """Returns the digest of "ranges" for builds of one moment on several machines with the same libraries.

    Data that a script makes counts as the same: it is made once for all of them.
    """
    data = job.shape_data.digest if job.shape_data is not None else None
    return make_key(job.graph.sha256, data, *_list_ranged(job))


def _list_ranged(job: Job) -> tuple[object, ...]:
    """Returns what the ranges depend on beside versions, model and data."""
    searches = isinstance(job.method, Auto) or job.spec.quantization.repairs
    return (
        _hash_libraries(list_custom_ops()),
        (describe(job.method), job.spec.calibration.method, job.spec.quantization),
        {name: form.name for name, form in job.tensors.items()},
        job.target.requantize,
        job.strategy.rest.name,  # with FP16 the magnitudes of all tensors are watched
        [node.to_key() for node in job.placement.quantized if node.activations] if searches else (),
    )


def _list_speed(spec: ModelSpec) -> tuple[object, ...]:
    """Returns what the speed gate depends on; a verdict holds on this machine alone."""
    wanted = spec.accuracy.min_speedup
    return () if wanted is None else (wanted, describe_machine())


def _hash_metric(spec: ModelSpec) -> str:
    """Returns a digest of the metric; the user's own is loaded once to see that it works.

    What a script imports or reads is known only by running it.
    """
    if spec.accuracy.script is None:
        return "no script"
    load_function(*spec.accuracy.script)
    return _never_the_same()


def _hash_data(batches: Batches | None) -> str:
    if batches is None:
        return "no data"
    return batches.digest or _never_the_same()


def _hash_libraries(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the digests of libraries; of one named without its path nobody knows which is loaded."""
    return tuple(hash_file(Path(path)) if is_file(Path(path)) else _never_the_same() for path in paths)


def _never_the_same() -> str:
    return f"known only by running it, at {time.time_ns()}"
