"""A model that one large channel spoils in INT8, and its data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trtq.files import hash_file
from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec
from trtq.pipeline.deliver.report import Report

POISONED = """
net (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) {
  [first] a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
  [act] r = Relu (a)
  [spread] s = Mul (r, scale)
  [second] h = Conv <kernel_shape = [1, 1]> (s, w2)
  [third] y = Conv <kernel_shape = [1, 1]> (h, w3)
}"""


def weights(*, spread: float) -> dict[str, Any]:
    """One channel of the second layer's input is larger than the others by `spread`, and weighs less."""
    rng = np.random.default_rng(0)
    scale = np.ones((1, 8, 1, 1), np.float32)
    scale[0, 0] = spread
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 1, 1), "w3": (4, 8, 1, 1)}
    made = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    made["w2"] = made["w2"] / scale
    return {**made, "scale": scale}


def spec_for(model: Path, x: np.ndarray[Any, Any] | None = None, **calibration: Any) -> ModelSpec:
    if x is None:
        x = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(model.parent / "data.npz", x=x)
    data = CalibrationSpec(data=str(model.parent / "data.npz"), batch_size=4, method="minmax", **calibration)
    return ModelSpec(calibration=data, layers=LayerSpec(force=(".",)))


def int8_of(report: Report) -> str:
    return hash_file(Path(report.output) / "model.int8.onnx")
