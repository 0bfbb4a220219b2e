"""What `--backend onnxruntime` promises is what an ordinary session computes, on this processor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
import pytest
from numpy.typing import NDArray

import trtq
from trtq.models.session import open_session
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.onnxruntime import OnnxRuntime


class Overflowing(OnnxRuntime):
    """The backend on a processor without VNNI."""

    def overflows(self) -> bool:
        """As the probe would find."""
        return True


def build_layer(path_of: Callable[..., Path], folder: Path) -> tuple[trtq.Report, NDArray[np.float32]]:
    """Returns the report of one MatMul in INT8, and its input."""
    rng = np.random.default_rng(0)
    weight = (rng.uniform(-1, 1, (64, 64)) / 8).astype(np.float32)
    model = path_of("net (float[N, 64] x) => (float[N, 64] y) { [fc] y = MatMul (x, w) }", w=weight)
    x = rng.uniform(-1, 1, (256, 64)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(folder / "x.npz")))
    target = trtq.Target(backend="onnxruntime")
    return trtq.build(model, spec=spec, target=target, output=folder / "out"), x


def run(path: Path, x: NDArray[np.float32], level: onnxruntime.GraphOptimizationLevel) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"x": x})
    return np.asarray(output)


def test_the_numbers_are_those_of_an_ordinary_session(path_of: Callable[..., Path], tmp_path: Path) -> None:
    report, x = build_layer(path_of, tmp_path)
    levels = onnxruntime.GraphOptimizationLevel
    (float_model,) = (path for path in tmp_path.glob("*.onnx"))
    wanted = run(float_model, x[:128], levels.ORT_DISABLE_ALL).astype(np.float64)
    error = run(tmp_path / "out/model.int8.onnx", x[:128], levels.ORT_ENABLE_ALL) - wanted
    sqnr_db = 10 * np.log10((wanted**2).sum() / (error**2).sum())
    engine = next(
        item for item in report.comparison if (item.candidate, item.reference) == ("engine", "fp32")
    )
    assert engine.sqnr_db == pytest.approx(sqnr_db, abs=0.01)


def test_where_kernels_overflow_weights_have_7_bits(
    path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", Overflowing())
    report, _ = build_layer(path_of, tmp_path)
    assert "weights get 7 bits, since onnxruntime overflows with 8 on this processor" in report.notes
    model = onnx.load(tmp_path / "out/model.int8.onnx")
    (codes,) = (
        onnx.numpy_helper.to_array(item) for item in model.graph.initializer if list(item.dims) == [64, 64]
    )
    assert codes.dtype == np.int8
    assert (codes.min(), codes.max()) == (-63, 63)  # 2 * 255 * 63 fits in 16 bits
    assert report.verdict == "pass"


def test_without_the_fusions_every_node_is_computed_as_it_stands(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    """What `package --fallback onnxruntime` asks Triton for: level -1, basic."""
    _, x = build_layer(path_of, tmp_path)
    path = tmp_path / "out/model.int8.onnx"
    (exact,) = open_session(path, optimize=False).run(None, {"x": x})
    basic = run(path, x, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    assert np.array_equal(basic, exact)


def test_a_build_of_a_processor_that_overflows_is_none_of_another(
    path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in a cache of CI is built again on another machine: the PASS of this one is not that one's."""
    first, _ = build_layer(path_of, tmp_path)
    monkeypatch.setitem(BACKENDS, "onnxruntime", Overflowing())
    model = tmp_path / "model0.onnx"
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(tmp_path / "x.npz")))
    target = trtq.Target(backend="onnxruntime")
    second = trtq.build(model, spec=spec, target=target, output=first.output)
    assert "everything" not in second.reused
    assert "engine" not in second.reused
    assert any(note.startswith("weights get 7 bits") for note in second.notes)
