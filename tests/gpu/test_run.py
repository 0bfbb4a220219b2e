"""Engines that users run: through `trtq.load`, on a real GPU, beside the same model in ONNX Runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from trtq.pipeline.build import build
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.gpu import count_gpus, find_compute_capability
from trtq.pipeline.engine.target import Target
from trtq.pipeline.load import load
from trtq.pipeline.run import run

_NO_TENSORRT = BACKENDS["tensorrt"].why_not()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not count_gpus(), reason="there is no NVIDIA GPU to run engines on"),
]


def _check(folder: Path, data: Path) -> None:
    with np.load(data) as arrays:
        x, labels = arrays["image"], arrays["labels"]
    with load(folder) as engine, load(folder, backend="onnxruntime") as reference:
        found, wanted = engine.run(x)["logits"], reference.run(x)["logits"]
        np.testing.assert_array_equal(engine.run(x[:3])["logits"], found[:3])
    assert found.shape == wanted.shape
    assert float((found.argmax(1) == labels).mean()) > 0.98
    assert float((found * wanted).sum() / np.sqrt((found**2).sum() * (wanted**2).sum())) > 0.999
    outcome = run(folder, str(data), output=folder.parent / "outputs.npz")
    assert (outcome.file, outcome.num_samples) == ("model.engine", len(x))


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)
def test_an_engine_of_tensorrt_rtx_runs_and_gives_what_its_model_gives(demo: Path, tmp_path: Path) -> None:
    target = Target(backend="tensorrt-rtx", compute_capabilities=(find_compute_capability(),))
    _check(Path(build(demo, target=target, output=tmp_path / "out").output), demo.parent / "evaluation.npz")


@pytest.mark.skipif(bool(_NO_TENSORRT), reason=f"TensorRT does not work here: {_NO_TENSORRT}")
def test_an_engine_of_tensorrt_runs_and_gives_what_its_model_gives(demo: Path, tmp_path: Path) -> None:
    report = build(demo, target=Target(backend="tensorrt"), output=tmp_path / "out")
    _check(Path(report.output), demo.parent / "evaluation.npz")
