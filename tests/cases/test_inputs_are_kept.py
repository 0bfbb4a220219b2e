"""What a command reads it does not write over, and what contradicts itself is refused before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from trtq.calibrators.cache import CalibrationCache, format_cache
from trtq.cli import main

_QUICK = ("--calib-method", "minmax")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Callable[[Path], None]) -> Path:
    """The current folder: m.onnx, x.npz, labels.npy, s.toml, feeds, r.json, old.cache."""
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path)
    np.save(tmp_path / "labels.npy", np.zeros(32, np.int64))
    (tmp_path / "s.toml").write_text('[calibration]\ndata = "x.npz"\n')
    (tmp_path / "score.py").write_text("def score(outputs, labels):\n    return 1.0\n")
    (tmp_path / "feeds").mkdir()
    shutil.copy(tmp_path / "x.npz", tmp_path / "feeds" / "a.npz")
    assert run("calibrate", "m.onnx", "--calib-data", "x.npz", *_QUICK, "-o", "r.json", "-q").exit_code == 0
    cache = CalibrationCache({"x": 0.5}, 100300, "EntropyCalibration2")
    (tmp_path / "old.cache").write_bytes(format_cache(cache))
    return tmp_path


_SENSITIVITY = ("sensitivity", "m.onnx", "--calib-data", "x.npz", *_QUICK, "--repair", "none")
_GPTQ = ("--weights", "int4", "--weight-method", "gptq")
_OVERWRITES = {
    "cache convert": ("old.cache", ("cache", "convert", "old.cache", "--to", "minmax", "-o", "old.cache")),
    "cache export": ("r.json", ("cache", "export", "r.json", "--tensorrt", "8.6", "-o", "r.json")),
    "cache export of a model": (
        "m.onnx",
        ("cache", "export", "r.json", "--tensorrt", "8.6", "--model", "m.onnx", "-o", "m.onnx"),
    ),
    "calibrate labels": (
        "labels.npy",
        ("calibrate", "m.onnx", "--calib-data", "x.npz", "--spec", "labels.toml", "-o", "labels.npy"),
    ),
    "calibrate settings": ("s.toml", ("calibrate", "m.onnx", "--spec", "s.toml", "-o", "s.toml")),
    "quantize": ("m.onnx", ("quantize", "m.onnx", "--ranges", "r.json", "-o", "m.onnx")),
    "quantize data": (
        "x.npz", ("quantize", "m.onnx", *_GPTQ, "--calib-data", "x.npz", "-o", "x.npz"),
    ),
    "sensitivity": ("x.npz", (*_SENSITIVITY, "-o", "x.npz")),
    "sensitivity evaluation": (
        "feeds/a.npz", (*_SENSITIVITY, "--eval-data", "feeds/a.npz", "-o", "feeds/a.npz"),
    ),
    "sensitivity metric": ("score.py", (*_SENSITIVITY, "--metric", "score.py:score", "-o", "score.py")),
    "bench": ("m.onnx", ("bench", "m.onnx", "-o", "m.onnx")),
    "bench data": ("x.npz", ("bench", "m.onnx", "--data", "x.npz", "-o", "x.npz")),
    "merge-statistics": ("x.npz", ("merge-statistics", "x.npz", "-o", "x.npz")),
}  # fmt: skip


@pytest.mark.parametrize("name", _OVERWRITES)
def test_an_output_that_is_an_input_is_refused(folder: Path, name: str) -> None:
    (folder / "labels.toml").write_text('[evaluation]\ndata = "x.npz"\nlabels = "labels.npy"\n')
    file, arguments = _OVERWRITES[name]
    before = (folder / file).read_bytes()
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file} is read by this command; choose another file with --output" in result.stderr
    assert (folder / file).read_bytes() == before


def test_the_file_of_a_report_and_its_folder_are_kept(folder: Path) -> None:
    build = ("build", "m.onnx", "--int8", "--backend", "onnxruntime", "--calib-data", "x.npz")
    assert run(*build, *_QUICK, "--repair", "none", "-q").exit_code == 0
    assert run(*_SENSITIVITY, "-q").exit_code == 0
    measured = (folder / "m.sensitivity.json").read_bytes()
    report = ("report", "m.trtq", "--sensitivity", "m.sensitivity.json", "-o")
    assert "m.sensitivity.json is read by this command" in run(*report, "m.sensitivity.json").stderr
    assert "would be inside m.trtq, which is read by this command" in run(*report, "m.trtq/a.html").stderr
    assert "would be inside m.trtq, which" in run("bench", "m.trtq", "-o", "m.trtq/b.json").stderr
    assert (folder / "m.sensitivity.json").read_bytes() == measured
    assert run("verify", "m.trtq", "-q").exit_code == 0


def test_two_outputs_of_a_command_are_two_files(folder: Path) -> None:
    result = run(*_SENSITIVITY, "-o", "a.svg", "--chart", "a.svg")
    assert result.exit_code == 2
    assert "a.svg is given as --output and as --chart; give each its own file" in result.stderr


_RANDOM = ("--calib-data", "x.npz", "--random-data")
_WRONG = {
    "--calib-data and --random-data contradict each other": (
        ("build", "m.onnx", "--int8", *_RANDOM),
        ("calibrate", "m.onnx", *_RANDOM),
        ("sensitivity", "m.onnx", *_RANDOM),
    ),
    "--requantize is for models with Q/DQ, and m.onnx has none": (
        ("build", "m.onnx", "--int8", "--requantize", "--random-data"),
    ),
    "--batch must be at least 1, got 0": (("plan", "m.onnx", "--batch", "0"),),
    "--batch is for a model, which --params is not": (("plan", "--params", "1B", "--batch", "0"),),
    "cannot check empty.py: it is empty: expected a script": (("migrate", "--check", "empty.py"),),
    "cannot check none: it holds nothing to check: expected a": (("migrate", "--check", "none"),),
    "m.onnx has no weight that can be stored as INT4 (fc: ": (
        ("quantize", "m.onnx", "--weights", "int4", "--skip", "fc"),
    ),
    "cannot write no/c: there is no folder": (
        ("cache", "export", "r.json", "--tensorrt", "8.6", "-o", "no/c"),
        ("quantize", "m.onnx", "--weights", "int4", "-o", "no/c"),
    ),
    "No such option '-v'": (("compare", "m.onnx", "m.onnx", "-v"), ("quantize", "m.onnx", "-v")),
}


@pytest.mark.parametrize("message", _WRONG)
def test_what_contradicts_itself_is_refused_in_one_line(folder: Path, message: str) -> None:
    (folder / "empty.py").write_text("\n")
    (folder / "none").mkdir()
    for arguments in _WRONG[message]:
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert message in line
    assert not [path for path in folder.iterdir() if path.name.endswith((".trtq", "weights.onnx"))]
