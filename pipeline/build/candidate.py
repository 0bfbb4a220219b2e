"""The model that a build makes and judges: INT8, weights of fewer bits, or both."""

from __future__ import annotations

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.deliver.report import WeightsReport
from trtq.pipeline.build.job import Job
from trtq.pipeline.formats import BF16, FP16, FP32
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.quantize.weights import find_runtime, report_weights
from trtq.pipeline.rewrite.mixed import MixedModel, WeightEncoding, quantize_graph
from trtq.pipeline.rewrite.weights.choose import group_by_weight


def build_candidate(job: Job, ranges: Ranges | None, baseline: MixedModel) -> MixedModel:
    """Returns the model with Q/DQ, with weights in few bits, or with both.

    Args:
        job: The build.
        ranges: Of the activations; None for weights alone.
        baseline: The FP16 model.
    """
    method = job.target.weights.method if job.target.weights is not None else "rtn"
    return quantize_graph(
        job.graph,
        job.placement,
        ranges,
        rest=find_rest(job),
        keep_fp32=job.spec.layers.keep_fp32,
        weights=WeightEncoding(method, find_runtime(job.backend.name), job.calibration),
        floats=baseline if job.target.precision == "weights" and job.way.fp16_graph else None,
    )


def find_rest(job: Job) -> FloatFormat:
    """Returns what stands in the graph for what is not quantized."""
    return FP16 if job.way.fp16_graph else BF16 if job.target.high_precision == "bf16" else FP32


def describe_high_precision(job: Job) -> str:
    """Returns what computes that is not quantized."""
    return "bf16" if job.target.high_precision == "bf16" else "fp16" if job.way.fp16 else "fp32"


def report_job_weights(job: Job) -> WeightsReport | None:
    """Returns what the report says of the weights; None if nothing was done to them alone."""
    chosen = group_by_weight(job.graph.model, job.placement)
    if not chosen:
        return None
    return report_weights(chosen, job.target, backend=job.backend.name, rest=find_rest(job))
