"""AMD Quark's ONNX quantization, with the options that TensorRT takes.

Its preset A8W8 (symmetric INT8 with float scales, cross-layer equalization on), with weights per channel and
for the types of nodes that TensorRT has INT8 kernels for, as for ONNX Runtime.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType  # noqa: TID253
from quark.onnx import Config, ModelQuantizer, QuantizationConfig

from peers.arguments import Reader, given, timed
from peers.prepare import prepare

_METHODS = {"minmax": CalibrationMethod.MinMax, "percentile": CalibrationMethod.Percentile}


class _Reader(Reader, CalibrationDataReader):  # type: ignore[misc]
    pass


def main() -> None:
    """Does what the command line asks; there is no call that only calibrates, so `calibrate` is all of it."""
    asked = given(list(_METHODS))
    config = QuantizationConfig(
        calibrate_method=_METHODS[asked.method],
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    with tempfile.TemporaryDirectory(prefix="bench-quark-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        prepare(asked.model, prepared)
        with timed():
            ModelQuantizer(Config(global_quant_config=config)).quantize_model(
                str(prepared),
                str(asked.output or Path(folder) / "quantized.onnx"),
                _Reader(asked.data, asked.batch_size),
            )


if __name__ == "__main__":
    main()
