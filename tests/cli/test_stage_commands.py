"""The commands beside `build` as a user runs them: exit code and whole output."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import Result
from command_line import METHOD, trtq

from trtq.calibrators.ranges import read_ranges
from trtq.kept import Fallback
from trtq.pipeline.deliver.report import read_report, to_json
from trtq.pipeline.engine.backends import BACKENDS

FEW = ("--samples", "64")


@pytest.fixture(scope="module")
def folder(demo_build: tuple[Path, Result]) -> Path:
    return demo_build[0]


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    return folder / "model.trtq"


# calibrate, quantize, compare


@pytest.mark.slow
def test_calibrate_writes_the_ranges_of_the_build(
    model: Path, built: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    result = trtq("calibrate", model, "-o", tmp_path / "ranges.json")
    assert result.exit_code == 0
    count = len(read_ranges(built / "ranges.json").tensors)
    assert plain(result.stdout) == (
        f"{count} tensors over 512 samples by {METHOD}\nrepairs: ...; # -> # dB SQNR on 64 held-out "
        f"calibration samples\nwritten to {tmp_path / 'ranges.json'}\n"
    )
    settings = f"note: settings are read from {model.parent / 'model.toml'}\n"
    assert result.stderr == f"{settings}note: raised the opset from 18 to 19\n"
    assert read_ranges(tmp_path / "ranges.json") == read_ranges(built / "ranges.json")


def test_calibrate_prints_the_ranges_alone_as_json_and_nothing_when_quiet(
    model: Path, tmp_path: Path
) -> None:
    arguments = (
        "calibrate",
        model,
        "--calib-method",
        "minmax",
        "--calib-samples",
        "16",
        "-o",
        tmp_path / "r",
    )
    shown = trtq(*arguments, "--json")
    assert shown.exit_code == 0
    assert shown.stdout == (tmp_path / "r").read_text()
    assert json.loads(shown.stdout)["method"] == "minmax()"
    quiet = trtq(*arguments, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_calibrate_finds_out_at_once_that_it_cannot_write(model: Path, tmp_path: Path) -> None:
    result = trtq("calibrate", model, "--calib-data", "none.npz", "-o", tmp_path / "none" / "ranges.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: cannot write {tmp_path / 'none' / 'ranges.json'}: there is no folder {tmp_path / 'none'}; "
        f"make it, or choose another\n"
    )


def test_quantize_writes_the_model_of_the_build(
    model: Path, built: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    result = trtq("quantize", shutil.copy(model, tmp_path), "--ranges", built / "ranges.json")
    assert result.exit_code == 0
    assert plain(result.stdout.replace(str(tmp_path), "PLACE")) == "written to PLACE/model.int8.onnx # kB\n"
    assert onnx.load(tmp_path / "model.int8.onnx") == onnx.load(built / "model.int8.onnx")


def test_quantize_prints_the_path_alone_as_json_and_nothing_when_quiet(
    model: Path, built: Path, tmp_path: Path
) -> None:
    arguments = ("quantize", model, "--ranges", built / "ranges.json", "-o", tmp_path / "q.onnx", "-q")
    shown = trtq(*arguments, "--json")
    size = (tmp_path / "q.onnx").stat().st_size
    assert json.loads(shown.stdout) == {"path": str(tmp_path / "q.onnx"), "bytes": size}
    quiet = trtq(*arguments)
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_quantize_needs_ranges(model: Path, built: Path) -> None:
    assert trtq("quantize", model).exit_code == 2
    result = trtq("quantize", model, "--ranges", built / "none.json")
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"error: cannot read the ranges file {built / 'none.json'}: No such file or directory\n"
    )


def test_compare_prints_accuracy_and_distance(model: Path, built: Path, plain: Callable[[str], str]) -> None:
    result = trtq("compare", model, built / "model.int8.onnx")
    assert result.exit_code == 0
    assert plain(result.stdout) == (
        "accuracy MODEL.ONNX # MODEL.INT8.ONNX # on 600 samples\n"
        "model against output cosine SQNR dB max abs mean abs agree\n"
        "model.int8.onnx model.onnx logits # # # # #\n"
        "on 600 samples of DIR/evaluation.npz\n"
    )
    assert result.stderr == f"note: settings are read from {model.parent / 'model.toml'}\n"


def test_compare_without_labels_takes_any_data(model: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "alone.onnx")
    arguments = ("compare", tmp_path / "alone.onnx", model, "--data", folder / "calibration.npz")
    result = trtq(*arguments, "--samples", "16", "--batch-size", "4")
    assert result.exit_code == 0
    assert "accuracy" not in result.stdout
    assert "exact" in result.stdout
    assert f"on 16 samples of {folder / 'calibration.npz'}\n" in result.stdout


def test_compare_prints_one_document_as_json_and_nothing_when_quiet(model: Path, built: Path) -> None:
    shown = json.loads(trtq("compare", model, built / "model.int8.onnx", *FEW, "--json").stdout)
    assert (shown["verdict"], shown["reasons"], shown["num_samples"]) == ("pass", [], 64)
    assert shown["outputs"][0]["reference"] == "model.onnx"
    same = json.loads(trtq("compare", model, model, *FEW, "--json").stdout)
    assert same["outputs"][0]["sqnr_db"] is None  # infinite, which JSON does not have
    quiet = trtq("compare", model, built / "model.int8.onnx", *FEW, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


def test_compare_has_the_gate_too(model: Path, built: Path) -> None:
    result = trtq("compare", model, built / "model.int8.onnx", *FEW, "-q", "--min-cosine", "1")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.startswith("error: the accuracy gate failed: output 'logits' has cosine ")
    assert "the gate requires 1; worst samples: " in result.stderr


def test_compare_needs_data(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "alone.onnx")
    result = trtq("compare", tmp_path / "alone.onnx", model)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be compared without data; give --data with" in result.stderr


# inspect


def test_inspect_shows_what_a_build_would_do(model: Path, plain: Callable[[str], str]) -> None:
    result = trtq("inspect", model)
    assert (result.exit_code, result.stderr) == (0, "")
    assert plain(result.stdout) == (
        "DIR/model.onnx opset 18 # kB of weights\n"
        "input image float32 (batch, 1, 8, 8)\n"
        "output logits float32 (batch, 10)\n"
        "nodes 10 Conv, 8 Relu, 2 Add, 2 Clip, 1 MaxPool, 1 Concat, 1 ReduceMean, 1 Reshape, 1 Gemm\n"
        "a build quantizes 11 layers and keeps 0 with weights in float\n"
    )
    rows = plain(trtq("inspect", model, "--placement").stdout).splitlines()[5:]
    assert rows[:2] == ["node type decision", "stem.conv/Conv Conv INT8 by weighted-input"]
    assert "block1/Add Add INT8 by residual-add" in rows
    assert len(rows) == 1 + 11 + 2


def test_inspect_tells_what_loading_changes_and_why_layers_stay_float(
    tmp_path: Path, plain: Callable[[str], str]
) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[2,4] a, float[4,4] b) => (float[2,4] y) {
          two = Constant <value = float {2.0}> ()
          [product] p = MatMul (a, b)
          y = Mul (p, two)
        }""")
    onnx.save(model, tmp_path / "m.onnx")
    assert plain(trtq("inspect", tmp_path / "m.onnx", "--placement").stdout) == (
        f"{tmp_path / 'm.onnx'} opset 19 4 bytes of weights\n"
        "input a float32 (2, 4)\n"
        "input b float32 (4, 4)\n"
        "output y float32 (2, 4)\n"
        "nodes 1 MatMul, 1 Mul\n"
        "turned 1 Constant node into initializers\n"
        "a build quantizes 0 layers and keeps 1 with weights in float\n"
        "node type decision\n"
        "product MatMul float: two-activations: TensorRT fuses attention in float; INT8 with "
        "Attention in --op-types\n"
    )


def test_inspect_shows_a_quantized_model(built: Path) -> None:
    lines = trtq("inspect", built / "model.int8.onnx").stdout.splitlines()
    assert lines[-1] == "quantized already: 11 layers with Q/DQ: 11 in INT8"


def test_inspect_shows_a_build_folder_and_its_damage(
    built: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    shown = plain(trtq("inspect", built).stdout)
    assert shown.startswith(
        "model.onnx INT8 + FP16 tensorrt-rtx #\naccuracy FP32 # FP16 # INT8 # on 600 samples\n"
    )
    assert "\nPASS # of the MACs run in INT8\nfiles: as built\n" in shown
    spoilt = shutil.copytree(built, tmp_path / "spoilt")
    (spoilt / "model.int8.onnx").write_bytes(b"")
    assert trtq("inspect", spoilt).stdout.endswith("files: NOT AS BUILT  changed: model.int8.onnx\n")


def test_inspect_shows_ranges_and_cache(built: Path, plain: Callable[[str], str]) -> None:
    ranges = read_ranges(built / "ranges.json")
    lines = plain(trtq("inspect", built / "ranges.json").stdout).splitlines()
    assert lines[0] == f"ranges by {METHOD} over 512 samples of DIR/calibration.npz"
    assert lines[1] == "tensor amax min max"
    assert [line.split()[0] for line in lines[2:]] == list(ranges.tensors)
    lines = plain(trtq("inspect", built / "calibration.cache").stdout).splitlines()
    count = len(ranges.tensors)
    assert lines[0] == f"{count} tensors by EntropyCalibration2 of TensorRT #"
    assert [line.split()[0] for line in lines[2:]] == list(ranges.tensors)


def test_inspect_marks_ranges_of_random_data(model: Path, tmp_path: Path) -> None:
    assert trtq("calibrate", model, "--random-data", "-q", "-o", tmp_path / "r.json").exit_code == 0
    assert "\nfrom random data\n" in trtq("inspect", tmp_path / "r.json").stdout


def test_inspect_prints_one_document_as_json(model: Path, built: Path) -> None:
    for path, key in ((model, "op_types"), (built, "manifest"), (built / "ranges.json", "tensors"),
                      (built / "calibration.cache", "scales")):  # fmt: skip
        result = trtq("inspect", path, "--json")
        assert (result.exit_code, result.stderr) == (0, "")
        assert key in json.loads(result.stdout)


def test_inspect_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    result = trtq("inspect", tmp_path / "none")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: there is no file {tmp_path / 'none'}\n"


# doctor


def test_doctor_shows_machine_backends_and_packages(plain: Callable[[str], str]) -> None:
    result = trtq("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == f"Python {platform.python_version()} on {platform.platform()}"
    assert lines[1].startswith("GPU: ")
    shown = plain(result.stdout)
    assert "backend version works here\ntensorrt " in shown
    assert "\ntensorrt-rtx # yes\nonnxruntime # yes\npackage version\n" in shown
    assert "\ntrtq #\nnumpy #\n" in shown


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtq.pipeline.engine.rtx.importlib.util.find_spec", lambda _: None)
    shown = " ".join(trtq("doctor").stdout.split())
    assert "no: tensorrt_rtx is not installed; pip install 'trtq[rtx]' (builds without a GPU)" in shown


def test_doctor_prints_one_document_as_json() -> None:
    document = json.loads(trtq("doctor", "--json").stdout)
    assert [item["name"] for item in document["backends"]] == list(BACKENDS)
    assert document["packages"]["numpy"] == np.__version__


def test_inspect_of_an_engine_that_discarded_a_type_is_exit_3(built: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(built, tmp_path / "out")
    report = read_report(folder)
    fallen = Fallback("fc", "MatMul", "Half", "no kernel", "fp8")
    weights = Fallback("conv", "Conv", "Half", "dequantized", "int4-weights")
    for fallbacks, exit_code in (((fallen, weights), 3), ((weights,), 0)):
        engine = replace(report.engine, fallbacks=fallbacks)
        (folder / "report.json").write_bytes(to_json(replace(report, engine=engine)))
        result = trtq("inspect", folder)
        assert result.exit_code == exit_code
        told = f"{folder} has 1 layer in another format than asked: 'fc' was asked in FP8 and runs as Half"
        assert (told in result.stderr) is bool(exit_code)
