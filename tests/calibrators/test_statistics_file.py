"""Tests of statistics as files, and of merging them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.calibrators import statistics_file
from trtq.calibrators.statistics import Histogram, Source, Statistics
from trtq.calibrators.statistics_file import (
    merge_statistics,
    read_statistics,
    refuse_other,
    statistics_to_bytes,
)
from trtq.errors import ArtifactError

VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20)
WHOLE = Source("a" * 64, "calib.npz", "d" * 64)


def _part(shard: int = 1, of: int = 1, **values: Any) -> Statistics:
    histograms = {
        name: Histogram().with_values(np.array(array, np.float32)) for name, array in values.items()
    }
    magnitudes = {"hidden": 3.5 * shard, f"only {shard}": 1.0}
    inputs: dict[str, dict[tuple[int, ...], int]] = {"x": {(shard, 3): 2, (9, 3): 1}}
    source = replace(WHOLE, num_shards=of)
    return Statistics(histograms, magnitudes, inputs, 10 * shard, source, frozenset({shard}))


def _written(statistics: Statistics, path: Path) -> Path:
    path.write_bytes(statistics_to_bytes(statistics))
    return path


@pytest.mark.parametrize(
    "statistics",
    [
        _part(a=[1.0, -2.5, 0.0], b=[], c=[3e38]),
        _part(2, 3, a=[1.0]),
        replace(_part(a=[1.0]), feeds={"a": 7}),
        _part(),
        Statistics({}, {}, {}, 0),
    ],
)
def test_what_is_read_is_what_was_written(statistics: Statistics, tmp_path: Path) -> None:
    assert read_statistics(_written(statistics, tmp_path / "s.npz")) == statistics


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=5), st.randoms())
def test_parts_in_any_order_and_grouping_give_the_same(parts: list[list[float]], random: Random) -> None:
    of = len(parts)
    seen = [_part(index + 1, of, a=values) for index, values in enumerate(parts)]
    names = [str(index) for index in range(of)]
    merged = merge_statistics(seen, names)
    random.shuffle(seen)
    shuffled = reduce(lambda one, two: merge_statistics([one, two], ["one", "two"]), seen)
    assert merged == shuffled
    every = [value for values in parts for value in values]
    assert merged.histograms["a"] == Histogram().with_values(np.array(every, np.float32))
    assert merged.missing_shards == []
    assert merged.num_samples == 10 * sum(range(of + 1))
    assert merged.magnitudes["hidden"] == 3.5 * of
    assert merged.shapes["x"].max == (9, 3)


def test_shapes_add_up() -> None:
    merged = merge_statistics([_part(1, 2), _part(2, 2)], ["a", "b"])
    assert merged.inputs == {"x": {(1, 3): 2, (2, 3): 2, (9, 3): 2}}
    assert (merged.shapes["x"].min, merged.shapes["x"].opt) == ((1, 3), (9, 3))


def test_parts_that_overlap_are_refused() -> None:
    with pytest.raises(ArtifactError, match=r"^c holds part 2 of 3 of the data, which was there before"):
        merge_statistics([_part(2, 3), _part(1, 3), _part(2, 3)], ["a", "b", "c"])


def test_parts_that_miss_are_known() -> None:
    assert merge_statistics([_part(4, 5), _part(2, 5)], ["a", "b"]).missing_shards == [1, 3, 5]


def test_an_unfinished_part_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"^b is of an interrupted pass"):
        merge_statistics([_part(1, 2, a=[]), replace(_part(2, 2, a=[]), feeds={"a": 3})], ["a", "b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_sha256": "b" * 64}, "b is of another model than a: bbbbbbbbbbbb, not aaaaaaaaaaaa"),
        (
            {"data": "other.npz", "data_digest": "e" * 64},
            r"another data than a: other.npz \(eeeeeeeeeeee\), not calib.npz \(dddddddddddd\)",
        ),
        ({"num_shards": 4}, "another number of parts than a: 4, not 2"),
    ],
)
def test_another_source_is_refused_with_what_differs(change: dict[str, Any], message: str) -> None:
    one, two = _part(1, 2, a=[1.0]), _part(2, 2, a=[1.0])
    with pytest.raises(ArtifactError, match=message):
        merge_statistics([one, replace(two, source=replace(two.source, **change))], ["a", "b"])


def test_the_same_data_at_another_path_is_the_same() -> None:
    one, two = _part(1, 2, a=[1.0]), _part(2, 2, a=[1.0])
    moved = replace(two, source=replace(two.source, data="/mnt/other.npz"))
    assert merge_statistics([one, moved], ["a", "b"]) == merge_statistics([one, two], ["a", "b"])


def test_other_tensors_are_refused_with_one_of_them() -> None:
    with pytest.raises(ArtifactError, match=r"other tensors than a: only b has 'more'; take the same --skip"):
        refuse_other(_part(t=[1.0], more=[1.0]), "b", _part(t=[1.0]), "a")
    with pytest.raises(ArtifactError, match=r"only a has 'more'"):
        refuse_other(_part(t=[1.0]), "b", _part(t=[1.0], more=[1.0]), "a")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^there are no statistics .*absent.npz"):
        read_statistics(tmp_path / "absent.npz")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_refused(share: float, tmp_path: Path) -> None:
    content = statistics_to_bytes(_part(a=list(range(500))))
    (tmp_path / "s.npz").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtifactError, match=r"s.npz is no whole statistics file"):
        read_statistics(tmp_path / "s.npz")


def test_a_file_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    content = bytearray(statistics_to_bytes(_part(a=list(range(500)))))
    for place in range(200, len(content) - 1200, 997):
        changed = content.copy()
        changed[place] ^= 0x10
        (tmp_path / "s.npz").write_bytes(changed)
        with pytest.raises(ArtifactError, match=r"s.npz"):
            read_statistics(tmp_path / "s.npz")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros(3))
    with pytest.raises(ArtifactError, match=r"s.npz is no whole statistics file \(KeyError"):
        read_statistics(tmp_path / "s.npz")
    np.savez(tmp_path / "s.npz", document=np.frombuffer(b'{"kind": "ranges"}', np.uint8))
    with pytest.raises(ArtifactError, match=r"s.npz is no whole statistics file \(KeyError"):
        read_statistics(tmp_path / "s.npz")


def test_another_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _written(_part(), tmp_path / "s.npz")
    monkeypatch.setattr(statistics_file, "SCHEMA_VERSION", 2)
    with pytest.raises(ArtifactError, match=r"s.npz has schema version 1 with \d+ bits, this trtq reads 2"):
        read_statistics(path)


def _without_a_tensor(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["tensors"].pop()


def _with_a_bin_too_high(_: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["bins"] = arrays["bins"] + 2**30


def _without_samples(document: dict[str, Any], _: dict[str, Any]) -> None:
    del document["num_samples"]


@pytest.mark.parametrize("damage", [_without_a_tensor, _with_a_bin_too_high, _without_samples])
def test_content_that_does_not_fit_together_is_refused(
    damage: Callable[[dict[str, Any], dict[str, Any]], None], tmp_path: Path
) -> None:
    path = _written(_part(a=[1.0], b=[2.0]), tmp_path / "s.npz")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    document = json.loads(arrays["document"].tobytes())
    damage(document, arrays)
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match=r"s.npz is no whole statistics file.*calibrate again"):
        read_statistics(path)
