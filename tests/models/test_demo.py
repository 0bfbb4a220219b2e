"""Tests of the demo that is shipped: its files, and how they are put into a folder."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from trtq import lazy
from trtq.errors import ArtifactError
from trtq.models.demo import write_demo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = ["model.onnx", "calibration.npz", "evaluation.npz", "model.toml"]


def test_four_files_are_written_into_a_new_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    assert write_demo(folder) == [folder / name for name in NAMES]
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_the_arrays_are_what_the_model_wants(tmp_path: Path) -> None:
    write_demo(tmp_path)
    with np.load(tmp_path / "calibration.npz", allow_pickle=False) as archive:
        assert archive.files == ["image"]
        calibration = archive["image"]
    with np.load(tmp_path / "evaluation.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["image", "labels"]
        evaluation, labels = archive["image"], archive["labels"]
    assert (calibration.shape, calibration.dtype) == ((512, 1, 8, 8), np.float32)
    assert (evaluation.shape, evaluation.dtype) == ((600, 1, 8, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((600,), np.int64)
    for image in (calibration, evaluation):
        assert (image.min(), image.max()) == (0.0, 1.0)


def test_no_evaluation_image_is_used_for_calibration(tmp_path: Path) -> None:
    write_demo(tmp_path)
    calibration = np.load(tmp_path / "calibration.npz")["image"]
    evaluation = np.load(tmp_path / "evaluation.npz")["image"]
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in evaluation}


def test_every_class_is_evaluated_alike(tmp_path: Path) -> None:
    write_demo(tmp_path)
    counts = np.bincount(np.load(tmp_path / "evaluation.npz")["labels"])
    assert len(counts) == 10
    assert counts.min() >= 57
    assert counts.max() <= 62


def test_the_model_is_valid_small_and_of_the_promised_parts(tmp_path: Path) -> None:
    write_demo(tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 700_000
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    nodes = model.graph.node
    parts = {"Conv", "Relu", "Clip", "Add", "Concat", "MaxPool", "ReduceMean", "Gemm"}
    assert parts <= {node.op_type for node in nodes}
    groups = [onnx.helper.get_node_attr_value(node, "group") for node in nodes if node.op_type == "Conv"]
    assert max(groups) > 1
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in shape] == ["batch", 1, 8, 8]
    assert ([value.name for value in model.graph.input], model.graph.output[0].name) == (["image"], "logits")


def test_the_model_names_its_nodes_and_no_machine(tmp_path: Path) -> None:
    write_demo(tmp_path)
    model = onnx.load(tmp_path / "model.onnx")
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert {"stem.conv/Conv", "block1/Add", "head/Gemm"} <= set(names)
    data = (tmp_path / "model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert b'File "' not in data


def test_the_model_classifies_the_evaluation_images(tmp_path: Path) -> None:
    write_demo(tmp_path)
    onnxruntime = lazy.require("onnxruntime", None, "running the demo model")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "evaluation.npz") as archive:
        (logits,) = session.run(["logits"], {"image": archive["image"]})
        assert np.mean(logits.argmax(1) == archive["labels"]) >= 0.985


def test_the_settings_name_the_data_and_the_gate(tmp_path: Path) -> None:
    write_demo(tmp_path)
    text = (tmp_path / "model.toml").read_text()
    assert tomllib.loads(text) == {
        "calibration": {"data": "calibration.npz"},
        "evaluation": {"data": "evaluation.npz", "labels": "labels"},
        "accuracy": {"min_cosine": 0.99, "max_drop": 1.0},
    }


def test_identical_files_stay(tmp_path: Path) -> None:
    written = write_demo(tmp_path)
    times = [path.stat().st_mtime_ns for path in written]
    assert write_demo(tmp_path) == written
    assert [path.stat().st_mtime_ns for path in written] == times


def test_another_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("# mine\n")
    with pytest.raises(
        ArtifactError, match=r"model\.toml exists and is not the demo's file; .* another folder"
    ):
        write_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.toml"]
    assert (tmp_path / "model.toml").read_text() == "# mine\n"


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"cannot read .*model\.onnx: Is a directory; .* another folder"):
        write_demo(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        ArtifactError, match=r"cannot make the folder .*demo: Permission denied; give a folder"
    ):
        write_demo(tmp_path / "demo")
