"""`trtq migrate` as a user runs it: exit code and output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import Result
from command_line import lines_of, trtq

from trtq.cli.migrate import command
from trtq.errors import ArtifactError, GateError
from trtq.pipeline.deliver.report import read_report

SCALES = [
    "image", "stem.act/Relu_output_0", "block1.first.act/Relu_output_0", "pool/MaxPool_output_0",
    "branches.wide.depthwise.act/Clip_output_0", "branches/Concat_output_0", "block2.first.act/Relu_output_0",
    "block2.act/Relu_output_0", "mix.depthwise.act/Clip_output_0", "gap/ReduceMean_output_0",
]  # fmt: skip
TAIL = (
    "block1/Add_output_0: 3d000000\n(Unnamed Layer* 8) [Constant]_output: 39137939\nhead.weight: 3c000000\n"
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A cache with a range of 8 for each tensor, as Entropy2 might have written it for the demo."""
    lines = "".join(f"{name}: {'3d810204' if name != 'image' else '3c010204'}\n" for name in SCALES)
    path = tmp_path / "old.cache"
    path.write_text(f"TRT-8601-EntropyCalibration2\n{lines}{TAIL}")
    return path


def migrate(*arguments: str | Path) -> Result:
    return trtq(*arguments, "--backend", "onnxruntime", command=command)


def test_a_cache_is_migrated(model: Path, old: Path, tmp_path: Path) -> None:
    result = migrate(model, old, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = lines_of(result.stdout)
    assert lines[:4] == [
        "10 scales taken from 13 of EntropyCalibration2 of TensorRT 8.6.1, exactly",
        "keys of tensors that no quantized layer reads: 1 (-v lists them)",
        "keys that are not tensors of the model: 2 (-v lists them)",
        f"model.onnx INT8 + FP32 {read_report(tmp_path / 'out' / 'report.json').backend}",
    ]
    assert lines[-4:-1] == [
        f"written to {tmp_path / 'out'}",
        "PASS, but only 0.0% of the MACs run in INT8",
        f"open {tmp_path / 'out' / 'report.html'}",
    ]
    assert lines[-1].startswith(f"run trtq run {tmp_path / 'out'} --data ")
    assert (
        "note: no tensor of the model for 2 keys of the cache: '(Unnamed Layer* 8) [Constant]_output', "
        "'head.weight'\n"
    ) in result.stderr


def test_every_key_is_named_with_v(model: Path, old: Path, tmp_path: Path) -> None:
    text = old.read_text()
    old.write_text(text.replace("gap/ReduceMean_output_0: 3d810204\n", ""))
    lines = lines_of(migrate(model, old, "-o", tmp_path / "out", "-v").stdout)
    assert lines[0] == "9 scales taken from 12 of EntropyCalibration2 of TensorRT 8.6.1, exactly"
    assert "image image 0.00787402 name" in lines
    start = lines.index("tensors without a scale: 1")
    assert lines[start : start + 7] == [
        "tensors without a scale: 1",
        "flatten/Reshape_output_0: the cache has no scale for 'flatten/Reshape_output_0'; left as they are: "
        "head/Gemm",
        "keys of tensors that no quantized layer reads: 1",
        "block1/Add_output_0",
        "keys that are not tensors of the model: 2",
        "(Unnamed Layer* 8) [Constant]_output: a tensor that TensorRT made itself",
        "head.weight: a constant",
    ]


def test_rounded_scales_are_told(model: Path, old: Path, tmp_path: Path) -> None:
    first = migrate(model, old, "-o", tmp_path / "out", "--high-precision", "fp16").stdout.splitlines()[0]
    assert re.fullmatch(
        r"10 scales taken from 13 of EntropyCalibration2 of TensorRT 8\.6\.1, 10 of them rounded up, by at "
        r"most 0\.0\d%",
        first,
    )


def test_the_result_is_json(model: Path, old: Path, tmp_path: Path) -> None:
    result = migrate(model, old, "-o", tmp_path / "out", "--json")
    document = json.loads(result.stdout)
    assert document["report"] == json.loads((tmp_path / "out" / "report.json").read_bytes())
    assert document["migration"] == json.loads((tmp_path / "out" / "migration.json").read_bytes())
    assert document["migration"]["mapped"][-1] == {
        "tensor": "flatten/Reshape_output_0",
        "key": "gap/ReduceMean_output_0",
        "scale": 0.06299212574958801,
        "how": "same scale",
    }


def test_quiet_says_nothing(model: Path, old: Path, tmp_path: Path) -> None:
    result = migrate(model, old, "-o", tmp_path / "out", "-q")
    assert (result.exit_code, result.output) == (0, "")


def test_the_gate_ends_the_command(model: Path, old: Path, tmp_path: Path) -> None:
    old.write_text(old.read_text().replace("3d810204", "3a000000"))
    result = migrate(model, old, "-o", tmp_path / "out")
    assert isinstance(result.exception, GateError)
    assert str(result.exception).startswith(
        "the accuracy gate failed: output 'logits' of engine is the same for all samples, where that of fp32 "
        "differs; accuracy falls from "
    )
    assert lines_of(result.stdout)[-1] == "FAIL"


def test_the_cache_of_another_model_is_refused(model: Path, old: Path, tmp_path: Path) -> None:
    old.write_text("TRT-8601-EntropyCalibration2\nimages: 3c010204\noutput0: 40b7daf4\n")
    result = migrate(model, old, "-o", tmp_path / "out")
    assert isinstance(result.exception, ArtifactError)
    assert result.exception.exit_code == 2
    assert str(result.exception).startswith(
        f"{old} is a cache for another model: it has scales for 'images', 'output0', "
        f"the tensors of {model} are "
    )
    assert not (tmp_path / "out").exists()


def whole(*arguments: str | Path) -> Result:
    """Runs it as a user does, errors and exit codes included."""
    return trtq("migrate", *arguments)


_OLD = """\
import tensorrt as trt

config.set_flag(trt.BuilderFlag.INT8)
if hasattr(trt, "IInt8EntropyCalibrator2"):
    base = trt.IInt8EntropyCalibrator2
"""


def test_a_script_is_checked_for_what_tensorrt_11_removed(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text(_OLD)
    result = whole("--check", tmp_path / "old.py")
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert re.search(r"old\.py:3:\d+: BuilderFlag.INT8, removed in 11\.0$", lines[0])
    assert lines[1] == "    config.set_flag(trt.BuilderFlag.INT8)"
    assert any(line.endswith("IInt8EntropyCalibrator2, removed in 11.0 (guarded)") for line in lines)
    assert "1 use of what TensorRT 11 no longer has in" in result.stderr
    found = json.loads(whole("--check", tmp_path / "old.py", "--json").stdout)
    assert {item["name"] for item in found} >= {"BuilderFlag.INT8"}


def test_a_folder_without_old_calls_is_told(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "import tensorrt as trt\n\nnetwork = trt.Builder(log).create_network(0)\n"
    )
    (tmp_path / "note.ipynb").write_text("{}")
    result = whole("--check", tmp_path, "-v")
    assert result.exit_code == 0
    assert "nothing that TensorRT 11 removed" in result.stdout
    assert whole("--check", tmp_path, "-q").stdout == ""


def test_a_model_without_its_cache_is_refused(tmp_path: Path) -> None:
    result = whole(tmp_path / "model.onnx")
    assert result.exit_code == 2
    assert "give a model and its calibration cache, or --check" in result.stderr
