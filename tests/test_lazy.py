"""Tests of importing late."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from trtq import lazy
from trtq.errors import MissingDependency
from trtq.pipeline.engine.process import child_command
from trtq.workers import Processes


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


def _write_package(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Writes a package with a submodule, whose name no other test has, and returns it."""
    name = f"deferred_{folder.name}"
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)
    (folder / name / "part.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    lazy.defer(name)
    return name


def test_a_deferred_module_runs_once_something_of_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    text = (
        f"from pathlib import Path\nwith Path({str(ran)!r}).open('a') as log:\n    log.write('x')\nTEN = 10"
    )
    name = _write_package(tmp_path, monkeypatch, text)
    module, again = importlib.import_module(name), importlib.import_module(name)
    assert module is again
    assert not ran.exists()
    assert module.TEN == 10
    assert ran.read_text() == "x"
    assert type(module) is ModuleType
    assert inspect.getsource(module).endswith("TEN = 10\n")
    with pytest.raises(AttributeError, match="has no attribute 'ELEVEN'"):
        _ = module.ELEVEN
    assert ran.read_text() == "x"


def test_a_submodule_has_its_deferred_package_run_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _write_package(tmp_path, monkeypatch, "from . import part\nVALUE = part.VALUE + 1")
    assert importlib.import_module(f"{name}.part").VALUE == 7
    assert vars(sys.modules[name])["VALUE"] == 8


def test_a_deferred_module_says_what_is_wrong_whenever_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _write_package(tmp_path, monkeypatch, "import sys\nsys.modules[__name__].EARLY")
    module = importlib.import_module(name)
    for _ in range(2):
        with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'EARLY' yet"):
            _ = module.VALUE


def test_what_is_imported_or_absent_is_not_deferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    lazy.defer("json", "absent_library")
    assert type(json) is ModuleType
    with pytest.raises(ModuleNotFoundError, match="absent_library"):
        importlib.import_module("absent_library")


def test_a_child_of_ours_imports_no_sympy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_child.py").write_text(
        "import sys, onnx_ir\ndef main(folder): print('onnx_ir' in sys.modules, 'sympy.core' in sys.modules)"
    )
    monkeypatch.syspath_prepend(tmp_path)
    told = subprocess.run(child_command("a_child", tmp_path), capture_output=True, text=True, check=True)
    assert told.stdout == "True False\n"


def test_a_worker_imports_no_sympy() -> None:
    defers = "[type(finder).__name__ for finder in __import__('sys').meta_path]"
    assert next(iter(Processes(1).map(eval, [defers])))[0] == "_DeferringFinder"


def test_a_command_imports_no_sympy() -> None:
    program = (
        "import sys; from trtq.cli import main; main(['calibrate', '--help'], standalone_mode=False); "
        "print('onnx_ir' in sys.modules, 'sympy.core' in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "True False"


def test_calibrating_by_one_method_imports_nothing_of_trials(demo_folder: Path, tmp_path: Path) -> None:
    words = ["calibrate", str(demo_folder / "model.onnx"), "--calib-method", "entropy", "--quiet"]
    words += ["--calib-data", str(demo_folder / "calibration.npz"), "-o", str(tmp_path / "ranges.json")]
    names = [
        "trtq.records",
        "trtq.pipeline.judge.repairs",
        "trtq.pipeline.judge.macs",
        "trtq.pipeline.rewrite",
    ]
    names += ["trtq.pipeline.graph.repair", "polygraphy", "jinja2"]
    program = (
        f"import sys; from trtq.cli import main; main({words}, standalone_mode=False); "
        f"print(type(sys.modules['google.protobuf.json_format']).__name__, {{*{names}}} & {{*sys.modules}})"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "_Deferred set()"
