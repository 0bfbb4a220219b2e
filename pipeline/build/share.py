"""How much of a model's work its engine does on codes of 8 bits or fewer."""

from __future__ import annotations

from trtq.pipeline.build.job import Job
from trtq.pipeline.build.models import ModelFiles
from trtq.pipeline.deliver.report import EngineReport
from trtq.pipeline.engine.implicit import list_implicit_layers
from trtq.pipeline.graph.quantized import find_quantized_layers
from trtq.pipeline.judge.macs import count_macs


def measure_quantized_share(job: Job, models: ModelFiles, engine: EngineReport) -> float | None:
    """Returns the share of the multiply-accumulates that the engine does on codes, 0 to 1.

    None where nothing tells: of other precisions, without data or layers, where ONNX Runtime cannot run the
    model, or if the builder does not say what it runs. Layers in the bodies of If, Loop and Scan are not
    counted.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    data = job.evaluation if job.evaluation is not None else job.calibration
    feed = None if data is None else next(iter(data), None)
    if job.target.form is None or feed is None or job.unrunnable:
        return None
    if any(item.runs_as == "unknown" for item in engine.fallbacks):
        return None
    layers = list_implicit_layers(job.placement) if job.is_implicit else find_quantized_layers(models.built)
    macs = count_macs(job.graph.model, feed)
    total = sum(macs.values())
    on_codes = {layer.name for layer in layers if layer.activation} - {item.node for item in engine.fallbacks}
    return sum(macs.get(name, 0) for name in on_codes) / total if total else None
