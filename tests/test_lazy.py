"""Tests of importing late."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trtq import lazy
from trtq.errors import MissingDependency


def test_an_installed_module_comes_back() -> None:
    assert lazy.require("json.decoder", None, "reading") is sys.modules["json.decoder"]


def test_an_absent_module_names_its_extra() -> None:
    with pytest.raises(MissingDependency) as caught:
        lazy.require("absent_library.part", "images", "reading images")
    assert str(caught.value) == (
        "reading images needs absent_library, which cannot be imported here "
        "(No module named 'absent_library'); install it with: pip install 'trtq[images]'"
    )
    assert caught.value.exit_code == 5


def test_an_absent_dependency_of_trtq_itself_names_trtq() -> None:
    with pytest.raises(MissingDependency, match=r"; install it with: pip install 'trtq'$"):
        lazy.require("absent_library", None, "running the model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "raise OSError('libcudart.so.12: cannot open shared object file')",
            r"\(libcudart.so.12: cannot open",
        ),
        ("import another_absent_library", r"\(No module named 'another_absent_library'\)"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "half_installed.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        MissingDependency, match=rf"needs half_installed, which cannot be imported .*{message}"
    ):
        lazy.require("half_installed", "rtx", "building an engine")


def test_a_bug_in_a_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_library.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        lazy.require("wrong_library", None, "working")


def test_ctrl_c_while_a_compiled_module_is_loaded_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "interrupted.py").write_text(
        "raise ImportError('initialization failed') from KeyboardInterrupt()"  # as pybind11 does
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        lazy.require("interrupted", None, "running the model")
