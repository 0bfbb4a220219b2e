"""Tests of the way of tensors and layers to their file and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.html.page_data import NAME, PageData, read_page_data, to_json


def test_what_was_seen_survives(seen: PageData, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(to_json(seen))
    assert read_page_data(tmp_path) == seen


def test_a_folder_without_the_file_has_seen_nothing(tmp_path: Path) -> None:
    assert read_page_data(tmp_path) == PageData()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "does not hold tensors: Expecting"),
        (b"[]", "does not hold tensors of schema version 1; use the trtq that wrote it"),
        (b'{"kind": "tensors", "schema_version": 2}', "does not hold tensors of schema version 1"),
        (b'{"kind": "tensors", "schema_version": 1}', r"is not complete: KeyError\('tensors'\); build again"),
    ],
)
def test_another_file_is_told(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(ArtifactError, match=told):
        read_page_data(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("name", 3), ("counts", [1, "<b>"]), ("width", "0.5")])
def test_a_value_of_another_kind_is_told(key: str, value: object, seen: PageData, tmp_path: Path) -> None:
    document = json.loads(to_json(seen))
    document["tensors"][0][key] = value
    (tmp_path / NAME).write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"is not complete: TypeError\(.* is no (str|int|float)"):
        read_page_data(tmp_path)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with pytest.raises(ArtifactError, match=rf"cannot read .*{NAME}: Is a directory"):
        read_page_data(tmp_path)
