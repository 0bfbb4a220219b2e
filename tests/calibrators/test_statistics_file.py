"""Tests of statistics as files, and of merging them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from counted import counted
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.calibrators.statistics import Statistics, StatisticsSource
from trtq.calibrators.statistics_file import (
    merge_statistics,
    read_statistics,
    refuse_other,
    statistics_to_bytes,
)
from trtq.errors import ArtifactError

VALUES = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20)
WHOLE = StatisticsSource("a" * 64, "calib.npz", "d" * 64)


def _part(shard: int = 1, of: int = 1, **values: Any) -> Statistics:
    histograms = {name: counted(np.array(array, np.float32)) for name, array in values.items()}
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
    assert merged.histograms["a"] == counted(np.array(every, np.float32))
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
    with pytest.raises(ArtifactError, match=r"other tensors than a: only b has 'more'; use the same --skip"):
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
    with pytest.raises(ArtifactError, match=r"s.npz is not a whole statistics file"):
        read_statistics(tmp_path / "s.npz")


def _written_with(path: Path, changes: dict[str, Any]) -> Path:
    """Writes statistics of two tensors with other content; a dot leads into `source`; ... leaves it out."""
    _written(_part(a=[1.0, -2.0, 0.5], b=[-4.0]), path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    document = json.loads(arrays["document"].tobytes())
    for name, value in changes.items():
        inside, _, key = name.rpartition(".")
        place = arrays if name in arrays else document[inside] if inside else document
        if value is ...:
            del place[key]
        else:
            place[key] = value
    arrays["document"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    np.savez(path, **arrays)
    return path


HALF, ONE, TWO, FOUR = (index << 10 for index in (39, 40, 41, 42))


def _bins(*bins: int) -> dict[str, Any]:
    return {"bins": np.array(bins, np.int32)}


def _counts(*counts: int) -> dict[str, Any]:
    return {"counts": np.array(counts, np.int64)}


def _sizes(*sizes: int) -> dict[str, Any]:
    return {"sizes": np.array(sizes, np.int64)}


def _extreme(low: float, high: float) -> dict[str, Any]:
    return {"extremes": np.array([(low, high), (-4.0, -4.0)])}


def test_the_content_that_is_damaged_below_is_whole(tmp_path: Path) -> None:
    same = {**_bins(HALF, ONE, TWO, FOUR), **_counts(1, 1, 1, 1), **_sizes(3, 1), **_extreme(-2, 1)}
    assert read_statistics(_written_with(tmp_path / "s.npz", same)) == _part(a=[1.0, -2.0, 0.5], b=[-4.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": ["a"]}, "the histograms do not fit the tensors"),
        ({"tensors": ["a", "a"]}, "the histograms do not fit the tensors"),
        ({"num_samples": ...}, "missing required field `num_samples`"),
        ({"inputs": ...}, "missing required field `inputs`"),
        ({"inputs": {}}, "there are samples without inputs"),
        ({"magnitudes": {"h": 10**400}}, "int too large to convert to float"),
        ({"num_samples": -1}, "-1 is not a number of samples or feeds"),
        ({"feeds": {"a": 1.5}}, "Expected `int`, got `float`"),
        ({"feeds": {"c": 1}}, "there are feeds of 'c', which is no tensor"),
        ({"inputs": {"x": [[[1, 3], True]]}}, "Expected `int`, got `bool`"),
        ({"magnitudes": {"h": -1}}, "tensor 'h' has a magnitude of -1"),
        ({"shards": []}, r"there are no parts \[\] of 1"),
        ({"shards": [2]}, r"there are no parts \[2\] of 1"),
        ({"source.num_shards": 2**31}, "there are no 2147483648 parts of data"),
        ({"source.num_shards": 0}, "there are no 0 parts of data"),
        ({"source.num_shards": "1"}, "Expected `int`, got `str` - at `[$].source.num_shards`"),
        ({"source.data": None}, "Expected `str`, got `null` - at `[$].source.data`"),
        ({"bins": np.array([HALF, ONE, TWO, FOUR], np.float64)}, "the histograms are of float64, int64"),
        ({"sizes": np.array([3, 1], np.float64)}, "the histograms are of int32, int64, float64"),
        (_bins(HALF, ONE, TWO), "the bins do not fit their counts"),
        (_sizes(5, -1), "the bins do not fit their counts"),
        (_sizes(2, 2), "the histogram of tensor 'a' has extremes that are not in its bins"),
        (_sizes(4, 0), "the histogram of tensor 'a' has extremes that are not in its bins"),
        (_bins(ONE, HALF, TWO, FOUR), "'a' has bins that do not exist or do not ascend"),
        (_bins(ONE, ONE, TWO, FOUR), "'a' has bins that do not exist or do not ascend"),
        (_bins(-1, ONE, TWO, FOUR), "'a' has bins that do not exist or do not ascend"),
        (_bins(HALF, ONE, TWO, 2**30), "'b' has bins that do not exist or do not ascend"),
        (_counts(1, -1, 1, 1), "'a' has counts below 1"),
        (_extreme(float("nan"), 1), "'a' has the extremes nan and 1.0"),
        (_extreme(1, -2), "'a' has the extremes 1.0 and -2.0"),
        (_extreme(-2, float("inf")), "'a' has the extremes -2.0 and inf"),
        (_extreme(-1, 1), "'a' has extremes that are not in its bins"),
    ],
)
def test_content_that_no_values_could_have_made_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = _written_with(tmp_path / "s.npz", changes)
    with pytest.raises(
        ArtifactError, match=rf"s.npz is not a (whole|complete) statistics file: .*{message}.*calibrate"
    ):
        read_statistics(path)


def test_extremes_without_values_are_refused(tmp_path: Path) -> None:
    empty = {**_bins(), **_counts(), **_sizes(0, 0)}
    with pytest.raises(ArtifactError, match="'a' has extremes without values"):
        read_statistics(_written_with(tmp_path / "s.npz", empty))


def test_a_changed_byte_is_seen_unless_it_means_nothing(tmp_path: Path) -> None:
    """Dates and sizes that the archive's directory repeats mean nothing."""
    whole = _part(a=list(range(500)))
    content = bytearray(statistics_to_bytes(whole))
    for place in range(0, len(content), 61):
        changed = content.copy()
        changed[place] ^= 0x10
        (tmp_path / "s.npz").write_bytes(changed)
        try:
            assert read_statistics(tmp_path / "s.npz") == whole
        except ArtifactError as error:
            assert "s.npz is not a " in str(error)  # noqa: PT017 - one of the two it must be


def test_another_file_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", x=np.zeros(3))
    with pytest.raises(
        ArtifactError,
        match=r"s.npz is not a whole statistics file; write it again with .*: KeyError: 'document'",
    ):
        read_statistics(tmp_path / "s.npz")
    np.save(tmp_path / "s.npy", np.zeros(3))
    with pytest.raises(
        ArtifactError, match=r"s.npy is not a whole statistics file; write it .*: File is not a zip"
    ):
        read_statistics(tmp_path / "s.npy")


def test_bins_of_another_width_are_refused(tmp_path: Path) -> None:
    path = _written_with(tmp_path / "s.npz", {"mantissa_bits": 9})
    with pytest.raises(ArtifactError, match=r"counts in bins of 9 bits, this trtq in bins of 10; calibrate"):
        read_statistics(path)


@pytest.mark.parametrize("as_text", ["null", "Infinity"])
def test_an_infinite_magnitude_comes_back(as_text: str, tmp_path: Path) -> None:
    """It is null now, and was written as no JSON in the past."""
    path = _written(replace(_part(a=[1.0]), magnitudes={"h": np.inf}), tmp_path / "s.npz")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    content = arrays["document"].tobytes()
    assert b'"h": null' in content
    arrays["document"] = np.frombuffer(content.replace(b"null", as_text.encode()), np.uint8)
    np.savez(path, **arrays)
    assert read_statistics(path).magnitudes == {"h": np.inf}
