"""What cannot be tested where ONNX Runtime is too old for opset 23, the first with E2M1 numbers."""

from __future__ import annotations

import importlib.metadata

import pytest

needs_opset_23 = pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2])) < (1, 23),
    reason="ONNX Runtime runs opset 23 from version 1.23 on",
)
