"""Models that come in FP8, INT4 or FP4: counted, built and named as what they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.target import Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
PathOf = Callable[..., Path]
_FP8_ZERO = np.asarray(0, ml_dtypes.float8_e4m3fn)
_PAIR = "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)"
_BLOCKS = "w = DequantizeLinear <axis = 0, block_size = 32> (c, b)"


def _codes(dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(3).integers(-7, 8, (64, 64)).astype(dtype)


_WEIGHTS: dict[str, tuple[str, dict[str, NDArray[Any]]]] = {
    "fp8": (
        f"{_PAIR} w = DequantizeLinear (c, s, z) [fc] y = MatMul (d, w)",
        {"c": _codes(ml_dtypes.float8_e4m3fn), "s": np.asarray(0.02, np.float32), "z": _FP8_ZERO},
    ),
    "int4-weights": (
        f"{_BLOCKS} [fc] y = MatMul (x, w)",
        {"c": _codes(ml_dtypes.int4), "b": np.full((2, 64), 0.02, np.float32)},
    ),
    "fp8 x int4": (
        f"{_PAIR} {_BLOCKS} again = QuantizeLinear (w, s, z) v = DequantizeLinear (again, s, z) "
        "[fc] y = MatMul (d, v)",
        {
            "c": _codes(ml_dtypes.int4),
            "b": np.full((2, 64), 0.02, np.float32),
            "s": np.asarray(0.02, np.float32),
            "z": _FP8_ZERO,
        },
    ),
}


def _build(path_of: PathOf, asked: str, tmp_path: Path, *targets: str) -> Report:
    body, weights = _WEIGHTS[asked]
    path = path_of(f"g (float[N, 64] x) => (float[N, 64] y) {{ {body} }}", opset=21, ir_version=10, **weights)
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32))
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data)))
    target = Target(backend="tensorrt-rtx", compute_capabilities=targets)
    return build(path, spec=spec, target=target, output=tmp_path / "out")


@needs_rtx
@pytest.mark.parametrize(
    ("asked", "name"), [("fp8", "fp8"), ("int4-weights", "int4-weights"), ("fp8 x int4", "quantized")]
)
def test_a_model_from_elsewhere_is_named_for_its_format_and_runs_in_it(
    asked: str, name: str, path_of: PathOf, tmp_path: Path
) -> None:
    report = _build(path_of, asked, tmp_path, "8.9")
    assert (report.engine.layers_realized, report.engine.fallbacks) == ({asked: 1}, ())
    assert (report.precision, report.verdict) == (name, "unverified")
    assert {path.name for path in (tmp_path / "out").glob("*.onnx")} == {f"model.{name}.onnx"}
    assert {item.candidate for item in report.comparison} == {name}
