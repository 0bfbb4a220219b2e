"""Tests of TensorRT's calibrators without its bindings; tests/bindings has those with."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.tensorrt import (
    BatchCalibrator,
    ScaleCalibrator,
    make_batch_calibrator,
    make_scale_calibrator,
)
from trtq.errors import ArtifactError, BuildError, DataError, UsageError

SHAPES = {"image": (2, 3), "mask": (2, 1)}
OWN_CACHE = b"TRT-101601-EntropyCalibration2\nimage: 3c010a14\n"


class Memory(HostMemory):
    """Host memory that tells what lies at an address."""

    def floats_at(self, pointer: int, count: int) -> list[float]:
        return list(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))[:count])


def _feed(value: float, number: int, **changed: NDArray[Any]) -> Feed:
    arrays = {name: np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    return Feed({**arrays, **changed}, f"feed {number}", 2)


def _batches(*feeds: Feed) -> Batches:
    return Batches(lambda: iter(feeds), "calib.npz", None)


def _calibrator(*feeds: Feed) -> BatchCalibrator:
    return BatchCalibrator(_batches(*feeds), HostMemory(), SHAPES)


@pytest.fixture
def trt() -> ModuleType:
    """A module with the calibrator classes, whose methods are C functions as those of the real bindings."""

    class IInt8Calibrator:
        get_batch_size = get_batch = read_calibration_cache = write_calibration_cache = len

    module = ModuleType("tensorrt")
    for name in ("IInt8EntropyCalibrator2", "IInt8MinMaxCalibrator"):
        setattr(module, name, type(name, (IInt8Calibrator,), {}))
    module.__version__ = "10.16.1.11"  # type: ignore[attr-defined] # of every package
    return module


def test_addresses_stand_in_the_order_of_the_names() -> None:
    memory = Memory()
    calibrator = BatchCalibrator(_batches(_feed(1, 0, mask=np.full((2, 1), 7, np.float32))), memory, SHAPES)
    pointers = calibrator.get_batch(["mask", "image"])
    assert pointers is not None
    assert memory.floats_at(pointers[0], 2) == [7, 7]
    assert memory.floats_at(pointers[1], 6) == [1] * 6


def test_each_input_has_one_buffer_that_is_used_again() -> None:
    memory = Memory()
    calibrator = BatchCalibrator(_batches(*(_feed(value, value) for value in range(3))), memory, SHAPES)
    seen = []
    while pointers := calibrator.get_batch(["image", "mask"]):
        seen.append((*pointers, memory.floats_at(pointers[0], 1)))
    assert len({pointers[:2] for pointers in seen}) == 1
    assert [values for _, _, values in seen] == [[0], [1], [2]]
    assert calibrator.num_samples == 6
    assert calibrator.get_batch(["image"]) is None
    calibrator.raise_if_wrong()


@pytest.mark.parametrize(
    ("shapes", "size"), [(SHAPES, 2), ({"gain": (), "image": (5, 3)}, 5), ({"gain": ()}, 1), ({}, 1)]
)
def test_the_batch_size_is_the_first_leading_dimension(
    shapes: Mapping[str, tuple[int, ...]], size: int
) -> None:
    assert BatchCalibrator(_batches(), HostMemory(), shapes).get_batch_size() == size


@pytest.mark.parametrize(
    ("given", "fed"),
    [
        (np.array([[1.5], [2]], np.float16), np.array([1.5, 2], np.float32)),
        (np.array([[1.5], [2]], np.float32), np.array([1.5, 2], np.float32)),
        (np.array([[1], [2**31 - 1]], np.int32), np.array([1, 2**31 - 1], np.int32)),
        (np.array([[1], [2**60]], np.int64), np.array([1, 2**60], np.int64)),
        (np.array([[True], [False]]), np.array([True, False])),
        (np.array([[1.5, 9], [2, 9]], np.float32)[:, :1], np.array([1.5, 2], np.float32)),
    ],
)
def test_arrays_reach_tensorrt_as_it_calibrates(given: NDArray[Any], fed: NDArray[Any]) -> None:
    calibrator = _calibrator(_feed(0, 0, mask=given))
    pointers = calibrator.get_batch(["mask"])
    assert pointers is not None
    assert ctypes.string_at(pointers[0], fed.nbytes) == fed.tobytes()


def test_a_smaller_last_batch_is_left_out() -> None:
    rest = _feed(2, 1, image=np.zeros((1, 3), np.float32), mask=np.zeros((1, 1), np.float32))
    calibrator = _calibrator(_feed(1, 0), rest)
    assert calibrator.get_batch(["image", "mask"])
    assert calibrator.get_batch(["image", "mask"]) is None
    calibrator.raise_if_wrong()
    assert calibrator.num_samples == 2


@pytest.mark.parametrize("shape", [(1, 3), (3, 3), (2, 4), (1, 4), (2, 3, 1), ()])
def test_a_batch_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    calibrator = _calibrator(_feed(1, 0), _feed(2, 1, image=np.zeros(shape, np.float32)), _feed(3, 2))
    assert calibrator.get_batch(["image"])
    assert calibrator.get_batch(["image"]) is None
    assert calibrator.get_batch(["image"]) is None, "an error is the end"
    shown = ", ".join(str(dim) for dim in shape)
    with pytest.raises(
        DataError,
        match=rf"^input 'image' of feed 1 has shape \({shown}\), the calibration profile needs \(2, 3\) of "
        r"every batch but a smaller last one; make all batches alike, or give their shape with "
        r"--opt-shapes$",
    ):
        calibrator.raise_if_wrong()


def test_a_last_batch_of_another_shape_is_refused() -> None:
    calibrator = _calibrator(_feed(1, 0), _feed(2, 1, image=np.zeros((1, 4), np.float32)))
    assert calibrator.get_batch(["image"])
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(DataError, match=r"^input 'image' of feed 1 has shape \(1, 4\)"):
        calibrator.raise_if_wrong()


def test_an_input_that_the_profile_lacks_is_refused() -> None:
    calibrator = _calibrator(_feed(1, 0))
    assert calibrator.get_batch(["image", "scale"]) is None
    with pytest.raises(
        DataError,
        match=r"^TensorRT asks for input 'scale', the calibration profile has image, mask; "
        r"give --opt-shapes for it$",
    ):
        calibrator.raise_if_wrong()


def test_an_input_that_the_data_lacks_is_refused() -> None:
    calibrator = _calibrator(Feed({"picture": np.zeros((2, 3), np.float32)}, "feed 0", 2))
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(
        DataError,
        match=r"^TensorRT asks for input 'image', feed 0 has picture; name the arrays as the model's inputs$",
    ):
        calibrator.raise_if_wrong()


def test_a_dtype_that_tensorrt_does_not_calibrate_with_is_refused() -> None:
    calibrator = _calibrator(_feed(1, 0, image=np.zeros((2, 3), np.uint8)))
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(
        DataError,
        match=r"^input 'image' of feed 0 is uint8, TensorRT calibrates with float32, float16, int32, int64, "
        r"bool; convert it with .astype\('float32'\)$",
    ):
        calibrator.raise_if_wrong()


def test_a_dtype_that_changes_is_refused() -> None:
    calibrator = _calibrator(_feed(1, 0), _feed(1, 1, image=np.zeros((2, 3), np.int64)))
    assert calibrator.get_batch(["image"])
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(
        DataError,
        match=r"^input 'image' of feed 1 is int64, it was float32 before; give all feeds the dtype that the "
        r"model takes$",
    ):
        calibrator.raise_if_wrong()


@pytest.mark.parametrize("error", [ZeroDivisionError("in the data"), KeyboardInterrupt("in the data")])
def test_what_the_data_raises_is_raised_after_the_build(error: BaseException) -> None:
    def read() -> Iterator[Feed]:
        yield _feed(1, 0)
        raise error

    calibrator = BatchCalibrator(Batches(read, "script.py", None), HostMemory(), SHAPES)
    assert calibrator.get_batch(["image"])
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(type(error), match="in the data"):
        calibrator.raise_if_wrong()


def test_data_without_one_whole_batch_is_refused() -> None:
    calibrator = _calibrator(_feed(1, 0, image=np.zeros((1, 3), np.float32)))
    assert calibrator.get_batch(["image"]) is None
    with pytest.raises(
        DataError,
        match=r"^TensorRT took no calibration batch of 2 from calib.npz \(feed 0 is smaller and was left "
        r"out\); give more samples, or smaller batches with --opt-shapes$",
    ):
        calibrator.raise_if_wrong()


def test_a_build_that_did_not_calibrate_is_refused() -> None:
    with pytest.raises(
        BuildError,
        match=r"^TensorRT asked for no calibration batch of calib.npz: the build stopped before that, INT8 "
        r"was not allowed, or the model has Q/DQ nodes; give a float model, and see TensorRT's own lines$",
    ):
        _calibrator(_feed(1, 0)).raise_if_wrong()


def test_a_calibrator_keeps_the_cache_that_tensorrt_made(trt: ModuleType) -> None:
    calibrator = make_batch_calibrator(trt, "entropy2", _batches(_feed(1, 0)), HostMemory(), SHAPES)
    assert calibrator.read_calibration_cache() is None
    assert calibrator.get_batch_size() == 2
    while calibrator.get_batch(["image", "mask"]):
        pass
    buffer = bytearray(OWN_CACHE)
    calibrator.write_calibration_cache(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert calibrator.written == OWN_CACHE
    calibrator.raise_if_wrong()


def test_ranges_go_as_a_cache_of_the_running_release(trt: ModuleType) -> None:
    calibrator = make_scale_calibrator(trt, {"image": 0.0078759379, "a:b c": 1 / 128, "dead": 0.0})
    assert calibrator.read_calibration_cache() == (
        b"TRT-101601-EntropyCalibration2\nimage: 3c010a14\na:b c: 3c000000\ndead: 0\n"
    )
    calibrator.raise_if_wrong()


@pytest.mark.parametrize("has_written", [False, True])
def test_ranges_that_tensorrt_does_not_take_are_an_error(trt: ModuleType, *, has_written: bool) -> None:
    calibrator = make_scale_calibrator(trt, {"image": 0.5})
    assert calibrator.read_calibration_cache()
    assert calibrator.get_batch(["image"]) is None
    if has_written:
        calibrator.write_calibration_cache(memoryview(b"TRT-101699-Other\n"))
    own = ", its own have 'TRT-101699-Other'" if has_written else ""
    with pytest.raises(
        BuildError,
        match=r"^TensorRT did not take the scales: their cache has the header "
        rf"'TRT-101601-EntropyCalibration2'{own}; calibrate with data in place of the "
        r"cache, or use explicit quantization \(--quantization explicit\)$",
    ):
        calibrator.raise_if_wrong()


def test_ranges_are_for_the_running_release(trt: ModuleType) -> None:
    text = make_scale_calibrator(trt, {"image": 0.5}).read_calibration_cache()
    assert text == b"TRT-101601-EntropyCalibration2\nimage: 3f000000\n"


def test_ranges_that_tensorrt_did_not_ask_for_are_an_error(trt: ModuleType) -> None:
    with pytest.raises(
        BuildError, match=r"^TensorRT did not ask for the scales: the build stopped before that"
    ):
        make_scale_calibrator(trt, {"image": 0.5}).raise_if_wrong()


def test_no_ranges_are_refused(trt: ModuleType) -> None:
    with pytest.raises(
        UsageError, match=r"^there are no scales to hand to TensorRT; calibrate the model first$"
    ):
        make_scale_calibrator(trt, {})


@pytest.mark.parametrize("name", ["", "a\nb: 3f800000\nc"])
def test_a_name_that_no_cache_can_hold_is_refused(name: str, trt: ModuleType) -> None:
    with pytest.raises(
        UsageError, match=r"cannot stand in a calibration cache, which has one name per line; rename it$"
    ):
        make_scale_calibrator(trt, {name: 0.5})


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale: float, trt: ModuleType) -> None:
    with pytest.raises(ArtifactError, match=r"'image' the scale .*must be finite and at least 0"):
        make_scale_calibrator(trt, {"image": scale})


@pytest.mark.parametrize(
    "make",
    [
        lambda trt: make_batch_calibrator(trt, "entropy2", _batches(), HostMemory(), SHAPES),
        lambda trt: make_batch_calibrator(trt, "minmax", _batches(), HostMemory(), SHAPES),
        lambda trt: make_scale_calibrator(trt, {"image": 0.5}),
    ],
)
def test_a_tensorrt_without_calibrators_is_refused(make: Callable[[ModuleType], object]) -> None:
    bare = ModuleType("tensorrt_rtx")
    bare.__version__ = "1.7.1.116"  # type: ignore[attr-defined] # of every package
    with pytest.raises(
        UsageError,
        match=r"^tensorrt_rtx 1\.7\.1\.116 has no IInt8\w+: TensorRT 11 and TensorRT-RTX have no INT8 "
        r"calibrators any more; use explicit quantization \(--quantization explicit\), or TensorRT 10$",
    ):
        make(bare)


@pytest.mark.parametrize(
    "name", ["get_batch_size", "get_batch", "read_calibration_cache", "write_calibration_cache"]
)
def test_our_calibrators_have_every_method_that_tensorrt_calls(name: str) -> None:
    """A missing one, which the bindings would have instead, is a segmentation fault."""
    assert all(inspect.isfunction(getattr(kind, name)) for kind in (BatchCalibrator, ScaleCalibrator))
