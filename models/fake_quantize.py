"""PyTorch's fake-quantize functions in ONNX: as QuantizeLinear and DequantizeLinear with int8 zero points."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx.numpy_helper

from trtq import lazy

QMIN, QMAX = -128, 127
_INT8 = onnx.TensorProto.INT8


@cache
def fake_quantize_frozen() -> Any:
    """Returns an operator that fake-quantizes a tensor with a scale that is a number.

    It computes what `torch.fake_quantize_per_tensor_affine` does. That one has no shape function, so that
    torch.export refuses it where a size is open.
    """
    lazy.require("torch", "export", "quantization-aware training")
    import torch

    def compute(values: torch.Tensor, scale: float) -> torch.Tensor:
        result: torch.Tensor = torch.fake_quantize_per_tensor_affine(values, scale, 0, QMIN, QMAX)
        return result

    schema = "(Tensor values, float scale) -> Tensor"
    made = torch.library.custom_op("trtq::fake_quantize", compute, mutates_args=(), schema=schema)
    made.register_fake(lambda values, scale: torch.empty_like(values))
    return torch.ops.trtq.fake_quantize


def list_translations() -> Mapping[Any, Any]:
    """Returns how PyTorch's exporter is to write each fake-quantize operator."""
    torch = lazy.require("torch", "export", "exporting a PyTorch module")
    op = lazy.require("onnxscript", "export", "exporting a PyTorch module").opset18

    def frozen(value: Any, scale: float) -> Any:
        numbers = np.asarray(scale, np.float32), np.asarray(0, np.int8)
        step, zero = (op.Constant(value=onnx.numpy_helper.from_array(number)) for number in numbers)
        return op.DequantizeLinear(op.QuantizeLinear(value, step, zero), step, zero)

    def per_tensor(value: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
        zero = op.Cast(zero_point, to=_INT8)
        return op.DequantizeLinear(op.QuantizeLinear(value, scale, zero), scale, zero)

    def per_channel(value: Any, scale: Any, zero_point: Any, axis: int, low: int, high: int) -> Any:
        zero = op.Cast(zero_point, to=_INT8)
        codes = op.QuantizeLinear(value, scale, zero, axis=axis)
        return op.DequantizeLinear(codes, scale, zero, axis=axis)

    return {
        fake_quantize_frozen().default: frozen,
        torch.ops.aten.fake_quantize_per_tensor_affine.tensor_qparams: per_tensor,
        torch.ops.aten.fake_quantize_per_channel_affine.default: per_channel,
    }
