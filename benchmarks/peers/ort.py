"""ONNX Runtime's own quantization, with the options that TensorRT takes.

The documentation's steps: `quant_pre_process` (which folds constants and infers shapes), then
`quantize_static` in QDQ format. TensorRT wants symmetric INT8, weights per channel, no quantized bias. The
types of nodes are those that TensorRT has INT8 kernels for: with the default, every type that ONNX Runtime
itself can run, TensorRT-RTX refuses many graphs and the accuracy is lower. A method with `-all` behind it
calibrates every float tensor, which is what `create_calibrator` does if it is not told otherwise.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from onnxruntime.quantization import (  # noqa: TID253 - the process is for this
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)

from peers.arguments import Given, Reader, given, timed
from peers.prepare import prepare

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
    "distribution": CalibrationMethod.Distribution,
}
_ALL = "-all"
_OP_TYPES = ["Conv", "Gemm", "MatMul"]


class _Reader(Reader, CalibrationDataReader):  # type: ignore[misc]
    pass


def main() -> None:
    """Does what the command line asks."""
    asked = given([*_METHODS, *(f"{method}{_ALL}" for method in _METHODS)])
    with tempfile.TemporaryDirectory(prefix="bench-ort-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        prepare(asked.model, prepared)
        if asked.output is None:
            with timed():
                calibrate(asked, prepared)
        else:
            quantize(asked, prepared)


def calibrate(asked: Given, prepared: Path) -> None:
    """Estimates the ranges, nothing else."""
    calibrator = create_calibrator(
        prepared,
        None if asked.method.endswith(_ALL) else _OP_TYPES,
        augmented_model_path=str(prepared.with_name("augmented.onnx")),
        calibrate_method=_METHODS[asked.method.removesuffix(_ALL)],
        extra_options={"symmetric": True},
    )
    calibrator.collect_data(_Reader(asked.data, asked.batch_size))
    print(len(calibrator.compute_data().data), "tensors")


def quantize(asked: Given, prepared: Path) -> None:
    """Writes the Q/DQ model."""
    quantize_static(
        prepared,
        asked.output,
        _Reader(asked.data, asked.batch_size),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=None if asked.method.endswith(_ALL) else _OP_TYPES,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=_METHODS[asked.method.removesuffix(_ALL)],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "CalibTensorRangeSymmetric": True,
            "QDQDisableWeightAdjustForInt32Bias": True,  # none is; the adjustment raises on some nets
        },
    )


if __name__ == "__main__":
    main()
