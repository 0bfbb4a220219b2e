"""Tests of the way of tensors and layers to their file and back."""

from __future__ import annotations

from pathlib import Path

from trtq.pipeline.deliver.html.page_data import NAME, PageData, read_page_data, to_json


def test_what_was_seen_survives(seen: PageData, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(to_json(seen))
    assert read_page_data(tmp_path) == seen


def test_a_folder_without_the_file_has_seen_nothing(tmp_path: Path) -> None:
    assert read_page_data(tmp_path) == PageData()
