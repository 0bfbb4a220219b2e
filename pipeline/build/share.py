"""How much of a model's work its engine does in INT8."""

from __future__ import annotations

from trtq.pipeline.build.job import Job
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.report import EngineReport
from trtq.pipeline.engine.implicit import list_implicit_layers
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.macs import count_macs


def measure_int8_share(job: Job, models: ModelFiles, engine: EngineReport) -> float | None:
    """Returns the share of the multiply-accumulates that the engine does in INT8, 0 to 1.

    None where nothing tells: of other precisions, without data or layers, or if the builder does not say what
    it runs. Layers in the bodies of If, Loop and Scan are not counted.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    data = job.evaluation if job.evaluation is not None else job.calibration
    feed = None if data is None else next(iter(data), None)
    if job.target.form is None or feed is None:
        return None
    if any(item.runs_as == "unknown" for item in engine.fallbacks):
        return None
    layers = list_implicit_layers(job.placement) if job.is_implicit else find_quantized_layers(models.built)
    macs = count_macs(job.graph.model, feed)
    total = sum(macs.values())
    in_int8 = {layer.name for layer in layers} - {item.node for item in engine.fallbacks}
    return sum(macs.get(name, 0) for name in in_int8) / total if total else None
