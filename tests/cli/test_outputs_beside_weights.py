"""No command writes over the weights of its model, which may lie in a file of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, its weights, data and ranges, in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N,64] x) => (float[N,64] y) { y = MatMul (x, w) }'
    )
    weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.savez("c.npz", x=weights[:16])
    assert trtq("calibrate", "m.onnx", "--calib-data", "c.npz", "--calib-method", "minmax").exit_code == 0
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "quantize m.onnx --weights int8 -o weights.bin",
        "calibrate m.onnx --calib-data c.npz -o r.json --save-statistics weights.bin",
        "sensitivity m.onnx --calib-data c.npz -o weights.bin",
        "init m.onnx --force -o weights.bin",
        "lint m.onnx --sarif weights.bin",
        "cache export ranges.json --tensorrt 8.6 --model m.onnx -o weights.bin",
        "bench m.onnx -o weights.bin",
        "compare m.onnx m.onnx --data c.npz --summary weights.bin",
        "build m.onnx --calib-data c.npz --backend onnxruntime --junit weights.bin",
    ],
)
def test_the_weights_stay(command: str, folder: Path) -> None:
    before = (folder / "weights.bin").read_bytes()
    result = trtq(*command.split())
    assert result.exit_code == 2
    assert "weights.bin is read by this command; choose another file with --" in result.stderr
    assert (folder / "weights.bin").read_bytes() == before


def test_weights_that_are_called_as_those_of_the_output_stay(folder: Path) -> None:
    model = onnx.load("m.onnx")
    onnx.save(model, "renamed.onnx", save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (folder / "out.onnx.data").read_bytes()
    result = trtq("quantize", "renamed.onnx", "--weights", "int8", "-o", "out.onnx")
    told = (
        "error: out.onnx.data holds weights of renamed.onnx, and out.onnx would replace it; choose another "
    )
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"{told}output")
    assert (folder / "out.onnx.data").read_bytes() == before
    assert trtq("quantize", "m.onnx", "--weights", "int8", "-o", "out.onnx").exit_code == 0
