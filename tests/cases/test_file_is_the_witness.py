"""What trtq makes of a file when it loads it is checked against the file itself, in every command."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.calibrators.ranges import Range, Ranges, ranges_to_json
from trtq.cli import main

_RESIZE = """<ir_version: 5, opset_import: ["": 10]>
g (float[2,3,12,12] x) => (float[2,8,K,M] y) {{
    [conv] c = Conv<pads = [1, 1, 1, 1]>(x, w)
    [size] h = Shape(c) [cut] i = Slice(h, two, four, zero) [cast] f = Cast<to = 1>(i)
    [scale] e = {scale} [join] s = Concat<axis = 0>(ones, e) [resize] u = Resize(c, s)
    [last] y = Conv<pads = [1, 1, 1, 1]>(u, v)
}}"""
"""The scales of the Resize are computed, so that nobody knows before whether it grows or shrinks."""


def _save(folder: Path, scale: str) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(_RESIZE.format(scale=scale))
    arrays: dict[str, NDArray[np.generic]] = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((8, 8, 3, 3)).astype(np.float32),
        "two": np.array([2]),
        "four": np.array([4]),
        "zero": np.array([0]),
        "ones": np.ones(2, np.float32),
        "size": np.array([7.0, 7.0], np.float32),
        "twice": np.array([24.0, 24.0], np.float32),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    np.savez(folder / "x.npz", x=rng.standard_normal((8, 3, 12, 12)).astype(np.float32))


def _trtq(folder: Path, command: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, [word.replace("@", f"{folder}/") for word in command.split()])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


_COMMANDS = {
    "calibrate": "calibrate @m.onnx --calib-data @x.npz --output @r.json",
    "quantize": "quantize @m.onnx --ranges @given.json --high-precision fp32 --output @q.onnx",
    "weights": "quantize @m.onnx --weights int8 --output @q.onnx",
    "build": "build @m.onnx --int8 --backend onnxruntime --calib-data @x.npz --output @o",
    "fp16": "build @m.onnx --fp16 --backend onnxruntime --output @o",
    "migrate": "migrate @m.onnx @m.cache --backend onnxruntime --output @o",
    "sensitivity": "sensitivity @m.onnx --calib-data @x.npz",
}


_AMAXES = {"x": 4.0, "u": 20.0}


def _give_ranges(folder: Path) -> None:
    """Writes the ranges of both layers, as trtq and as TensorRT have them."""
    digest = hashlib.sha256((folder / "m.onnx").read_bytes()).hexdigest()
    tensors = {name: Range(amax, -amax, amax) for name, amax in _AMAXES.items()}
    ranges = Ranges(tensors, "minmax", digest, "x.npz", 8)
    (folder / "given.json").write_bytes(ranges_to_json(ranges))
    words = (np.float32(amax / 127).view(np.uint32) for amax in _AMAXES.values())
    lines = [f"{name}: {word:08x}" for name, word in zip(_AMAXES, words, strict=True)]
    (folder / "m.cache").write_text("\n".join(["TRT-8601-MinMaxCalibration", *lines, ""]))


@pytest.mark.parametrize("command", _COMMANDS.values(), ids=_COMMANDS)
def test_what_turns_out_otherwise_is_refused_by_name(tmp_path: Path, command: str) -> None:
    _save(tmp_path, "Div(size, f)")
    _give_ranges(tmp_path)
    before = {*tmp_path.iterdir()}
    code, said = _trtq(tmp_path, command)
    assert (code, {*tmp_path.iterdir()}) == (2, before), said
    assert "node 'resize' (Resize) gives something else than in " in " ".join(said.split())


@pytest.mark.parametrize("command", _COMMANDS.values(), ids=_COMMANDS)
def test_what_computes_the_same_is_done(tmp_path: Path, command: str) -> None:
    _save(tmp_path, "Div(twice, f)")
    _give_ranges(tmp_path)
    code, said = _trtq(tmp_path, command)
    assert code in (0, 3) or "has no weight that can be stored as INT8" in said, said  # which comes later
    assert "gives something else" not in said
