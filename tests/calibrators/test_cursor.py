"""Tests of feeds that are found by their number."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.cursor import FeedCursor
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.signature import TensorSpec


def _stream(asked: list[int], broken: int = -1) -> Batches:
    def read() -> Iterator[Feed]:
        for index in range(5):
            asked.append(index)
            if index == broken:
                raise DataError("the data is damaged")
            yield Feed({}, f"feed {index}", 1)

    return Batches(read, "made", 5)


def _source(feed: Feed | None) -> str | None:
    return None if feed is None else feed.source


def test_feeds_are_found_and_none_is_read_twice_where_the_numbers_rise() -> None:
    asked: list[int] = []
    cursor = FeedCursor(_stream(asked))
    assert [_source(cursor.find(index)) for index in (0, 2, 4, 5, 9)] == [
        "feed 0",
        "feed 2",
        "feed 4",
        None,
        None,
    ]
    assert asked == [0, 1, 2, 3, 4]
    assert _source(cursor.find(1)) == "feed 1"


def test_damage_is_told_of_every_feed_behind_it() -> None:
    cursor = FeedCursor(_stream([], broken=2))
    for index in (3, 4):
        with pytest.raises(DataError, match="the data is damaged"):
            cursor.find(index)
    assert _source(cursor.find(1)) == "feed 1"


def test_a_part_is_found_without_the_others() -> None:
    asked: list[tuple[int, int]] = []
    whole = _stream([])

    def part(start: int, step: int) -> Iterator[Feed]:
        asked.append((start, step))
        return islice(whole.read(), start, None, step)

    cursor = FeedCursor(replace(whole, part=part))
    assert [_source(cursor.find(index)) for index in (3, 7)] == ["feed 3", None]
    assert [start for start, _ in asked] == [3, 7]


def test_other_data_under_the_same_name_is_refused(tmp_path: Path) -> None:
    path, again = tmp_path / "x.npz", [TensorSpec("x", "float32", ("N", 2))]
    np.savez(path, x=np.ones((4, 2), np.float32))
    content = pickle.dumps(FeedCursor(open_batches(str(path), again, 2)))
    assert _source(pickle.loads(content).find(1)) == f"{path} (samples 2 to 3)"
    np.savez(path, x=np.zeros((4, 2), np.float32))
    words = r"x\.npz is other data where a worker reads it than here; give data that all workers see under"
    changed = pickle.dumps(FeedCursor(open_batches(str(path), again, 2)))
    np.savez(path, x=np.full((4, 2), 2, np.float32))
    with pytest.raises(DataError, match=words):
        pickle.loads(changed).find(0)
