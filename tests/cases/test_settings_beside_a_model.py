"""Settings that lie beside a model may have come with it from elsewhere: they run no script unasked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import trtq
from trtq.cli import main
from trtq.errors import UsageError
from trtq.pipeline.calibrate.data import find_spec

_FEEDS = "import numpy as np\nopen('RAN', 'w').close()\ndef feeds():\n    for i in range(4):\n        "
_FEEDS += "yield {'x': np.random.default_rng(i).standard_normal((8, 4)).astype('f')}\n"
_METRIC = "open('RAN', 'w').close()\ndef score(outputs, labels):\n    return 1.0\n"
_KEYS = {
    "[calibration] data": '[calibration]\ndata = "feeds.py:feeds"\n',
    "[evaluation] data": '[calibration]\ndata = "x.npz"\n[evaluation]\ndata = "feeds.py:feeds"\n',
    "[accuracy] metric": '[calibration]\ndata = "x.npz"\n[accuracy]\nmetric = "score.py:score"\n',
}
_BUILD = (
    "build",
    "m.onnx",
    "--int8",
    "--backend",
    "onnxruntime",
    "--repair",
    "none",
    "--calib-method",
    "minmax",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Callable[[Path], None]) -> Path:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path)
    (tmp_path / "feeds.py").write_text(_FEEDS)
    (tmp_path / "score.py").write_text(_METRIC)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


@pytest.mark.parametrize("key", _KEYS)
def test_a_script_named_beside_the_model_is_refused(folder: Path, key: str) -> None:
    (folder / "model.toml").write_text(_KEYS[key])
    for command in (_BUILD, ("calibrate", "m.onnx", "-o", "r.json"), ("sensitivity", "m.onnx")):
        result = run(*command)
        assert result.exit_code == 2, result.output
        said = f"found beside the model, names the script {'score' if 'metric' in key else 'feeds'}.py:"
        assert said in result.stderr
        assert f"as {key}, and is not trusted to run one" in result.stderr
        assert "add --trust or name the file with --spec" in result.stderr
    assert not (folder / "RAN").exists()


@pytest.mark.parametrize("key", _KEYS)
@pytest.mark.parametrize("allow", [("--trust",), ("--spec", "model.toml")])
def test_the_user_allows_it(folder: Path, key: str, allow: tuple[str, ...]) -> None:
    (folder / "model.toml").write_text(_KEYS[key])
    result = run(*_BUILD, *allow, "-q")
    assert result.exit_code == 0, result.output
    assert (folder / "RAN").exists()


def test_a_script_named_on_the_command_line_is_the_users(folder: Path) -> None:
    (folder / "model.toml").write_text(_KEYS["[accuracy] metric"])
    assert run(*_BUILD, "--metric", "score.py:score", "-q").exit_code == 0
    (folder / "model.toml").write_text(_KEYS["[calibration] data"])
    assert run(*_BUILD, "--calib-data", "x.npz", "-q").exit_code == 0
    assert run(*_BUILD, "--random-data", "-q").exit_code == 0


def test_a_build_says_which_settings_it_used(folder: Path) -> None:
    (folder / "m.toml").write_text('[calibration]\ndata = "x.npz"\n')
    assert "note: settings are read from m.toml" in run(*_BUILD).stderr
    (folder / "other.toml").write_text('[calibration]\ndata = "x.npz"\nsamples = 16\n')
    assert "note: settings are read from other.toml" in run(*_BUILD, "--spec", "other.toml").stderr
    assert "settings are read from other.toml" in trtq.read_report(Path("m.trtq")).notes


def test_every_command_says_which_settings_it_used_once(folder: Path) -> None:
    (folder / "m.toml").write_text('[calibration]\ndata = "x.npz"\n')
    for arguments in (
        ("calibrate", "m.onnx", "--calib-method", "minmax", "-o", "r.json"),
        ("quantize", "m.onnx", "--ranges", "r.json", "-o", "q.onnx"),
        ("sensitivity", "m.onnx", "--calib-method", "minmax", "--repair", "none"),
        ("compare", "m.onnx", "q.onnx", "--min-cosine", "0.5"),
        _BUILD,
    ):
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr.count("note: settings are read from m.toml") == 1


@pytest.mark.parametrize("key", _KEYS)
def test_python_reads_no_script_from_beside_a_model_either(folder: Path, key: str) -> None:
    (folder / "model.toml").write_text(_KEYS[key])
    with pytest.raises(UsageError, match=re.escape("(in Python: spec=trtq.read_spec('model.toml'))")):
        trtq.build("m.onnx")
    assert not (folder / "RAN").exists()
    assert find_spec("m.onnx", trust=True).scripts == trtq.read_spec("model.toml").scripts
    assert list(find_spec("m.onnx", trust=True).scripts) == [key]


def test_what_runs_no_script_reads_the_settings(folder: Path) -> None:
    (folder / "model.toml").write_text(_KEYS["[accuracy] metric"] + '[layers]\nskip = ["fc"]\n')
    result = run("inspect", "m.onnx", "--placement")
    assert result.exit_code == 0, result.output
    assert not (folder / "RAN").exists()
