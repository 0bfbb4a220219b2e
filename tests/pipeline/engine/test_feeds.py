"""Tests of what a caller gives to an engine, cut into batches and joined again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.errors import DataError
from trtq.models.signature import TensorSpec
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.feeds import (
    BatchRun,
    Infer,
    Signature,
    infer_in_batches,
    join_runs,
    settle,
    take_feed,
)

OPEN = (TensorSpec("x", "float32", ("N", 2)),), (TensorSpec("y", "float32", ("N", 2)),)
PROFILE = {"x": InputSpec((2, 2), (4, 2), (4, 2))}
FIXED = (TensorSpec("x", "float32", (4, 2)),), (TensorSpec("y", "float32", (4, 2)),)
STEPS = (TensorSpec("x", "float32", ("N", 2)), TensorSpec("step", "float32", (1,))), OPEN[1]
BOXES = (
    (TensorSpec("image", "float32", ("N", 2)), TensorSpec("boxes", "float32", ("M", 4))),
    (TensorSpec("y", "float32", ("N", 2)),),
)


def samples(count: int) -> NDArray[Any]:
    return np.arange(2 * count, dtype=np.float32).reshape(count, 2)


def doubling(seen: list[int]) -> Infer:
    """Returns an engine that doubles its input into one buffer, and notes how many samples it was given."""
    buffer = np.zeros((100, 2), np.float32)

    def infer(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = len(feed["x"])
        seen.append(count)
        buffer[:count] = 2 * feed["x"]
        return {"y": buffer[:count]}

    return infer


@pytest.mark.parametrize(
    ("signature", "count", "runs"),
    [
        (Signature(*OPEN), 9, [9]),
        (Signature(*OPEN, PROFILE), 9, [4, 4, 1]),  # no engine: a profile says how many run at once
        (Signature(*OPEN, PROFILE, is_bound=True), 4, [4]),
        (Signature(*OPEN, PROFILE, is_bound=True), 9, [4, 4, 2]),
        (Signature(*OPEN, PROFILE, is_bound=True), 1, [2]),
        (Signature(*FIXED), 4, [4]),
        (Signature(*FIXED), 9, [4, 4, 4]),
        (Signature(*FIXED), 3, [4]),
    ],
)
def test_any_number_of_samples_is_run_in_batches_that_the_engine_takes(
    signature: Signature, count: int, runs: list[int]
) -> None:
    seen: list[int] = []
    found = infer_in_batches(signature, take_feed(signature, {"x": samples(count)}), doubling(seen))
    np.testing.assert_array_equal(found["y"], 2 * samples(count))
    assert seen == runs


def test_what_an_engine_gave_is_not_overwritten_by_its_next_run() -> None:
    infer = doubling([])
    first = infer_in_batches(Signature(*OPEN), {"x": samples(3)}, infer)
    infer_in_batches(Signature(*OPEN), {"x": samples(3) + 7}, infer)
    np.testing.assert_array_equal(first["y"], 2 * samples(3))


def test_an_input_without_samples_goes_to_every_run() -> None:
    signature, seen = Signature(*STEPS, PROFILE), list[float]()

    def infer(feed: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        seen.append(float(feed["step"][0]))
        return {"y": feed["x"]}

    feed = take_feed(signature, {"x": samples(6), "step": np.full(1, 5, np.float32)})
    np.testing.assert_array_equal(infer_in_batches(signature, feed, infer)["y"], samples(6))
    assert seen == [5, 5]


def test_axes_of_different_names_are_not_one_batch() -> None:
    signature = Signature(*BOXES, {"image": InputSpec((1, 2), (1, 2), (1, 2))})
    boxes = np.zeros((7, 4), np.float32)
    feed = take_feed(signature, {"image": samples(3), "boxes": boxes})
    assert infer_in_batches(signature, feed, lambda feed: {"y": feed["image"]})["y"].shape == (3, 2)


@pytest.mark.parametrize(("image", "boxes"), [("image_dim0", "boxes_dim0"), ("N", None)])
def test_axes_without_names_are_one_batch_if_the_arrays_agree(image: str, boxes: str | None) -> None:
    ports = (TensorSpec("image", "float32", (image, 2)), TensorSpec("boxes", "float32", (boxes, 4)))
    signature = Signature(ports, OPEN[1], {"image": InputSpec((1, 2), (4, 2), (4, 2))})
    for count, runs in ((9, [4, 4, 1]), (7, [9])):
        given = {"image": samples(9), "boxes": np.zeros((count, 4), np.float32)}
        own, seen = settle(signature, given), list[int]()

        def infer(feed: Mapping[str, NDArray[Any]], seen: list[int] = seen) -> dict[str, NDArray[Any]]:
            seen.append(len(feed["image"]))
            return {"y": feed["image"]}

        assert infer_in_batches(own, take_feed(own, given), infer)["y"].shape == (9, 2)
        assert seen == runs


@pytest.mark.parametrize(
    ("shapes", "is_split"),
    [
        ([("batch_size", 2)], True),
        ([("N", 2), (1,)], True),
        ([(None, 2), ("s0", 2)], True),
        ([("sequence", 2)], False),
        ([("T", 2), ("T", 2)], False),
        ([("batch_sequence_length", 2)], False),
        ([("N", "N")], False),
        ([(None, 2), (2, 3)], False),  # a sequence and the state of a cell
    ],
)
def test_what_is_split_is_told_by_the_names_of_the_axes(shapes: list[Any], is_split: bool) -> None:
    inputs = tuple(TensorSpec(f"x{number}", "float32", shape) for number, shape in enumerate(shapes))
    profile = {"x0": InputSpec((1, 2), (4, 2), (4, 2))}
    signature = Signature(inputs, OPEN[1], profile, is_bound=True)
    assert bool(signature.batched) is is_split
    if not is_split and len(inputs) == 1:
        with pytest.raises(
            DataError, match=r"^input 'x0' has shape \(9, 2\), the engine takes \(1\.\.4, 2\)$"
        ):
            take_feed(signature, samples(9))


@pytest.mark.parametrize(
    ("given", "got", "is_joined"),
    [
        ("batch", "batch", True),
        ("batch", None, True),
        (None, "N", True),
        ("batch", "N", False),
        (None, "boxes", False),
        ("sequence", "sequence", False),
        ("batch", 8, False),
    ],
)
def test_an_output_is_joined_if_its_axis_may_be_that_of_the_samples(
    given: str | None, got: int | str | None, is_joined: bool
) -> None:
    signature = Signature((TensorSpec("x", "float32", (given, 2)),), (TensorSpec("y", "float32", (got, 4)),))
    runs = [BatchRun({"y": np.full((8, 4), number)}, 8, 8 - number) for number in range(2)]
    if is_joined:
        assert join_runs(signature, runs, "stop")["y"][:, 0].tolist() == [0] * 8 + [1] * 7
    else:
        with pytest.raises(
            DataError, match=r"says that its first axis is theirs, so runs cannot be .*; stop$"
        ):
            join_runs(signature, runs, "stop")


def test_similarities_of_all_samples_of_a_run_are_not_joined() -> None:
    both = tuple(TensorSpec(name, "float32", ("N", 2)) for name in "xy")
    for given, first in ((both, "N"), ((TensorSpec("x", "float32", ("x_dim0", 2)),), "x_dim0")):
        signature = Signature(given, (TensorSpec("y", "float32", (first, first)),))
        with pytest.raises(DataError, match="nothing says that its first axis is theirs"):
            join_runs(signature, [BatchRun({"y": np.zeros((8, 8))}, 8, 8)] * 2, "stop")


def test_one_input_needs_no_name_and_lists_are_arrays() -> None:
    assert take_feed(Signature(*OPEN), samples(2))["x"].shape == (2, 2)
    whole = (TensorSpec("ids", "int64", ("N",)),), OPEN[1]
    assert take_feed(Signature(*whole), [1, 2, 3])["ids"].dtype == np.int64
    narrow = (TensorSpec("x", "bfloat16", ("N", 2)),), OPEN[1]
    assert take_feed(Signature(*narrow), samples(2))["x"].dtype == np.float32
    big = samples(2).astype(">f4")
    assert take_feed(Signature(*OPEN), big)["x"].dtype.isnative


@pytest.mark.parametrize(
    ("ports", "given", "told"),
    [
        (STEPS, samples(1), r"^the engine takes x, step: give a dict of arrays by these names$"),
        (OPEN, {}, r"^there is no array for input 'x'; the engine takes x, given are nothing$"),
        (OPEN, {"z": 1}, r"^there is no array for input 'x'; the engine takes x, given is z$"),
        (OPEN, {"x": samples(1), "z": 1}, r"^the engine has no input 'z'; it takes x$"),
        (
            OPEN,
            samples(1).astype(float),
            r"^input 'x' is float64, the engine takes float32; convert it with \.as",
        ),
        (OPEN, np.zeros((2, 3), np.float32), r"^input 'x' has shape \(2, 3\), the engine takes \(N, 2\)$"),
        (OPEN, np.zeros(2, np.float32), r"^input 'x' has shape \(2\), the engine takes \(N, 2\)$"),
        (OPEN, samples(0), r"^there are no samples: x of length 0$"),
        (OPEN, [[1, 2], [3]], r"^input 'x' is not an array: setting an array element with a sequence"),
        (OPEN, np.ma.masked_array(samples(1), True), r"^input 'x' is a masked array, which an engine cannot"),
    ],
)
def test_what_does_not_fit_is_told(ports: Any, given: Any, told: str) -> None:
    with pytest.raises(DataError, match=told):
        take_feed(Signature(*ports), given)


def test_a_size_outside_of_the_profile_is_told_with_the_sizes_that_fit() -> None:
    ports = (TensorSpec("x", "float32", ("N", "W")),), OPEN[1]
    signature = Signature(*ports, {"x": InputSpec((1, 8), (2, 8), (4, 32))}, is_bound=True)
    with pytest.raises(DataError, match=r"^input 'x' has shape \(9, 2\), the engine takes \(N, 8\.\.32\)$"):
        take_feed(signature, samples(9))
    assert take_feed(Signature(*ports, signature.profiles), samples(9))["x"].shape == (9, 2)


def test_inputs_with_different_numbers_of_samples_are_refused() -> None:
    both = tuple(TensorSpec(name, "float32", ("N", 2)) for name in "xy")
    with pytest.raises(DataError, match=r"different numbers of samples along their first axis: x 1, y 2$"):
        take_feed(Signature(both, OPEN[1]), {"x": samples(1), "y": samples(2)})


@pytest.mark.parametrize("shape", [(4, 3), ("K", 3)])
def test_an_output_without_samples_is_neither_cut_nor_joined(shape: tuple[Any, ...]) -> None:
    signature = Signature(OPEN[0], (TensorSpec("y", "float32", shape),), PROFILE, is_bound=True)
    with pytest.raises(
        DataError,
        match=rf"^output y float32 \({shape[0]}, 3\) has shape \(4, 3\) for 4 samples, and nothing says that "
        r"its first axis is theirs, so runs cannot be cut or joined; give 2 to 4 samples at once$",
    ):
        infer_in_batches(signature, {"x": samples(6)}, lambda _: {"y": np.zeros((4, 3), np.float32)})
    with pytest.raises(DataError, match=r"give exactly 4 samples at once$"):
        infer_in_batches(Signature(*FIXED), {"x": samples(6)}, lambda _: {"y": np.zeros(3, np.float32)})


def test_runs_whose_outputs_differ_in_shape_are_not_joined() -> None:
    widths = iter([3, 4])
    with pytest.raises(
        DataError, match=r"^output 'y' has samples of shapes \(3\) and \(4\) in different runs, which cannot"
    ):
        infer_in_batches(
            Signature(OPEN[0], OPEN[1], PROFILE),
            {"x": samples(8)},
            lambda feed: {"y": np.zeros((len(feed["x"]), next(widths)), np.float32)},
        )
