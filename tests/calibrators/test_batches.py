"""Tests of the stream of feeds and of what is checked in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed, cast_feed, check_batches, check_feed
from trtq.errors import DataError
from trtq.models.signature import TensorSpec

IMAGE = TensorSpec("image", "float32", ("N", 2, 3))
MASK = TensorSpec("mask", "int64", ("N",))


def _feed(**arrays: NDArray[Any]) -> Feed:
    return Feed(arrays, "calib/0007.npz", 4)


def _stream(*sizes: int, digest: str | None = "abc") -> Batches:
    def read() -> Iterator[Feed]:
        for index, size in enumerate(sizes):
            yield Feed({"image": np.full((size, 2, 3), index, np.float32)}, f"feed {index}", size)

    return Batches(read, "calib", sum(sizes), digest)


def test_a_stream_is_read_again_and_again() -> None:
    stream = _stream(4, 4)
    assert [feed.source for feed in stream] == [feed.source for feed in stream] == ["feed 0", "feed 1"]


def test_a_stream_is_cut_at_the_end_of_a_feed() -> None:
    first = _stream(4, 4, 4).first(5)
    assert [feed.source for feed in first] == ["feed 0", "feed 1"]
    assert (first.origin, first.num_samples, first.digest) == ("calib", 5, "abc:5")


@pytest.mark.parametrize("num_samples", [None, 12, 13])
def test_a_stream_that_is_short_enough_stays(num_samples: int | None) -> None:
    stream = _stream(4, 4, 4)
    assert stream.first(num_samples) is stream


def test_a_stream_of_unknown_length_is_cut_as_well() -> None:
    stream = Batches(_stream(4, 4, 4).read, "script", None)
    first = stream.first(4)
    assert [feed.source for feed in first] == ["feed 0"]
    assert (first.num_samples, first.digest) == (None, None)
    assert len(list(Batches(_stream(4, 4).read, "script", None).first(100))) == 2


def test_nothing_is_read_beyond_the_cut() -> None:
    def read() -> Iterator[Feed]:
        yield _feed()
        raise AssertionError("one feed is enough")

    assert len(list(Batches(read, "script", None).first(4))) == 1


def test_made_up_numbers_stay_made_up() -> None:
    stream = Batches(_stream(4, 4).read, "random", 8, None, is_random=True)
    assert stream.first(4).is_random
    assert check_batches(stream, [IMAGE]).is_random


def test_a_checked_stream_hands_on_what_fits() -> None:
    stream = check_batches(_stream(4, 2), [IMAGE])
    assert [feed.num_samples for feed in stream] == [4, 2]
    assert (stream.origin, stream.num_samples, stream.digest) == ("calib", 6, "abc")


def test_a_checked_stream_fails_at_the_feed_that_does_not_fit() -> None:
    stream = iter(check_batches(_stream(4, 0), [IMAGE]))
    assert next(stream).source == "feed 0"
    with pytest.raises(DataError, match=r"^input 'image' of feed 1 is empty: shape \(0, 2, 3\)$"):
        next(stream)


def test_a_stream_without_feeds_is_refused() -> None:
    with pytest.raises(DataError, match=r"^calib yields no samples; give at least one"):
        list(check_batches(_stream(), [IMAGE]))


def test_a_missing_input_is_named() -> None:
    feed = _feed(b=np.zeros(4), a=np.zeros(4))
    with pytest.raises(
        DataError, match=r"^calib/0007.npz has no array 'image'; it has a, b, the model takes image, mask$"
    ):
        check_feed(feed, [IMAGE, MASK])


def test_a_feed_without_arrays_is_told() -> None:
    with pytest.raises(DataError, match=r"has no array 'mask'; it has none, the model takes mask$"):
        check_feed(_feed(), [MASK])


def test_an_unknown_array_is_named() -> None:
    feed = _feed(mask=np.zeros(4, np.int64), labels=np.zeros(4))
    with pytest.raises(
        DataError,
        match=r"^calib/0007.npz has an array 'labels' that the model does not take; its inputs are mask$",
    ):
        check_feed(feed, [MASK])


def test_further_arrays_may_be_there_or_not() -> None:
    mask = np.zeros(4, np.int64)
    check_feed(_feed(mask=mask, labels=np.array(["any"])), [MASK], ["labels"])
    check_feed(_feed(mask=mask), [MASK], ["labels"])


@pytest.mark.parametrize("dtype", ["float64", "int8", "bool"])
def test_another_dtype_is_refused_with_the_way_out(dtype: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"^input 'image' of calib/0007.npz is {dtype}, the model expects float32; convert it with "
        r".astype\('float32'\)$",
    ):
        check_feed(_feed(image=np.zeros((4, 2, 3), dtype)), [IMAGE])


def test_pixels_are_scaled_and_not_only_cast() -> None:
    with pytest.raises(
        DataError, match=r"with .astype\('float32'\), and scale it as for the model's training"
    ):
        check_feed(_feed(image=np.zeros((4, 2, 3), np.uint8)), [IMAGE])


def test_no_cast_is_advised_that_leaves_nothing_of_the_values() -> None:
    halves = np.full(4, 0.5, np.float32)
    with pytest.raises(
        DataError, match=r"int64; its values from 0.5 to 0.5 are not whole, and a cast would c"
    ):
        check_feed(_feed(mask=halves), [MASK])


@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_floats_get_the_width_and_byte_order_of_the_input(dtype: str) -> None:
    values = np.array([[[1.5, -np.inf, 0.25]] * 2] * 4)
    found = cast_feed(_feed(image=values.astype(dtype), labels=np.arange(4)), [IMAGE])
    assert found.arrays["image"].dtype == np.dtype(np.float32)
    assert found.arrays["image"].dtype.isnative
    assert np.array_equal(found.arrays["image"], values.astype(np.float32))
    assert found.arrays["labels"].dtype == np.arange(4).dtype


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[[1e300]]]), "float32"),
        (np.array([[[1]]], np.uint8), "float32"),
        (np.array([[[1.0]]], np.float32), "int64"),
        (np.array([[[1 << 40]]]), "int32"),
        (np.array([[[-1]]], np.int8), "uint8"),
        (np.array([[[True]]]), "int64"),
    ],
)
def test_what_would_lose_more_than_digits_stays_as_it_is(array: NDArray[Any], dtype: str) -> None:
    found = cast_feed(_feed(image=array), [replace(IMAGE, dtype=dtype)])
    assert found.arrays["image"] is array


def test_whole_numbers_that_fit_get_the_width_of_the_input() -> None:
    (found,) = check_batches(
        Batches(lambda: iter([_feed(mask=np.array([7, -2, 0, 1], ">i4"))]), "calib", 4), [MASK]
    )
    assert found.arrays["mask"].tolist() == [7, -2, 0, 1]
    assert found.arrays["mask"].dtype == np.dtype(np.int64)


@pytest.mark.parametrize(
    ("shape", "shown"), [((4, 3, 2), r"\(4, 3, 2\)"), ((2, 3), r"\(2, 3\)"), ((), r"\(\)")]
)
def test_another_shape_is_refused(shape: tuple[int, ...], shown: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"^input 'image' of calib/0007.npz has shape {shown}, the model expects \(N, 2, 3\); resize "
        r"the samples, or set `resize`, `channels` and `layout` in \[preprocess\] of model.toml",
    ):
        check_feed(_feed(image=np.zeros(shape, np.float32)), [IMAGE])


def test_what_is_no_picture_is_told_no_way_to_resize_it() -> None:
    threshold = replace(MASK, dtype="float32", shape=())
    with pytest.raises(
        DataError, match=r"expects \(\); for inputs without an axis of samples give a folder of"
    ):
        check_feed(_feed(mask=np.zeros(4, np.float32)), [threshold])
    with pytest.raises(DataError, match=r"expects \(N, 7\); give the samples as the model takes them$"):
        check_feed(_feed(mask=np.zeros((4, 8), np.float32)), [replace(threshold, shape=("N", 7))])


def test_an_additive_mask_may_hold_minus_infinity() -> None:
    image = np.zeros((4, 2, 3), np.float32)
    image[1, 1] = -np.inf
    check_feed(_feed(image=image), [IMAGE])
    image[0, 0, 0] = 0.5
    with pytest.raises(DataError, match="has 3 NaN or infinite values"):
        check_feed(_feed(image=image), [IMAGE])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_counted_and_the_sample_is_named(bad: float) -> None:
    image = np.zeros((4, 2, 3), np.float32)
    image[2, 1, 1] = image[3, 0, 0] = image[2, 1, 2] = bad
    with pytest.raises(
        DataError,
        match=r"^input 'image' of calib/0007.npz has 3 NaN or infinite values, "
        r"the first in its sample 2; clean the data$",
    ):
        check_feed(_feed(image=image), [IMAGE])


def test_a_scalar_that_is_nan_is_refused() -> None:
    with pytest.raises(DataError, match="has 1 NaN or infinite value, the first in its sample 0"):
        check_feed(_feed(gain=np.array(np.nan, np.float32)), [TensorSpec("gain", "float32", ())])


def _every(batches: Batches, start: int, step: int) -> list[str]:
    return [feed.source for feed in batches.every(start, step)]


def test_a_digest_that_is_still_computed_is_not_waited_for_before_it_is_needed() -> None:
    asked = []

    def whole() -> str:
        asked.append("whole")
        return "abc"

    first = Batches(_stream(4, 4).read, "calib", 8, whole).first(5)
    assert not asked
    assert first.digest == "abc:5"
    assert asked == ["whole"]


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize(("num_samples", "num_feeds"), [(None, 7), (100, 7), (9, 5), (10, 5), (1, 1)])
def test_every_nth_feed_is_that_of_the_whole_pass(
    in_parts: bool, num_samples: int | None, num_feeds: int
) -> None:
    feeds = [Feed({}, str(index), 2) for index in range(7)]

    def part(start: int, step: int) -> Iterator[Feed]:
        return iter(feeds[start::step])

    batches = Batches(
        lambda: iter(feeds), "memory", 14, feed_samples=2, part=part if in_parts else None
    ).first(num_samples)
    names = [str(index) for index in range(num_feeds)]
    for start, step in [(0, 1), (0, 3), (1, 3), (2, 3), (5, 1), (20, 2)]:
        assert _every(batches, start, step) == names[start::step]
