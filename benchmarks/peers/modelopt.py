"""NVIDIA Model Optimizer's ONNX quantization, on the CPU.

`modelopt.onnx.quantization.quantize` as documented, with what is not quantized in FP32, so that only the
quantization is compared, and `simplify` on: without it weights in Constant nodes are not found. FP8 has
ranges by the largest magnitude alone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader  # noqa: TID253 - the process is for this

from peers.arguments import Reader, given, timed


class _Reader(Reader, CalibrationDataReader):  # type: ignore[misc]
    pass


def main() -> None:
    """Does what the command line asks; there is no call that only calibrates, so `calibrate` is all of it."""
    asked = given(["entropy", "max", "fp8"])
    with tempfile.TemporaryDirectory(prefix="bench-modelopt-") as folder:  # it leaves files beside its output
        written = Path(folder) / "quantized.onnx"
        with timed():
            quantize(
                str(asked.model),
                quantize_mode="fp8" if asked.method == "fp8" else "int8",
                calibration_method="max" if asked.method == "fp8" else asked.method,
                calibration_data_reader=_Reader(asked.data, asked.batch_size),
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                simplify=True,
                log_level="WARNING",
                output_path=str(written),
            )
        if asked.output is not None:
            shutil.copyfile(written, asked.output)


if __name__ == "__main__":
    main()
