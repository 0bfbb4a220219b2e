"""From TensorRT's calibration cache and the float model to Q/DQ and an engine, without data; and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from trtq.calibrators.cache import CalibrationCache, parse_cache, read_bytes
from trtq.calibrators.ranges import QMAX
from trtq.errors import ArtifactError, ModelError, UsageError
from trtq.files import hash_file, resolve_name
from trtq.json import FileKind
from trtq.models.spec import PER_TOKEN, ModelSpec
from trtq.numbers import format_count
from trtq.pipeline.build import run_job
from trtq.pipeline.build.job import Job
from trtq.pipeline.build.prepare import complete_job, load_job, refuse_inputs_in
from trtq.pipeline.deliver.names import CACHE, MIGRATION
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP16
from trtq.pipeline.graph.cache_ranges import (
    MappedTensor,
    Migration,
    UncoveredTensor,
    UnmappedKey,
    place_from_cache,
)
from trtq.pipeline.rewrite.qparams import choose_activation_qparams
from trtq.progress import Log, Watcher, choose_watcher


@dataclass(frozen=True, slots=True)
class CacheOutcome:
    """What became of a cache.

    Attributes:
        cache: What was migrated.
        migration: What became of every key and of every tensor that needs a scale.
        num_rounded: How many scales are not the cache's to the bit: 0 where nothing computes in FP16.
        largest_rise: The most that rounding up added to a scale, as a share of it: 0.001 is 0.1 %.
    """

    cache: CalibrationCache
    migration: Migration
    num_rounded: int
    largest_rise: float


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """A migrated model.

    Attributes:
        report: As of a build.
        outcome: What became of the scales of the cache.
    """

    report: Report
    outcome: CacheOutcome


@dataclass(frozen=True, slots=True)
class CacheHeader:
    """The first line of a cache, in two parts."""

    version: int | None
    algorithm: str | None


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """`CacheOutcome` as the file has it."""

    cache: CacheHeader
    num_rounded: int
    largest_rise: float
    mapped: tuple[MappedTensor, ...]
    unused: tuple[str, ...]
    unmapped: tuple[UnmappedKey, ...]
    uncovered: tuple[UncoveredTensor, ...]
    folded_names: bool


FILE = FileKind(MigrationFile, "migration", "trtq migrate", "migration")


def migrate(
    model: Path | str,
    cache: Path | str,
    *,
    spec: ModelSpec | None = None,
    target: Target | None = None,
    output: Path | str | None = None,
    watcher: Watcher | None = None,
) -> MigrationResult:
    """Returns what came of a float model and its calibration cache: a Q/DQ model, an engine and a report.

    Writes all to `output`, with the ranges, the cache as it was given, what became of each of its keys, and
    the manifest; the folder appears whole or not at all. With evaluation or calibration data in the settings
    the result is compared with the float model; without, the verdict is "unverified".

    The scales of activations are those of the cache, bit for bit, unless the target asks for FP16 where
    nothing is quantized: then they are rounded up to FP16. In FP8 the largest code stands for what 127 stood
    for. Weights are quantized by channel, unless the
    settings say otherwise.

    Args:
        model: The ONNX file that the cache was made for.
        cache: The calibration cache, of any TensorRT and calibrator.
        spec: The model settings; None: read from `<name>.toml` or `model.toml` next to it.
        target: What is built; its high precision "auto" is FP32. None: the defaults.
        output: The folder; None: `<name>.migrated.trtq` beside the model.
        watcher: Receives the progress.

    Raises:
        ArtifactError: The cache is broken or for another model, or the output folder cannot be written.
        ModelError, DataError, UsageError: An argument cannot be used.
        BuildError: The engine was not built.
        MissingDependency: The engine builder is not installed.
    """
    log = Log(choose_watcher(watcher))
    target = target or Target()
    job, given, migration = _prepare(Path(model), Path(cache), spec, target, output, log)
    num_rounded, largest_rise = _rounding(job, migration)
    if num_rounded:
        log.note(
            f"{num_rounded} of {len(migration.mapped)} scales were rounded up to the model's precision, "
            f"by at most {largest_rise:.2%}"
        )
    outcome = CacheOutcome(given, migration, num_rounded, largest_rise)
    job = replace(job, extra_files={**job.extra_files, MIGRATION: migration_to_json(outcome)})
    return MigrationResult(run_job(job, log), outcome)


def migration_to_json(outcome: CacheOutcome) -> bytes:
    """Returns what became of every key of the cache, as JSON."""
    cache, found = outcome.cache, outcome.migration
    file = MigrationFile(
        CacheHeader(cache.version, cache.algorithm),
        outcome.num_rounded,
        outcome.largest_rise,
        found.mapped,
        found.unused,
        found.unmapped,
        found.uncovered,
        found.folded_names,
    )
    return FILE.encode(file)


def _prepare(
    path: Path, source: Path, spec: ModelSpec | None, target: Target, output: Path | str | None, log: Log
) -> tuple[Job, CalibrationCache, Migration]:
    """Returns the job with the ranges of the cache, checked as far as can be before work begins."""
    _refuse_other_targets(target)
    folder = Path(output or resolve_name(path).with_suffix(".migrated.trtq")).absolute()
    refuse_inputs_in(folder, source)
    content = read_bytes(source)
    try:
        cache = parse_cache(content)
    except ArtifactError as error:
        raise ArtifactError(f"{source}: {error}") from error
    if target.high_precision == "auto":
        target = replace(target, high_precision="fp32")  # so that the scales stay the cache's, bit for bit
    job = load_job(path, spec, target, folder, log)
    if job.spec.quantization.activations == PER_TOKEN:
        raise UsageError(
            f"--activations {PER_TOKEN} finds scales in each run, and takes none from a calibration cache: "
            f"use `trtq build`"
        )
    if job.has_given:
        raise ModelError(f"{path} is quantized already; give the float model that the cache was made for")
    layers = job.spec.layers
    _, ranges, migration = place_from_cache(
        job.graph,
        cache,
        str(source),
        skip=(*layers.skip, *layers.keep_fp32),
        op_types=target.op_types,
        force=layers.force,
    )
    kept = {node: item.reason for item in migration.uncovered for node in item.nodes}
    job = complete_job(replace(job, ranges=ranges, kept=kept, attention=()), log, random_data=False)
    _report_unmapped(migration, log)
    job = replace(
        job,
        strategy=replace(job.strategy, reason="the cache becomes Q/DQ"),
        extra_files={CACHE: content},
        sources={str(source): hash_file(source)},
    )
    return job, cache, migration


def _refuse_other_targets(target: Target) -> None:
    """Refuses targets that a calibration cache says nothing of."""
    if target.form is None:
        raise UsageError(
            f"a calibration cache makes an INT8 or FP8 engine, no {target.precision} one: use `trtq build`"
        )
    for is_asked, option in (
        (target.searches, target.search_option),
        (target.weights is not None, "--weights"),
        (target.quantization == "implicit", "--quantization implicit"),
    ):
        if is_asked:
            raise UsageError(
                f"{option} is for `trtq build`; `trtq migrate` takes the ranges as they are in the cache"
            )


def _report_unmapped(migration: Migration, log: Log) -> None:
    """Says what did not map."""
    if migration.folded_names:
        log.note("the cache names tensors as in trtq's own graph, where BatchNormalization is folded")
    if migration.unmapped:
        shown = ", ".join(repr(item.key) for item in migration.unmapped[:3])
        more = " ..." if len(migration.unmapped) > 3 else ""
        keys = format_count(len(migration.unmapped), "key")
        log.note(f"no tensor of the model for {keys} of the cache: {shown}{more}")
    if migration.uncovered:
        nodes = [node for item in migration.uncovered for node in item.nodes]
        first = migration.uncovered[0]
        log.warn(
            f"no scale for {format_count(len(migration.uncovered), 'tensor')}, which leaves "
            f"{format_count(len(nodes), 'node')} unquantized, "
            f"such as {first.nodes[0]!r}: {first.reason}"
            + ("; is the cache for another version of the model?" if _is_mostly_bare(migration) else "")
        )


def _is_mostly_bare(migration: Migration) -> bool:
    return len(migration.uncovered) > len(migration.mapped)


def _rounding(job: Job, migration: Migration) -> tuple[int, float]:
    """Returns how many scales were rounded up to the dtype that they have in the model, and by how much."""
    dtypes = {value.name: value.dtype for value in job.graph.model.graph.inputs}
    dtypes |= {value.name: value.dtype for node in job.graph.model.graph for value in node.outputs}
    rises, encodings = [], dict(job.placement.encodings)
    for item in migration.mapped:
        dtype = dtypes[item.tensor]
        assert dtype is not None
        kind = "float16" if job.strategy.graph_float is FP16 else dtype.numpy().name
        amax, encoding = item.scale * QMAX, encodings[item.tensor]
        made = float(choose_activation_qparams(amax, kind, encoding).scale)
        exact = float(choose_activation_qparams(amax, "float32", encoding).scale)
        rises += [made / exact - 1] if made != exact else []
    return len(rises), max(rises, default=0.0)
