"""Tests of the contract of a build folder."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.errors import ArtifactError
from trtq.models.spec import ModelSpec
from trtq.pipeline.deliver.manifest import NAME, Manifest, collect_versions, make_key, read_manifest, to_json
from trtq.pipeline.engine.target import Target

_CONTENTS = {"model.engine": b"plan", "report.json": b"{}"}
_MANIFEST = Manifest(
    inputs={"größe/model.onnx": "aa"},
    outputs={name: hashlib.sha256(content).hexdigest() for name, content in _CONTENTS.items()},
    versions={"trtq": "0.1.0"},
    settings={"model": asdict(ModelSpec()), "target": asdict(Target()), "path": Path("a/b")},
    layers={"conv": "Int8"},
    keys={"engine": "bb"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in _CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / NAME).write_bytes(to_json(_MANIFEST))
    return tmp_path


def _edit(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / NAME).read_bytes())
    (folder / NAME).write_text(json.dumps({**document, **changes}))


def test_a_manifest_survives_being_written_and_read(folder: Path) -> None:
    read = read_manifest(folder)
    assert replace(read, settings=_MANIFEST.settings) == _MANIFEST
    assert read.settings["path"] == "a/b"
    assert read.settings["model"]["calibration"]["method"] == "auto"
    assert read.settings["target"]["op_types"] == list(Target().op_types)


def test_the_json_is_one_that_says_what_it_is() -> None:
    document = json.loads(to_json(_MANIFEST))
    assert (document["schema_version"], document["kind"]) == (1, "trtq build")
    assert to_json(_MANIFEST).endswith(b"}\n")


def test_a_folder_without_a_manifest_is_no_build_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=rf"^{tmp_path} is not a build folder: cannot read .*manifest\.json: No such file"
    ):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"plan", b"\xff\xfe\x00", b'{"kind": "trtq build"'])
def test_broken_json_is_told(content: bytes, folder: Path) -> None:
    (folder / NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not a manifest of trtq: ."):
        read_manifest(folder)


def test_the_versions_are_those_of_what_takes_part() -> None:
    found = collect_versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == np.__version__
    assert found["trtq"]


def test_a_key_is_the_same_for_the_same_values() -> None:
    assert make_key("a", {"x": 1, "y": 2}, (1, 2.5), None) == make_key("a", {"y": 2, "x": 1}, [1, 2.5], None)
    assert make_key(ModelSpec(), Target()) == make_key(ModelSpec(), Target())
    assert len(make_key()) == 64


@pytest.mark.parametrize(
    "other",
    [
        ("a", "b", Target(precision="fp16")),
        ("b", "a", Target()),
        ("ab", "", Target()),
        (Target(), "a", "b"),
        ("a", "b"),
    ],
)
def test_a_key_is_another_for_other_values(other: tuple[object, ...]) -> None:
    assert make_key(*other) != make_key("a", "b", Target())


def test_a_key_takes_values_that_json_does_not_have() -> None:
    assert make_key(Path("a")) == make_key("a")
    values: Mapping[str, object] = {"nan": float("nan"), "path": Path("b")}
    assert make_key(values) == make_key(values)
