"""What the files of a build are called."""

from __future__ import annotations

ENGINE = "model.engine"
ENGINE_SUFFIXES = (".engine", ".plan", ".trt")
FLOAT = "model.float.onnx"
RANGES = "ranges.json"
CACHE = "calibration.cache"
REPORT = "report.json"
MIGRATION = "migration.json"
