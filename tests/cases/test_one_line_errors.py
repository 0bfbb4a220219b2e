"""An error is one line on stderr, whatever names hold and whoever finds it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trtq.cli import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False, prog_name="trtq")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--foo",), "No such option '--foo'; `trtq --help` lists"),
        (("nosuch",), "No such command 'nosuch'; `trtq --help` lists"),
        (("build",), "Missing argument 'MODEL'; `trtq build --help` lists"),
        (("build", "m.onnx", "--calib-method", "a\nb\x1b[31m"), r"'a\nb\x1b[31m' is not one of"),
        (("cache", "show"), "Missing argument 'FILE'; `trtq cache show --help` lists"),
        (("cache", "nosuch"), "No such command 'nosuch'; `trtq cache --help` lists"),
        (("plan", "m.onnx", "--batch", "x\ny"), r"'x\ny' is not a valid integer; `trtq plan --help` lists"),
        (("inspect", "a\nb\x1b.onnx"), r"a\nb\x1b.onnx"),
        (("bench", "a\nb"), r"a\nb"),
    ],
)
def test_errors_of_every_kind_are_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""


def test_an_error_of_the_users_own_code_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trtq.toml").write_text('[[build]]\nmodel = "a\\nb.onnx"\nint9 = true\nnope = 1\n')
    result = run("build-all", "trtq.toml")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    for part in ("unknown key 'int9'; is it int8? | ", "unknown key 'nope'", r"there is no model a\nb.onnx"):
        assert part in result.stderr


@pytest.mark.parametrize("arguments", [(), ("cache",)])
def test_help_stays_help(arguments: tuple[str, ...]) -> None:
    assert "Usage: trtq " in run(*arguments).output
