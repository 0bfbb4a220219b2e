"""A model made ready as ONNX Runtime's quantization documents it; AMD Quark is built upon the same."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import version_converter
from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: TID253

_PER_CHANNEL_OPSET = 13


def prepare(model: Path, prepared: Path) -> None:
    """Raises the opset to what weights per channel need, folds constants, infers shapes.

    Where symbolic shape inference fails it is left out, as the documentation says to.
    """
    proto = onnx.load(model)
    if next(item.version for item in proto.opset_import if not item.domain) < _PER_CHANNEL_OPSET:
        proto = version_converter.convert_version(proto, 17)
    raised = prepared.with_name("raised.onnx")
    onnx.save(proto, raised)
    try:
        quant_pre_process(str(raised), str(prepared))
    except Exception:  # noqa: BLE001 - it raises whatever its many passes raise
        quant_pre_process(str(raised), str(prepared), skip_symbolic_shape=True)
