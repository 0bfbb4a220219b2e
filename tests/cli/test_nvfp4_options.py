"""Tests of --nvfp4: where it is refused, and what a build says of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from opset_23 import needs_opset_23

from trtq.cli import main
from trtq.pipeline.engine.tensorrt import TensorRt

PRODUCTS = "h = MatMul (x, w0) r = Relu (h) y = MatMul (r, w1)"
CAPABILITY = ["--compute-capability", "12.0"]


def _write(folder: Path, body: str, inputs: int = 64) -> Path:
    rng = np.random.default_rng(0)
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    model = onnx.parser.parse_model(f"{header} g (float[N, {inputs}] x) => (float[N, 64] y) {{ {body} }}")
    for name, shape in (("w0", (inputs, 64)), ("w1", (64, 64))):
        if name in body:
            array = (rng.standard_normal(shape) / 8).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "model.onnx")
    np.savez(folder / "data.npz", x=rng.standard_normal((32, inputs)).astype(np.float32))
    return folder / "model.onnx"


def _refused(folder: Path, *options: str) -> str:
    data = str(folder / "data.npz")
    result = CliRunner().invoke(
        main, ["build", str(folder / "model.onnx"), "--nvfp4", "--calib-data", data, *options]
    )
    assert result.exit_code == 2
    assert not (folder / "model.trtq").exists()
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_gpus_without_fp4_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, PRODUCTS)
    for options, named in (((), "8.0 and newer"), (("--compute-capability", "8.9"), "8.9")):
        line = _refused(tmp_path, *options)
        assert (
            f"--nvfp4 needs GPUs of compute capability 12.0 or newer, and the engine is for {named}" in line
        )
        assert "give --compute-capability 12.0, or take --int8" in line


def test_onnxruntime_and_other_formats_beside_it_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, PRODUCTS)
    line = _refused(tmp_path, "--backend", "onnxruntime")
    assert "backend onnxruntime has no --nvfp4: it has no numbers of four bits" in line
    assert "take --int8 or --fp8" in line
    assert "--fp8 and --nvfp4 contradict each other; give one of them" in _refused(tmp_path, "--fp8")
    assert "--int8 and --nvfp4 contradict each other" in _refused(tmp_path, "--int8")


def test_older_versions_of_tensorrt_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        __version__ = "10.7.0"

    monkeypatch.setattr(TensorRt, "_import", lambda _self: Library)
    assert TensorRt().lacks["nvfp4"].startswith("TensorRT 10.7.0 has no FP4")
    Library.__version__ = "10.8.0.43"
    assert "nvfp4" not in TensorRt().lacks


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_a_model_without_a_layer_for_it_is_refused_with_the_reasons(tmp_path: Path) -> None:
    _write(tmp_path, "h = MatMul (x, w0) y = Relu (h)", inputs=40)
    line = _refused(tmp_path, *CAPABILITY)
    assert "has no layer that can be NVFP4 (MatMul: NVFP4 takes multiples of 16 inputs, it has 40)" in line
    assert line.endswith("; take --fp8")
    _write(tmp_path, PRODUCTS)
    line = _refused(tmp_path, *CAPABILITY, "--activations", "per-token")
    assert "--activations per-token is for INT8 and FP8: NVFP4 finds a scale for every 16 values" in line


@pytest.mark.slow
@needs_opset_23
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_a_build_is_judged_by_the_emulation_and_so_is_its_model(tmp_path: Path) -> None:
    model = _write(tmp_path, PRODUCTS)
    data, folder = str(tmp_path / "data.npz"), tmp_path / "model.trtq"
    common = ["--calib-data", data, *CAPABILITY, "--repair", "none", "--json", "-q", "--min-cosine"]
    for least, code in (("0.9", 0), ("0.9999", 3)):  # a real verdict: 4 bits are not that near
        result = CliRunner().invoke(main, ["build", str(model), "--nvfp4", *common, least])
        assert result.exit_code == code, result.stderr
        report = json.loads(result.stdout)
        assert report["engine"]["layers_realized"] == {"nvfp4": 2}
        (ours, *_) = report["comparison"]
        assert (ours["candidate"], ours["reference"]) == ("nvfp4", "fp32")
        assert 0.95 < ours["cosine"] < 0.9999
    assert json.loads((folder / "ranges.json").read_text())["formats"] == dict.fromkeys(("x", "r"), "nvfp4")
    again = ["build", str(folder / "model.nvfp4.onnx"), "--reference", str(model), "--eval-data", data]
    options = [*CAPABILITY, "--json", "-q", "--min-cosine", "0.9", "-o", str(tmp_path / "again.trtq")]
    result = CliRunner().invoke(main, [*again, *options])
    assert result.exit_code == 0, result.stderr
    given = json.loads(result.stdout)
    assert given["precision"] == "nvfp4"
    assert given["comparison"][0]["cosine"] == pytest.approx(ours["cosine"], abs=1e-6)
    result = CliRunner().invoke(main, ["lint", str(folder / "model.nvfp4.onnx")])
    assert "2 of 2 quantized layers run in NVFP4 as it is" in result.stdout
