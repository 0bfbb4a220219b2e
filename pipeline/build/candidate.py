"""The model that a build makes and judges: INT8, weights of fewer bits, or both."""

from __future__ import annotations

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.report import WeightsReport
from trtq.pipeline.quantize.weights import convert_to_float, quantize_chosen_weights, report_weights
from trtq.pipeline.rewrite.mixed import MixedModel, convert_to_int8


def build_candidate(job: Job, ranges: Ranges | None, baseline: MixedModel) -> MixedModel:
    """Returns the model with Q/DQ, with weights in few bits, or with both.

    Args:
        job: The build.
        ranges: Of the activations; None for weights alone.
        baseline: The FP16 model.
    """
    keep_fp32 = job.spec.layers.keep_fp32
    if job.target.precision == "weights":
        mixed = baseline if job.way.fp16_graph else convert_to_float(job.graph, job.target, keep_fp32)
    else:
        assert ranges is not None
        mixed = convert_to_int8(
            job.graph, job.placement, ranges, fp16=job.way.fp16_graph, keep_fp32=keep_fp32
        )
    if not job.weights:
        return mixed
    return quantize_chosen_weights(
        mixed, job.graph, job.weights, job.target, backend=job.backend.name, batches=job.calibration
    )


def describe_high_precision(job: Job) -> str:
    """Returns what computes that is not quantized."""
    return "bf16" if job.target.high_precision == "bf16" else "fp16" if job.way.fp16 else "fp32"


def report_job_weights(job: Job) -> WeightsReport | None:
    """Returns what the report says of the weights; None if nothing was done to them alone."""
    if not job.weights:
        return None
    return report_weights(job.weights, job.target, backend=job.backend.name, half=job.way.fp16_graph)
