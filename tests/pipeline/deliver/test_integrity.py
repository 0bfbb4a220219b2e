"""Tests of re-hashing a build folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.errors import ArtifactError
from trtq.files import hash_file
from trtq.pipeline.deliver.folder import stage_folder
from trtq.pipeline.deliver.integrity import (
    Integrity,
    read_intact_manifest,
    read_whole_manifest,
    refuse_changed,
)
from trtq.pipeline.deliver.manifest import NAME, SIGNATURE, Manifest, is_whole, to_json
from trtq.pipeline.sign import sign
from trtq.pipeline.verify import verify

_CONTENTS = {
    "model.engine": bytes(range(256)) * 9,
    "report.json": b"{}",
    "empty": b"",
    "part/weights": b"1234",
}


def write_build(folder: Path, keys: Callable[[str], Path] | None = None) -> Path:
    for name, content in _CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    outputs = {name: hashlib.sha256(content).hexdigest() for name, content in _CONTENTS.items()}
    contract = Manifest(
        {"größe.onnx": "aa"}, outputs, {"trtq": "0.1.0"}, {"path": Path("a")}, {"conv": "Int8"}
    )
    (folder / NAME).write_bytes(to_json(contract))
    if keys is not None:
        sign(folder, keys("private"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_build(tmp_path / "built")


def test_an_untouched_folder_is_intact(folder: Path) -> None:
    size = sum(map(len, _CONTENTS.values())) + (folder / NAME).stat().st_size
    assert verify(folder) == Integrity(str(folder), 5, size, (), (), (), "none")
    assert verify(folder).is_intact
    assert verify(str(folder)).problems == ""


def test_every_kind_of_difference_is_named(folder: Path) -> None:
    (folder / "model.engine").write_bytes(b"another")
    (folder / "empty").unlink()
    (folder / "libplugin.so").write_bytes(b"")
    (folder / "part" / "more").mkdir()
    found = verify(folder)
    assert found.changed == ("model.engine",)
    assert found.missing == ("empty",)
    assert found.unknown == ("libplugin.so", "part/more")
    assert not found.is_intact
    assert found.problems == "changed: model.engine; missing: empty; unknown: libplugin.so, part/more"


def test_many_problems_are_counted(folder: Path) -> None:
    for name in "abcdef":
        (folder / name).write_bytes(b"")
    assert verify(folder).problems == "unknown: a, b, c, d and 2 more"
    assert len(verify(folder).unknown) == 6


def test_a_folder_in_the_place_of_a_file_is_a_change(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert verify(folder).changed == ("empty",)


def test_a_link_to_the_same_content_is_taken_and_one_to_nothing_is_missing(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "report.json").rename(tmp_path / "elsewhere")
    (folder / "report.json").symlink_to(tmp_path / "elsewhere")
    assert verify(folder).is_intact
    (tmp_path / "elsewhere").unlink()
    assert verify(folder).missing == ("report.json",)


def test_a_digest_that_is_none_takes_no_folder_for_a_file(folder: Path) -> None:
    document = json.loads((folder / NAME).read_bytes())
    document["outputs"]["empty"] = ""
    (folder / NAME).write_text(json.dumps(document))
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert verify(folder).changed == ("empty", NAME)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/../../b", "", ".", "a\0b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(name: str, folder: Path) -> None:
    document = json.loads((folder / NAME).read_bytes())
    document["outputs"][name] = "aa"
    (folder / NAME).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"manifest\.json names '.*', which is not a file of its folder"):
        verify(folder)


def test_a_file_that_cannot_be_read_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("trtq.pipeline.deliver.integrity.hash_file", refuse)
    with pytest.raises(ArtifactError, match=r"^cannot read .*model\.engine: Permission denied$"):
        verify(folder)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a build folder: cannot read"):
        verify(tmp_path)


def test_a_manifest_of_a_newer_trtq_is_refused(folder: Path) -> None:
    document = json.loads((folder / NAME).read_bytes())
    (folder / NAME).write_text(json.dumps({**document, "schema_version": 99}))
    with pytest.raises(ArtifactError, match=r"has schema version 99, this trtq reads 1; use the trtq that"):
        verify(folder)


def test_a_manifest_knows_its_own_digest(folder: Path) -> None:
    content = (folder / NAME).read_bytes()
    assert is_whole(content)
    rest = content.replace(content.splitlines(keepends=True)[1], b"", 1)
    assert json.loads(content)["sha256"] == hashlib.sha256(rest).hexdigest()
    assert not is_whole(rest)
    assert not is_whole(content + b"\n")
    assert not is_whole(b"")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_build(tmp_path_factory.mktemp("shared"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_is_found(shared: Path, data: st.DataObject) -> None:
    names = [name for name in (*_CONTENTS, NAME) if name != "empty"]
    path = shared / data.draw(st.sampled_from(names))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        found = verify(shared)
    except ArtifactError:
        assert path.name == NAME  # it is no manifest any more
    else:
        assert path.relative_to(shared).as_posix() in found.changed
    finally:
        path.write_bytes(content)
    assert verify(shared).is_intact


def test_a_manifest_that_was_changed_is_refused(folder: Path) -> None:
    assert read_whole_manifest(folder).layers == {"conv": "Int8"}
    (folder / "model.engine").write_bytes(b"another")  # is not looked at
    assert read_whole_manifest(folder).layers == {"conv": "Int8"}
    (folder / NAME).write_bytes((folder / NAME).read_bytes().replace(b"Int8", b"Half"))
    with pytest.raises(
        ArtifactError,
        match=r"manifest\.json is not the file that was written: its own SHA-256 does not match",
    ):
        read_whole_manifest(folder)
    with pytest.raises(
        ArtifactError, match=r"is not what was built: changed: model\.engine, manifest\.json; bu"
    ):
        read_intact_manifest(folder)


def test_a_folder_with_a_change_anywhere_is_refused(folder: Path) -> None:
    assert read_intact_manifest(folder) == read_whole_manifest(folder)
    (folder / "plugin.so").touch()
    with pytest.raises(ArtifactError, match=r"is not what was built: unknown: plugin\.so; build again$"):
        read_intact_manifest(folder)


@pytest.mark.parametrize("content", [b"PLAN", b"", None])
def test_a_file_that_was_changed_is_refused(content: bytes | None, folder: Path) -> None:
    manifest = read_whole_manifest(folder)
    (folder / "model.engine").unlink()
    if content is not None:
        (folder / "model.engine").write_bytes(content)
    refuse_changed(folder, manifest, "report.json", "part/weights")
    with pytest.raises(
        ArtifactError, match=r"model\.engine is not the file that was built: its SHA-256 does not"
    ):
        refuse_changed(folder, manifest, "report.json", "model.engine")


def test_a_file_that_the_manifest_does_not_know_is_refused(folder: Path) -> None:
    (folder / "other").touch()
    with pytest.raises(ArtifactError, match="other is not the file that was built"):
        refuse_changed(folder, read_whole_manifest(folder), "other")


def test_a_large_file_is_hashed_whole(tmp_path: Path) -> None:
    content = bytes(range(251)) * 20_000  # several blocks, the last one not full
    (tmp_path / "large").write_bytes(content)
    assert hash_file(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_a_build_over_a_signed_folder_takes_the_signature_for_its_own(
    tmp_path: Path, keys: Callable[[str], Path]
) -> None:
    target = write_build(tmp_path / "built", keys)
    shutil.rmtree(target / "part")
    with stage_folder(target) as stage:
        (stage / NAME).write_text("new")
    assert not (target / SIGNATURE).exists()
