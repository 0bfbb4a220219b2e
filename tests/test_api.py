"""The public names of the package."""

from __future__ import annotations

import importlib
import inspect
from importlib.metadata import version
from pathlib import Path

import pytest

import trtq
import trtq.errors
from trtq.cli import main

NAMES = {
    "build-all": None,
    "cache": "export_cache",
    "completion": None,
    "demo": "write_demo",
    "plan": "plan_model",
}
"""Commands whose function has another name; several builds are several calls."""


def test_the_list_is_whole() -> None:
    assert {"build", "Watcher", "LoadedEngine", "WeightScheme", "BuilderOptions"} <= {*trtq.__all__}
    assert list(trtq.__all__) == sorted({*trtq.__all__})


@pytest.mark.parametrize("name", trtq.__all__)
def test_every_name_is_that_of_its_home(name: str) -> None:
    found = getattr(trtq, name)
    assert found is getattr(importlib.import_module(trtq._HOMES[name]), name)
    assert found.__doc__


def test_every_error_is_public() -> None:
    errors = {name for name, _ in inspect.getmembers(trtq.errors, inspect.isclass) if name != "ClassVar"}
    assert errors == {name for name in trtq.__all__ if trtq._HOMES[name] == "trtq.errors"}


@pytest.mark.parametrize("command", main.list_commands(None))  # type: ignore[arg-type]
def test_every_command_has_its_function(command: str) -> None:
    name = NAMES.get(command, command.replace("-", "_"))
    assert name is None or callable(getattr(trtq, name))


def test_they_are_listed_and_imported_by_a_star() -> None:
    assert {*trtq.__all__, "__version__"} <= {*dir(trtq)}
    found: dict[str, object] = {}
    exec("from trtq import *", found)
    assert {*trtq.__all__} <= {*found}


def test_the_version_is_that_of_the_package() -> None:
    assert trtq.__version__ == version("trtq")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'trtq' has no attribute 'biuld'$"):
        trtq.biuld  # type: ignore[attr-defined]  # noqa: B018


def test_paths_may_be_text(tmp_path: Path) -> None:
    files = trtq.write_demo(str(tmp_path / "demo"))
    assert {path.parent for path in files} == {tmp_path / "demo"}
    settings = tmp_path / "demo" / "model.toml"
    assert trtq.read_spec(str(settings)) == trtq.read_spec(settings)
    cache = tmp_path / "old.cache"
    cache.write_bytes(b"TRT-8601-EntropyCalibration2\nx: 3f000000\n")
    assert trtq.read_cache(str(cache)) == trtq.read_cache(cache)
    assert trtq.plan_model(str(tmp_path / "demo" / "model.onnx")).num_params > 0
