"""Ranges as a calibration cache of TensorRT."""

from __future__ import annotations

from pathlib import Path

from trtq.calibrators.cache import CalibrationCache, to_cache
from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.cache_ranges import rename_as_in_file
from trtq.pipeline.graph.load import load


def export_cache(
    ranges: Ranges, version: int, algorithm: str, model: Path | str | None = None
) -> CalibrationCache:
    """Returns ranges as a calibration cache for TensorRT 10.16 and older.

    Args:
        ranges: Of a build or of `calibrate`.
        version: Of that TensorRT, as in headers.
        algorithm: TensorRT's name of the calibrator that will read it.
        model: The ONNX file that TensorRT will read: the tensors get its names for them. None: they keep
            those of the graph that trtq quantizes, where BatchNormalization is folded into convolutions.

    Raises:
        ModelError: The model cannot be used.
        ArtifactError: No tensor of the ranges is one of the model.
    """
    cache = to_cache(ranges, version, algorithm)
    return cache if model is None else rename_as_in_file(cache, load(Path(model), min_opset=1))
