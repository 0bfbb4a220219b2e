"""Caches of codes as a part of a build: where they are refused."""

from __future__ import annotations

from trtq.errors import UsageError
from trtq.models.spec import AccuracySpec
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.kv_cache import KV_CACHES
from trtq.pipeline.quantize.weights import refuse_older_gpus


def refuse_kv_cache(target: Target, backend: Backend, strategy: Strategy, gate: AccuracySpec) -> None:
    """Refuses caches of codes where the graph cannot say it, or they cannot be judged.

    Raises:
        UsageError: The builder picks precisions itself, a target has no FP8, or the speed is to be judged.
    """
    if target.kv_cache is None:
        return
    asked = f"--kv-cache {target.kv_cache}"
    if not strategy.is_typed and backend.name != "onnxruntime":
        raise UsageError(
            f"{asked} needs a builder that takes its precisions from the graph; backend {backend.name} of "
            f"version {backend.version()} picks them itself"
        )
    if gate.min_speedup is not None:
        raise UsageError(f"--min-speedup times both models on the same inputs, which {asked} changes")
    if backend.name == "tensorrt-rtx":
        form = KV_CACHES[target.kv_cache]
        refuse_older_gpus(form, target.compute_capabilities, asked, "--kv-cache int8")
