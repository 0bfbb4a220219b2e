"""Tests over TensorRT's real Python bindings, without TensorRT: C++ calls our calibrators as a build would.

The bindings need three libraries of TensorRT; stubs, compiled here, stand in for them. `as_tensorrt.py` does
the calling, in a process of its own.
"""

from __future__ import annotations

import ast
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_HERE = Path(__file__).parent
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
TensorRT = Callable[..., Any]
FEEDS = [{"image": [1.5, 2, 3], "mask": [7, 2, 1]}, {"image": [2.5, 2, 3], "mask": [8, 2, 1]}]
REQUEST = {"feeds": FEEDS, "names": ["mask", "image"], "shapes": {"image": [2, 3], "mask": [2, 1]}}
ALGORITHMS = {"entropy2": 2, "minmax": 3}
WRITTEN = "TRT-101601-WhatTensorRTWrites\nx: 3c010a14\n"


@pytest.fixture(scope="session")
def tensorrt10(tmp_path_factory: pytest.TempPathFactory) -> TensorRT:
    """Runs a request of tests/bindings/as_tensorrt.py over the last bindings that have calibrators."""
    return _bindings("10.16.1.11", tmp_path_factory)


@pytest.fixture(scope="session")
def tensorrt11(tmp_path_factory: pytest.TempPathFactory) -> TensorRT:
    """Runs a request of tests/bindings/as_tensorrt.py over bindings without calibrators."""
    return _bindings("11.4.0.106", tmp_path_factory)


def _bindings(version: str, tmp_path_factory: pytest.TempPathFactory) -> TensorRT:
    folder = tmp_path_factory.mktemp(f"tensorrt-{version}")
    libraries, package = folder / "libraries", folder / "package"
    _compile(libraries, version.partition(".")[0])
    _install(package, version)

    def ask(what: str, **request: Any) -> Any:
        command = [sys.executable, str(_HERE / "as_tensorrt.py"), str(libraries), str(package)]
        process = subprocess.run(
            [*command, json.dumps({"what": what, **request})], capture_output=True, text=True, check=False
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])  # the bindings may print before

    return ask


def _compile(folder: Path, major: str) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the stubs of TensorRT's libraries")
    folder.mkdir()
    for library in _LIBRARIES:
        name = f"{library}.so.{major}"
        options = ["-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name)]
        subprocess.run([compiler, *options, str(_HERE / "nvinfer_stub.c")], check=True)


def _install(folder: Path, version: str) -> None:
    """Installs the bindings where nothing else sees them: a test's dependency, never one of trtq."""
    package = f"tensorrt-cu12-bindings=={version}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "install", "--quiet"]
    options = ["--no-deps", "--only-binary", ":all:", "--target", str(folder), package]
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip(f"{package} is there for Linux on x86-64 alone")
    process = subprocess.run([*pip, *options], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("kind", ["entropy2", "minmax"])
def test_tensorrt_takes_every_batch(kind: str, tensorrt10: TensorRT) -> None:
    assert tensorrt10("calibrate", kind=kind, **REQUEST) == {
        "algorithm": ALGORITHMS[kind],
        "batch_size": 2,
        "read": None,
        "batches": [[7, 1.5], [8, 2.5]],
        "written": WRITTEN,
    }


def test_tensorrt_takes_our_ranges(tensorrt10: TensorRT) -> None:
    seen = tensorrt10("calibrate", kind="ranges", scales={"image": 0.5}, **REQUEST)
    text = "TRT-101601-EntropyCalibration2\nimage: 3f000000\n"
    assert seen == {"algorithm": 2, "batch_size": 1, "read": text, "batches": [], "written": None}


def test_a_cache_that_tensorrt_rejects_is_an_error_after_the_build(tensorrt10: TensorRT) -> None:
    seen = tensorrt10("calibrate", kind="ranges", scales={"image": 0.5}, takes_cache=False, **REQUEST)
    assert seen["batches"] == []
    assert seen["error"].startswith(
        "BuildError: TensorRT did not take the scales: their cache has the header "
        "'TRT-101601-EntropyCalibration2', its own have 'TRT-101601-WhatTensorRTWrites'; "
    )


@pytest.mark.parametrize(
    ("changed", "num_batches", "error"),
    [
        ({"feeds": [FEEDS[0], {"raise": "in the data"}]}, 1, "ZeroDivisionError: in the data"),
        (
            {"feeds": [FEEDS[0], {"image": [1, 2, 4]}]},
            1,
            "DataError: TensorRT asks for input 'mask', feed 1 has",
        ),
        (
            {"names": ["image"], "feeds": [{"image": [1, 2, 4]}]},
            0,
            "DataError: input 'image' of feed 0 has shape (2, 4),",
        ),
        ({"feeds": []}, 0, "DataError: TensorRT took no calibration batch of 2 from the data; "),
    ],
)
def test_an_error_that_the_bindings_would_swallow_is_raised_after(
    changed: dict[str, Any], num_batches: int, error: str, tensorrt10: TensorRT
) -> None:
    seen = tensorrt10("calibrate", kind="minmax", **{**REQUEST, **changed})
    assert len(seen["batches"]) == num_batches
    assert seen["error"].startswith(error)


def test_mistakes_that_would_crash_tensorrt_are_refused(tensorrt10: TensorRT) -> None:
    init = tensorrt10("misuse")
    assert init.endswith("IInt8MinMaxCalibrator.__init__() must be called when overriding __init__")


@pytest.mark.parametrize("kind", ["entropy2", "minmax", "ranges"])
def test_tensorrt_11_has_no_calibrators(kind: str, tensorrt11: TensorRT) -> None:
    seen = tensorrt11("calibrate", kind=kind, scales={"image": 0.5}, **REQUEST)
    assert seen["refused"].startswith("UsageError: tensorrt_bindings 11.4.0.106 has no IInt8")


def _typed_names() -> tuple[list[str], list[str]]:
    """Returns the dotted names of our typings: those of every TensorRT, and those up to 10."""
    path = _HERE.parents[1] / "typings" / "tensorrt" / "__init__.pyi"
    lines = path.read_text().splitlines()
    every: list[str] = []
    old: list[str] = []

    def collect(body: list[ast.stmt], prefix: str, *, is_old: bool) -> None:
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name
            else:
                continue
            if name.startswith("_") and name != "__version__":
                continue
            marked = is_old or "# <= 10" in lines[node.lineno - 1]
            (old if marked else every).append(f"{prefix}{name}")
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{name}.", is_old=marked)

    collect(ast.parse(path.read_text()).body, "", is_old=False)
    return every, old


def test_typed_names_are_in_tensorrt_10(tensorrt10: TensorRT) -> None:
    every, old = _typed_names()
    assert {"Builder.create_network", "EngineInspector", "ILogger.Severity.ERROR"} <= set(every)
    assert {"BuilderFlag.INT8", "IInt8MinMaxCalibrator", "ITensor.set_dynamic_range"} <= set(old)
    assert tensorrt10("missing", names=every + old) == []


def test_names_that_are_not_marked_are_in_tensorrt_11(tensorrt11: TensorRT) -> None:
    every, old = _typed_names()
    assert tensorrt11("missing", names=every + old) == old


# The backend


def test_the_backend_knows_tensorrt_10(tensorrt10: TensorRT) -> None:
    found = tensorrt10("abilities")
    assert found.pop("why_not").startswith("it builds on the GPU that the engine is for, and ")
    assert found == {
        "version": "10.16.1.11",
        "flags": {"": 0b11, "int8": 0b01, "int8 fp16": 0b01},
        "takes_types": True,
        "lacks": ["compute_capabilities"],
        "command": "trtexec --onnx=model.int8.onnx --saveEngine=model.engine --stronglyTyped "
        "--profilingVerbosity=detailed --skipInference",
    }


def test_the_backend_knows_tensorrt_11(tensorrt11: TensorRT) -> None:
    found = tensorrt11("abilities")
    found.pop("why_not")
    assert found == {
        "version": "11.4.0.106",
        "flags": {"": 0, "int8": 0, "int8 fp16": 0},
        "takes_types": True,
        "lacks": ["compute_capabilities", "implicit"],
        "command": "trtexec --onnx=model.int8.onnx --saveEngine=model.engine "
        "--profilingVerbosity=detailed --skipInference",
    }


@pytest.mark.parametrize("version", ["tensorrt10", "tensorrt11"])
def test_a_null_builder_is_an_answer(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    answer = request.getfixturevalue(version)("build", folder=str(tmp_path))
    assert answer["error"] == "BuildError"
    assert answer["text"].endswith("gives no builder; see nvidia-smi")
