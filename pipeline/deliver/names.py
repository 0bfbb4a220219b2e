"""What the files of a build are called."""

from __future__ import annotations

ENGINE = "model.engine"
FLOAT = "model.float.onnx"
RANGES = "ranges.json"
CACHE = "calibration.cache"
REPORT = "report.json"
MIGRATION = "migration.json"
