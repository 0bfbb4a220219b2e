"""Why trtq refuses models of ONNX's test suite that ONNX Runtime runs: reasons, by the words of refusals."""

from __future__ import annotations

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "inputs and outputs that are sequences or optional: TensorRT takes tensors only": (
        r"is (Sequence|Optional)\(.*; trtq and TensorRT take tensors only"
    ),
    "operators of ai.onnx.ml, which TensorRT has not": (
        r"is ai\.onnx\.ml::\w+, which is no standard ONNX operator"
    ),
    "quantized with operators that TensorRT has not, or with codes that it takes for others": (
        r"is not an operator of TensorRT, which takes Q/DQ pairs only|its quantized values are uint8, "
        r"which TensorRT takes for int8|its quantized values are uint8 and come from a constant"
    ),
    "the data of the suite is NaN or infinite: nothing can be calibrated on it": (
        r"DataError: .* values that are NaN or infinite"
    ),
    "the data of the suite has no sample": r"DataError: .* is empty: shape \(0[,)]",
    "opset 8's Scan takes a batch of sequences, and no later one does": (
        r"node 'Scan' \(Scan\) cannot be brought from opset 8 to 9: it scans a batch of sequences"
    ),
}
"""The words are a regular expression, searched in the error."""
