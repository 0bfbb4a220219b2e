"""Tests of the builder's child process, and of what its answers become."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from trtq.errors import BuildError, TrtqError, UsageError
from trtq.models.spec import InputSpec
from trtq.pipeline.engine import process
from trtq.pipeline.engine.backend import BuilderOptions, BuildRequest, ImplicitQuantization
from trtq.pipeline.engine.process import Flavour, ProcessOutcome, run, run_child, run_in_child, to_json

FLAVOUR = Flavour("tensorrt", "TensorRT 10.16.1", inspects=True)
Run = Callable[..., ProcessOutcome]
_CRASHING = """
import os, pathlib, signal, sys
def main(folder):
    with pathlib.Path(folder, "build.log").open("w") as log:
        print("ERROR: cudaError 35: CUDA driver version is insufficient", file=log)
        print("WARNING: the last words of the builder", file=log)
    print("and those of the process", file=sys.stderr, flush=True)
    {end}
"""


@pytest.fixture
def run_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Run]:
    """Puts another module in the place of the builder's, and runs a request in a child."""

    def prepare(source: str) -> Run:
        (tmp_path / "trtq_test_child.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(process, "_BUILDER", "trtq_test_child")
        return lambda **request: run(
            FLAVOUR, BuildRequest(tmp_path / "model.onnx", **request), run_in_child(FLAVOUR)
        )

    return prepare


def _answered(
    answer: Mapping[str, Any], tmp_path: Path, *log: str, plan: bytes = b"", **further: Any
) -> ProcessOutcome:
    """Returns what becomes of an answer, given without any process."""

    def work(request: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
        (place / "build.log").write_text("".join(f"{line}\n" for line in log))
        if plan:
            (place / "plan").write_bytes(plan)
        return {**answer, **({"asked": request} if "asks" in answer else {})}

    return run(FLAVOUR, BuildRequest(tmp_path / "model.onnx"), work, **further)


# The child process


def test_the_child_has_the_import_path_of_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told.py").write_text(
        "import json, pathlib, sys\n"
        "def main(folder): pathlib.Path(folder, 'path.json').write_text(json.dumps(sys.path))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert run_child("told", tmp_path).returncode == 0
    assert json.loads((tmp_path / "path.json").read_text()) == sys.path


def test_a_child_is_ended_where_its_start_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text("import time\ndef main(folder): time.sleep(600)")
    monkeypatch.syspath_prepend(tmp_path)
    children = list[subprocess.Popen[str]]()

    def interrupt(child: subprocess.Popen[str]) -> None:
        children.append(child)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child("sleeping", tmp_path, interrupt)
    assert children[0].returncode == -signal.SIGKILL


def test_the_builder_imports_nothing_large() -> None:
    program = f"import sys, {process._BUILDER}; print(sys.modules.keys() & {{'numpy', 'onnx_ir', 'sympy'}})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_crash_is_told_with_the_signal_and_the_last_words(run_with: Callable[[str], Run]) -> None:
    build = run_with(_CRASHING.format(end="os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(BuildError) as told:
        build()
    assert str(told.value) == (
        "the TensorRT 10.16.1 builder was killed by SIGSEGV; its last output:\n  WARNING: the last "
        "words of the builder\n  and those of the process"
    )


def test_a_python_error_of_the_child_is_told(run_with: Callable[[str], Run]) -> None:
    build = run_with(_CRASHING.format(end="raise ImportError('libnvinfer.so.10 is missing')"))
    with pytest.raises(
        BuildError,
        match=r"builder ended with status 1; its last output:(.|\n)*ImportError: libnvinfer\.so\.10 is",
    ):
        build()


def test_a_builder_without_room_says_where_it_works(run_with: Callable[[str], Run]) -> None:
    full = (
        "from trtq.pipeline.engine import builder\n"
        "def build(*args): raise OSError(28, 'No space left on device')\n"
        "builder.build = build\n"
        "builder.importlib.import_module = lambda name: None\n"
        "main = builder.main\n"
    )
    with pytest.raises(BuildError) as told:
        run_with(full)()
    assert re.fullmatch(
        r"the TensorRT 10\.16\.1 builder ended with status 1; its last output:\n  \[Errno 28\] No "
        r"space left on device \(at work in .*trtq\.\w+\.tmp\)",
        str(told.value),
    )


def test_a_child_that_dies_without_a_word_is_told(run_with: Callable[[str], Run]) -> None:
    build = run_with("import os\ndef main(folder): os._exit(3)")
    with pytest.raises(BuildError, match=r"ended with status 3; its last output:\n  it gave no reason$"):
        build()


_ECHO = """
import pathlib
def main(folder):
    place = pathlib.Path(folder)
    (place / "plan").write_bytes((place / "request.json").read_bytes())
    (place / "answer.json").write_text('{"inspector": ""}')
"""


def test_the_request_reaches_the_child_whole(run_with: Callable[[str], Run], tmp_path: Path) -> None:
    outcome = run_with(_ECHO)(
        profiles={"x": InputSpec((1, 3), (2, 3), (4, 3))},
        compute_capabilities=("8.9",),
        workspace_bytes=1 << 40,
        options=BuilderOptions(tmp_path / "größe.cache", 5, "ampere+", version_compatible=True),
        precisions=("int8", "fp16"),
        implicit=ImplicitQuantization(scales={"x": 0.5}),
        kept={"mm": "fp32"},
    )
    assert json.loads(outcome.plan) == {
        "module": "tensorrt",
        "product": "TensorRT 10.16.1",
        "inspects": True,
        "model": str(tmp_path / "model.onnx"),
        "profiles": [{"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}],
        "compute_capabilities": ["8.9"],
        "workspace_bytes": 1 << 40,
        "optimization_level": 5,
        "hardware_compatibility": "ampere+",
        "version_compatible": True,
        "timing_cache": str(tmp_path / "größe.cache"),
        "precisions": ["int8", "fp16"],
        "kept": {"mm": "fp32"},
        "plugins": [],
        "calibration_shapes": {},
    }
    assert (outcome.answer, outcome.warnings) == ({"inspector": ""}, ())


def test_paths_are_made_absolute_for_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "größe").mkdir()
    monkeypatch.chdir(tmp_path)
    options = BuilderOptions(Path("timing.cache"))
    request = to_json(FLAVOUR, BuildRequest(Path("größe") / ".." / "model.onnx", options=options))
    assert request["model"] == str(tmp_path / "model.onnx")
    assert request["timing_cache"] == str(tmp_path / "timing.cache")


# Answers


def test_a_finished_build_has_its_plan_and_its_warnings_once(tmp_path: Path) -> None:
    log = ("WARNING: b", "ERROR: no CUDA-capable device", "WARNING: a", "WARNING: b")
    outcome = _answered({"inspector": "told"}, tmp_path, *log, plan=b"plan")
    assert (outcome.plan, outcome.warnings) == (b"plan", ("WARNING: b", "WARNING: a"))
    assert outcome.answer == {"inspector": "told"}


def test_more_can_be_asked_of_the_builder(tmp_path: Path) -> None:
    outcome = _answered({"asks": ""}, tmp_path, plan=b"plan", calibration_shapes={"x": [8, 3]})
    asked: Any = outcome.answer["asked"]
    assert asked["calibration_shapes"] == {"x": [8, 3]}


def _failing(error: TrtqError, tmp_path: Path, *log: str) -> None:
    def work(request: Mapping[str, Any], place: Path) -> Mapping[str, Any]:
        (place / "build.log").write_text("".join(f"{line}\n" for line in log))
        raise error

    run(FLAVOUR, BuildRequest(tmp_path / "model.onnx"), work)


def test_a_failed_build_is_told_with_the_last_twelve_lines(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as raised:
        _failing(BuildError("it failed"), tmp_path, *(f"ERROR: line {number}" for number in range(20)))
    lines = [f"  ERROR: line {number}" for number in range(8, 20)]
    assert str(raised.value).splitlines() == ["it failed:", *lines]


def test_a_failure_without_a_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"^it failed:\n  it gave no reason$"):
        _failing(BuildError("it failed"), tmp_path)


def test_an_error_of_the_child_is_raised_here(run_with: Callable[[str], Run]) -> None:
    build = run_with(
        "import json, pathlib\n"
        "def main(folder):\n"
        "    answer = {'error': 'UsageError', 'text': 'no such option'}\n"
        "    pathlib.Path(folder, 'answer.json').write_text(json.dumps(answer))\n"
    )
    with pytest.raises(UsageError, match=r"^no such option$"):
        build()
