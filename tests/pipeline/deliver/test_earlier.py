"""Tests of what an earlier build in the same folder has already done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.files import hash_file
from trtq.pipeline.deliver import manifest, report
from trtq.pipeline.deliver.earlier import find_earlier
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import EngineReport, Report
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.sign import sign

_KEYS = {"ranges": "r", "engine": "e", "everything": "x"}
_REPORT = Report(
    schema_version=report.SCHEMA_VERSION,
    verdict="pass",
    reasons=(),
    model="model.onnx",
    output="model.trtq",
    backend="tensorrt-rtx 1.7.1",
    precision="int8",
    high_precision="fp16",
    calibration=None,
    engine=EngineReport("model.engine", 4, 1, {"int8": 1}, (), {}, (), ()),
    comparison=(),
    evaluated_samples=0,
    evaluation_data="",
    accuracy={},
    kept_float=(),
    kept_fp32=(),
    notes=(),
    warnings=(),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.engine").write_bytes(b"plan")
    (tmp_path / REPORT).write_bytes(report.to_json(_REPORT))
    outputs = {path.name: hash_file(path) for path in tmp_path.iterdir()}
    contract = Manifest({"model.onnx": "m"}, outputs, {"trtq": "0.1.0"}, {}, {"conv": "Int8"}, keys=_KEYS)
    (tmp_path / manifest.NAME).write_bytes(manifest.to_json(contract))
    return tmp_path


def test_the_same_keys_are_used_again(folder: Path) -> None:
    earlier = find_earlier(folder, _KEYS)
    assert earlier is not None
    assert earlier.same == {"ranges", "engine", "everything"}
    assert (earlier.folder, earlier.report, earlier.manifest.layers) == (folder, _REPORT, {"conv": "Int8"})


@pytest.mark.parametrize(
    ("keys", "same"),
    [
        ({**_KEYS, "everything": "other"}, {"ranges", "engine"}),
        ({**_KEYS, "everything": "other", "engine": "other"}, {"ranges"}),
        ({**_KEYS, "new stage": "n"}, {"ranges", "engine", "everything"}),
    ],
)
def test_only_what_has_the_same_key_is_used_again(keys: dict[str, str], same: set[str], folder: Path) -> None:
    earlier = find_earlier(folder, keys)
    assert earlier is not None
    assert earlier.same == same


def test_nothing_of_another_build_is_used(folder: Path) -> None:
    assert find_earlier(folder, dict.fromkeys(_KEYS, "other")) is None
    assert find_earlier(folder, {}) is None


def test_no_folder_is_no_earlier_build(tmp_path: Path) -> None:
    assert find_earlier(tmp_path / "absent", _KEYS) is None
    assert find_earlier(tmp_path, _KEYS) is None


@pytest.mark.parametrize("name", ["model.engine", REPORT, manifest.NAME])
@pytest.mark.parametrize("content", [b"PLAN", b"", None])
def test_nothing_of_a_damaged_folder_is_used(name: str, content: bytes | None, folder: Path) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert find_earlier(folder, _KEYS) is None


def test_a_report_that_was_edited_is_not_used(folder: Path) -> None:
    (folder / REPORT).write_bytes(report.to_json(replace(_REPORT, verdict="fail")))
    assert find_earlier(folder, _KEYS) is None


def test_nothing_is_used_by_a_manifest_that_was_edited(folder: Path) -> None:
    content = (folder / manifest.NAME).read_bytes()
    (folder / manifest.NAME).write_bytes(content.replace(b"Int8", b"Half"))
    assert find_earlier(folder, _KEYS) is None


def test_of_a_build_that_is_signed_only_what_the_same_key_has_signed_is_used(
    folder: Path, keys: Callable[[str], Path]
) -> None:
    key, other = read_private_key(keys("private")), read_private_key(keys("other-private"))
    assert find_earlier(folder, _KEYS, key) is None
    sign(folder, keys("private"))
    assert find_earlier(folder, _KEYS, key) is not None
    assert find_earlier(folder, _KEYS, other) is None
    assert find_earlier(folder, _KEYS) is not None


def test_files_of_the_earlier_build_are_copied(folder: Path, tmp_path: Path) -> None:
    earlier = find_earlier(folder, _KEYS)
    assert earlier is not None
    (stage := tmp_path / "stage").mkdir()
    earlier.copy(["model.engine"], stage)
    assert [path.name for path in stage.iterdir()] == ["model.engine"]
    assert (stage / "model.engine").read_bytes() == b"plan"
    assert (folder / "model.engine").read_bytes() == b"plan"
    earlier.copy([], stage)


def test_a_build_whose_tensors_cannot_be_read_is_not_used(folder: Path) -> None:
    (folder / "tensors.json").write_text("{}")
    assert find_earlier(folder, _KEYS) is None
