"""Tests of the libraries of operators that the environment names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtq.models import operators
from trtq.models.operators import list_plugins, use_operators
from trtq.models.spec import OperatorSpec


@pytest.mark.usefixtures("no_libraries")
def test_libraries_of_the_environment_are_named_by_whole_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.so").touch()
    monkeypatch.setitem(operators._GIVEN, operators.PLUGINS, os.pathsep.join(["here.so", "libelsewhere.so"]))
    use_operators(OperatorSpec())
    assert list_plugins() == (str(tmp_path / "here.so"), "libelsewhere.so")
