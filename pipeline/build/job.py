"""A build before it begins."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from trtq.calibrators import Method, create_method
from trtq.calibrators.batches import Batches
from trtq.calibrators.ranges import Ranges
from trtq.models.spec import ModelSpec
from trtq.pipeline.calibrate.between_codes import place_between_codes
from trtq.pipeline.calibrate.data import (
    need_no_ranges,
    place_layers,
    warn_of_unmatched,
)
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.implicit import find_tensorrt_algorithm, list_float_tensors
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import FP32, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.closed import close_outputs
from trtq.pipeline.graph.foreign_operators import explain_incomparable
from trtq.pipeline.graph.kv_cache import place_caches
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import find_quantized_layers, is_quantized, name_formats
from trtq.pipeline.quantize.weights import place_weights
from trtq.progress import Silent, Watcher
from trtq.workers import Workers


@dataclass(frozen=True)
class Job:
    """A build before it begins.

    Attributes:
        graph: The loaded model.
        spec: The settings of the model, as the user gave them.
        target: What is built.
        backend: What builds it.
        folder: Where the result goes.
        strategy: How precisions get into the engine.
        kept: Layers that stay float, with the reason, beside those that the settings and the rules keep.
        forms: The number formats of layers that have another one than the target's.
        calibration: The data for the ranges; None if there is none, and none is needed.
        evaluation: The data to compare on; None if there is none.
        keys: A digest for each stage of everything that its result depends on.
        ranges: Given ones, instead of calibrating.
        extra_files: Further files for the folder, by name; they win over those that a build would write.
        sources: SHA-256 of further inputs by path, for the manifest.
        attention: The products of activations that the ranges have found to lose next to nothing in INT8;
            None: all for which it can be tried, before the ranges are found.
        workers: Who share the work; None: threads of this process.
        reference_sha256: That of the model to compare with, where it is another one; else empty.
    """

    graph: Graph
    spec: ModelSpec
    target: Target
    backend: Backend
    folder: Path
    strategy: Strategy
    calibration: Batches | None
    evaluation: Batches | None
    kept: Mapping[str, str] = field(default_factory=dict)
    forms: Mapping[str, CodeFormat] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    ranges: Ranges | None = None
    extra_files: Mapping[str, bytes] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    attention: Collection[str] | None = None
    workers: Workers | None = None
    reference_sha256: str = ""

    @property
    def is_random(self) -> bool:
        """Whether the data was made up."""
        return self.calibration is not None and self.calibration.is_random

    @property
    def is_implicit(self) -> bool:
        """Whether TensorRT quantizes the float model itself."""
        return self.strategy.is_implicit

    @cached_property
    def has_given(self) -> bool:
        """Whether the model comes with Q/DQ of its own, which is kept."""
        return is_quantized(self.graph.model)

    @cached_property
    def unrunnable(self) -> str:
        """Why ONNX Runtime runs neither the model nor what emulates it, so nothing is compared; or empty."""
        return explain_incomparable(self.graph.model) if self.has_given else ""

    @property
    def is_as_given(self) -> bool:
        """Whether the model comes with Q/DQ and is built as it is, since no more of it is quantized."""
        return self.has_given and self.target.form is not None and not self.placement.quantized

    @cached_property
    def name(self) -> str:
        """What the model is called in files and reports: its format, "quantized" if it has several."""
        if not self.has_given or self.target.form is None:
            return self.target.name
        given = find_quantized_layers(self.graph.model)
        return name_formats(given, *(() if self.is_as_given else (self.target.name,)))

    @property
    def method(self) -> Method:
        """How ranges are estimated."""
        return create_method(self.spec.calibration)

    @cached_property
    def placement(self) -> Placement:
        """What is quantized, and how; why the rest is not."""
        return place_job(self, Silent())

    @property
    def tensors(self) -> Mapping[str, CodeFormat]:
        """The tensors that need a range, and the number formats that they will be held in."""
        if self.is_implicit:
            return dict.fromkeys(list_float_tensors(self.graph), INT8)
        return self.placement.formats

    @property
    def needs_data(self) -> bool:
        """Whether the model cannot be quantized without data, unless ranges are given."""
        if self.target.form is None or need_no_ranges(self.graph, self.placement) is None or self.is_implicit:
            return self.target.needs_data
        return self.target.weights is not None and self.target.weights.needs_data

    @property
    def calibrates(self) -> bool:
        """Whether ranges are estimated here, and are not given, needless or left to TensorRT."""
        needs = self.ranges is None and self.calibration is not None and not self.is_as_given
        return needs and not (self.is_implicit and find_tensorrt_algorithm(self.spec.calibration))

    @property
    def shape_data(self) -> Batches | None:
        """The data whose shapes become the profiles of dynamic inputs."""
        return self.calibration if self.calibration is not None else self.evaluation


def _place_closed(job: Job, watcher: Watcher) -> Placement | None:
    """Returns a placement with codes behind layers too; None if the backend or the ranges do not use it."""
    kind = job.spec.quantization.activations if job.ranges is None else job.ranges.activations
    is_meant = job.backend.needs_coded_outputs and kind == "asymmetric" and job.target.form is INT8
    if not is_meant or job.has_given or job.strategy.graph_float is not FP32:
        return None
    placed = place_between_codes(job.graph, job.spec, job.target, watcher, job.kept, job.backend, job.forms)
    closed = close_outputs(job.graph.model, placed, job.kept)
    is_known = job.ranges is None or {*closed.activations} <= job.ranges.tensors.keys()
    return closed if is_known else None


def place_job(job: Job, watcher: Watcher) -> Placement:
    """Returns what is quantized; tells the watcher of patterns that match nothing.

    Raises:
        UsageError: A cache is to be held in codes, and the model has none.
        ModelError: A cache does not grow by a Concat.
    """
    return place_caches(job.graph, job.target.kv_cache, _place_nodes(job, watcher))


def _place_nodes(job: Job, watcher: Watcher) -> Placement:
    graph, spec, target = job.graph, job.spec, job.target
    placement = Placement()
    if target.form is not None:
        placement = _place_closed(job, watcher) or place_layers(
            graph, spec, target, watcher, job.kept, job.backend, attention=job.attention, forms=job.forms
        )
    if target.precision == "fp16":
        warn_of_unmatched(graph, spec.layers.keep_fp32, watcher)
    if target.weights is None:
        return placement
    by_matrix = job.backend.takes_scales_by_matrix
    return place_weights(graph, spec, target, placement, watcher, by_matrix=by_matrix)
