"""Build folders for DeepStream's nvinfer."""

from __future__ import annotations

import configparser
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import trtq
from rewritten import rewrite

from trtq.errors import ArtifactError, GateError
from trtq.files import hash_file
from trtq.pipeline.package import deepstream as module
from trtq.pipeline.package.deepstream import package_deepstream

GREY = {"channels": "L", "mean": [0.5], "std": [0.25]}


@pytest.fixture
def folder(demo_onnxruntime: Path, tmp_path: Path) -> Path:
    """A build for ONNX Runtime whose pictures are grey."""
    folder = shutil.copytree(demo_onnxruntime / "model.trtq", tmp_path / "model.trtq")
    rewrite(folder, "manifest.json", lambda it: it["settings"]["model"].update(preprocess=GREY))
    return folder


def give_engine(folder: Path, backend: str) -> None:
    (folder / "model.engine").write_bytes(b"plan")
    digest = hash_file(folder / "model.engine")

    def change(report: dict[str, Any]) -> None:
        report["backend"] = backend
        report["engine"] |= {"path": "model.engine", "targets": ["8.9"]}

    rewrite(folder, "report.json", change)
    rewrite(folder, "manifest.json", lambda it: it["outputs"].update({"model.engine": digest}))


def read(target: Path) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(target / "config_infer_primary.txt")
    return dict(parser["property"])


def test_a_model_is_written_with_its_ranges(folder: Path, tmp_path: Path) -> None:
    done = package_deepstream(folder, tmp_path / "ds")
    assert done.files == ("model.int8.onnx", "calibration.cache", "config_infer_primary.txt")
    assert {path.name for path in (tmp_path / "ds").iterdir()} == {*done.files}
    assert read(tmp_path / "ds") == {
        "onnx-file": "model.int8.onnx",
        "int8-calib-file": "calibration.cache",
        "batch-size": "8",
        "network-mode": "1",
        "net-scale-factor": "0.0156862745",  # 1 / 255 / 0.25
        "offsets": "127.5",
        "model-color-format": "2",
        "infer-dims": "1;8;8",
        "network-input-order": "0",
        "maintain-aspect-ratio": "0",
        "symmetric-padding": "0",
        "scaling-filter": "1",
        "output-blob-names": "logits",
        "network-type": "1",
        "classifier-threshold": "0",
        "gie-unique-id": "1",
        "process-mode": "1",
    }
    assert any("nvinfer builds an engine from model.int8.onnx when it starts" in note for note in done.notes)


def test_an_engine_of_tensorrt_is_named_alone(folder: Path, tmp_path: Path) -> None:
    give_engine(folder, "tensorrt 10.9.0")
    done = package_deepstream(folder, tmp_path / "ds")
    found = read(tmp_path / "ds")
    assert (found["model-engine-file"], "onnx-file" in found) == ("model.engine", False)
    assert (tmp_path / "ds/model.engine").read_bytes() == b"plan"
    assert "the engine needs tensorrt 10.9.0 in DeepStream, and a GPU of compute capability 8.9" in done.notes


def test_an_engine_of_tensorrt_rtx_is_left_out(folder: Path, tmp_path: Path) -> None:
    give_engine(folder, "tensorrt-rtx 1.7.1")
    package_deepstream(folder, tmp_path / "ds")
    assert read(tmp_path / "ds")["onnx-file"] == "model.int8.onnx"


def test_formats_that_nvinfer_does_not_build_are_refused(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "manifest.json", lambda manifest: manifest["outputs"].pop("calibration.cache"))
    (folder / "calibration.cache").unlink()
    with pytest.raises(
        ArtifactError, match="of a build in INT8 nvinfer builds none in that format; build with"
    ):
        package_deepstream(folder, tmp_path / "ds")
    assert not (tmp_path / "ds").exists()


def test_outputs_without_labels_are_left_to_the_application(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "report.json", lambda report: report.update(accuracy={}))
    package_deepstream(folder, tmp_path / "ds")
    found = read(tmp_path / "ds")
    assert (found["network-type"], found["output-tensor-meta"]) == ("100", "1")


def test_labels_come_along(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "names.txt"
    labels.write_text("\n".join(f"digit {number}" for number in range(10)) + "\n")
    package_deepstream(folder, tmp_path / "ds", labels=labels)
    assert read(tmp_path / "ds")["labelfile-path"] == "labels.txt"
    assert (tmp_path / "ds/labels.txt").read_text() == ";".join(
        f"digit {number}" for number in range(10)
    ) + "\n"
    rewrite(folder, "report.json", lambda report: report.update(metric="mean"))
    package_deepstream(folder, tmp_path / "ds", labels=labels)
    assert (tmp_path / "ds/labels.txt").read_text() == labels.read_text()
    rewrite(folder, "report.json", lambda report: report.update(metric="top-1"))
    labels.write_text("one\ntwo\n")
    with pytest.raises(ArtifactError, match="there are 2 labels for the 10 classes of 'logits'"):
        package_deepstream(folder, tmp_path / "ds", labels=labels)
    for text in ("", "a;b\n"):
        labels.write_text(text)
        with pytest.raises(
            ArtifactError, match="must hold the names of the classes, one per line, without ';'"
        ):
            package_deepstream(folder, tmp_path / "ds", labels=labels)
    with pytest.raises(ArtifactError, match="cannot read the labels"):
        package_deepstream(folder, tmp_path / "ds", labels=tmp_path / "none")


def test_a_build_that_failed_its_gate_needs_a_word(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "report.json", lambda report: report.update(verdict="fail", reasons=["worse"]))
    with pytest.raises(GateError, match="--ignore-gate packages it all the same"):
        package_deepstream(folder, tmp_path / "ds")
    assert "the build is fail" in package_deepstream(folder, tmp_path / "ds", ignore_gate=True).notes


def test_a_model_with_two_inputs_is_refused(
    folder: Path, path_of: Callable[..., Path], tmp_path: Path
) -> None:
    text = "g (float[N,1,8,8] a, float[N,1,8,8] b) => (float[N,1,8,8] y) { y = Add (a, b) }"
    shutil.copy(path_of(text), folder / "model.int8.onnx")
    digest = hash_file(folder / "model.int8.onnx")
    rewrite(folder, "manifest.json", lambda it: it["outputs"].update({"model.int8.onnx": digest}))
    with pytest.raises(ArtifactError, match="has the inputs 'a', 'b'; nvinfer feeds one, with images"):
        package_deepstream(folder, tmp_path / "ds")


def test_a_copy_that_is_damaged_is_seen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "hash_file", lambda path: "other")
    with pytest.raises(ArtifactError, match=r"the copy of .* is damaged; look at the disk"):
        package_deepstream(folder, tmp_path / "ds")


def test_a_place_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match=r"cannot write to .*file"):
        package_deepstream(folder, tmp_path / "file")


def test_the_command_writes_what_it_says(folder: Path, tmp_path: Path) -> None:
    result = trtq("package", folder, "--deepstream", tmp_path / "ds")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"wrote {tmp_path / 'ds/model.int8.onnx'}\n")
    assert "note: image preprocessing: L, size of the model" in result.stdout
    assert '"files"' in trtq("package", folder, "--deepstream", tmp_path / "ds", "--json").stdout
    assert trtq("package", folder, "--deepstream", tmp_path / "ds", "-q").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of --triton and --deepstream"),
        (("--triton", "a", "--deepstream", "b"), "give one of --triton and --deepstream"),
        (("--deepstream", "b", "--max-batch", "4"), "--max-batch is for --triton"),
        (("--triton", "a", "--label-file", "b"), "--label-file is for --deepstream"),
    ],
)
def test_options_of_the_other_server_are_refused(
    arguments: tuple[str, ...], words: str, folder: Path
) -> None:
    result = trtq("package", folder, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
