"""The options of the builder on the command line: what is refused, by whom, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import trtq
from host_memory import HostMemory

from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.tensorrt import TensorRt

RTX, CPU = ["--backend", "tensorrt-rtx"], ["--backend", "onnxruntime"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            [*RTX, "--quantization", "implicit"],
            "backend tensorrt-rtx has no implicit quantization: it takes Q/DQ models only; for implicit "
            "quantization take TensorRT 8.6 to 10",
        ),
        (
            [*CPU, "--quantization", "implicit"],
            "backend onnxruntime has no implicit quantization: it takes Q/DQ models; for implicit "
            "quantization take TensorRT 8.6 to 10",
        ),
        (
            [*RTX, "--quantization", "implicit", "--fp16"],
            "--quantization implicit makes INT8 engines, no fp16 one",
        ),
        (
            [*RTX, "--timing-cache", "t.cache"],
            "backend tensorrt-rtx has no --timing-cache: it times nothing: kernels are chosen where the "
            "engine is loaded",
        ),
        (
            [*RTX, "--hardware-compatibility", "ampere+"],
            "backend tensorrt-rtx has no --hardware-compatibility: name the GPUs with --compute-capability",
        ),
        (
            [*RTX, "--version-compatible"],
            "backend tensorrt-rtx has no --version-compatible: it has no lean runtime",
        ),
        (
            [*CPU, "--builder-optimization-level", "5"],
            "backend onnxruntime has no --builder-optimization-level: it builds nothing",
        ),
        ([*CPU, "--timing-cache", "/absent/t"], "there is no folder /absent for the timing cache"),
    ],
)
def test_what_a_backend_lacks_is_exit_2(arguments: list[str], told: str, model: Path) -> None:
    result = trtq("build", model, "-q", *arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {told}\n")
    assert not (model.parent / "model.trtq").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--quantization", "qdq"], "'qdq' is not one of 'auto', 'explicit', 'implicit'"),
        (["--builder-optimization-level", "6"], "6 is not in the range 0<=x<=5"),
        (
            ["--hardware-compatibility", "all"],
            "'all' is not one of 'none', 'ampere+', 'same-compute-capability'",
        ),
        (["--timing-cache", "/"], "is a directory"),
    ],
)
def test_values_that_do_not_exist_are_exit_2(arguments: list[str], told: str, model: Path) -> None:
    result = trtq("build", model, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.replace("│", "").split())


def test_tensorrt_that_is_not_here_is_exit_5(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": TensorRt("tensorrt_absent")}
    )
    result = trtq("build", model, "--backend", "tensorrt", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (
        5,
        "",
        "error: backend tensorrt: tensorrt_absent is not installed; install TensorRT 8.6 to 11, or use "
        "NVIDIA's container\n",
    )


@pytest.fixture
def tensorrt10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the recording double in the place of TensorRT; its engines are not run."""
    (tmp_path / "tensorrt_10.py").write_text(
        "import recording_tensorrt\nglobals().update(recording_tensorrt.names_of('10.16.1.11'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backend = TensorRt("tensorrt_10", HostMemory)
    monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": backend})
    monkeypatch.setattr("trtq.pipeline.engine.tensorrt.explain_missing_gpu", lambda: "")
    monkeypatch.setattr(TensorRt, "runner", lambda *_: None)


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest


def test_an_implicit_build_is_told_as_such(model: Path, tmp_path: Path, tensorrt10: None) -> None:
    arguments = (
        "build",
        model,
        "--backend",
        "tensorrt",
        "--quantization",
        "implicit",
        "-o",
        tmp_path / "out",
    )
    result = trtq(*arguments, "-v")
    assert result.exit_code == 0
    shown = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert any(line.endswith("11 of 11 implicitly quantized layers run in INT8") for line in shown)
    assert "calibrated on 128 samples by TensorRT's own EntropyCalibration2" in shown
    assert "implicit quantization: as asked; TensorRT 11 no longer has it" in shown
    assert "note: TensorRT's own EntropyCalibration2 runs over the data\n" in result.stderr
    assert _manifest(tmp_path / "out")["commands"]["engine"].startswith("trtexec --onnx=model.float.onnx ")


def test_the_options_reach_the_engine(model: Path, tmp_path: Path, tensorrt10: None) -> None:
    result = trtq(
        "build", model, "--backend", "tensorrt", "-o", tmp_path / "out", "-q", "--version-compatible",
        "--timing-cache", tmp_path / "t.cache", "--builder-optimization-level", "1",
        "--hardware-compatibility", "same-compute-capability",
    )  # fmt: skip
    assert (result.exit_code, result.stderr) == (0, "")
    plan = json.loads((tmp_path / "out" / "model.engine").read_bytes())
    assert (plan["flags"], plan["optimization_level"]) == (["VERSION_COMPATIBLE"], 1)
    assert plan["hardware_compatibility"] == "SAME_COMPUTE_CAPABILITY"
    assert (tmp_path / "t.cache").read_bytes().startswith(b"timings|")
    command = _manifest(tmp_path / "out")["commands"]["engine"]
    assert f"--timingCacheFile={tmp_path / 't.cache'}" in command


def test_a_foreign_timing_cache_is_exit_2_and_nothing_is_written(
    model: Path, tmp_path: Path, tensorrt10: None
) -> None:
    (tmp_path / "t.cache").write_bytes(b"something else")
    arguments = (
        "--backend", "tensorrt", "-q", "-o", tmp_path / "out", "--timing-cache", tmp_path / "t.cache",
    )  # fmt: skip
    result = trtq("build", model, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: {tmp_path / 't.cache'} is not a timing cache of TensorRT 10.16.1.11 on this GPU; "
        "give another file with --timing-cache\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["build", "migrate"])
def test_the_help_tells_of_the_builder_s_options(command: str) -> None:
    shown = " ".join(trtq(command, "--help").stdout.split())
    for option in ("--timing-cache", "--builder-optimization-level", "--hardware-compatibility"):
        assert option in shown
    assert ("--quantization [auto|explicit|implicit]" in shown) == (command == "build")
