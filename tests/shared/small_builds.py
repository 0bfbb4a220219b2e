"""Builds of the small model as tests ask for them and look at them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.deliver.report import Report


def spec_of(small: Path, method: str = "entropy", **layers: tuple[str, ...]) -> ModelSpec:
    """Returns the settings of a build that searches for nothing, on the data beside the model."""
    return ModelSpec(
        calibration=CalibrationSpec(data=str(small.parent / "data.npz"), method=method),
        quantization=QuantizationSpec(repair=("none",)),
        layers=LayerSpec(**layers),
    )


def plan_of(report: Report) -> dict[str, Any]:
    """Returns the engine that the recording TensorRT wrote: what it was asked for."""
    plan: dict[str, Any] = json.loads((Path(report.output) / "model.engine").read_bytes())
    return plan


def files_of(report: Report) -> set[str]:
    """Returns the names of the files of the build."""
    return {path.name for path in Path(report.output).iterdir()}
