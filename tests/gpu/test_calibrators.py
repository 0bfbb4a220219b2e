"""Tests of feeding calibrators through pycuda, on a real GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.device import CudaMemory
from trtq.calibrators.tensorrt import BatchCalibrator
from trtq.errors import BuildError, MissingDependency

pytestmark = pytest.mark.gpu
SHAPES = {"image": (4, 3, 32, 32), "ids": (4, 7)}


@pytest.fixture
def memory() -> Iterator[CudaMemory]:
    try:
        opened = CudaMemory()
    except MissingDependency as error:
        pytest.skip(str(error))
    with opened:
        yield opened


def _read_back(pointer: int, like: NDArray[Any]) -> NDArray[Any]:
    driver = pytest.importorskip("pycuda.driver")
    found = np.empty_like(like, order="C")
    driver.memcpy_dtoh(found, pointer)
    return found


def _feed(number: int) -> Feed:
    random = np.random.default_rng(number)
    image = random.random(SHAPES["image"], np.float32)
    return Feed({"image": image, "ids": random.integers(0, 99, SHAPES["ids"])}, f"feed {number}", 4)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.bool_])
def test_an_array_comes_back_as_it_went(dtype: type[np.generic], memory: CudaMemory) -> None:
    values = np.random.default_rng(0).integers(0, 2, (5, 6, 7)).astype(dtype)
    pointer = memory.allocate(values.nbytes)
    memory.upload(pointer, values)
    assert np.array_equal(_read_back(pointer, values), values)
    memory.upload(pointer, values[::-1, :, ::-1])
    assert np.array_equal(_read_back(pointer, values), values[::-1, :, ::-1])


def test_buffers_do_not_touch_each_other(memory: CudaMemory) -> None:
    arrays = [np.full(size, size, np.float32) for size in (1, 1 << 20, 333)]
    pointers = [memory.allocate(array.nbytes) for array in arrays]
    for pointer, array in zip(pointers, arrays, strict=True):
        memory.upload(pointer, array)
    for pointer, array in zip(pointers, arrays, strict=True):
        assert np.array_equal(_read_back(pointer, array), array)


def test_every_batch_lies_in_the_same_place(memory: CudaMemory) -> None:
    feeds = [_feed(number) for number in range(3)]
    feeder = BatchCalibrator(Batches(lambda: iter(feeds), "random", None), memory, SHAPES)
    places = set()
    for feed in feeds:
        pointers = feeder.get_batch(["ids", "image"])
        assert pointers is not None
        places.add(tuple(pointers))
        for name, pointer in zip(["ids", "image"], pointers, strict=True):
            assert np.array_equal(_read_back(pointer, feed.arrays[name]), feed.arrays[name])
    assert feeder.get_batch(["ids", "image"]) is None
    assert len(places) == 1
    feeder.raise_if_wrong()


def test_the_gpu_can_be_opened_again(memory: CudaMemory) -> None:
    memory.close()
    values = np.arange(9, dtype=np.float32)
    for _ in range(3):
        with CudaMemory() as again:
            pointer = again.allocate(values.nbytes)
            again.upload(pointer, values)
            assert np.array_equal(_read_back(pointer, values), values)


def test_a_second_memory_lives_beside_the_first(memory: CudaMemory) -> None:
    values = np.arange(9, dtype=np.float32)
    pointer = memory.allocate(values.nbytes)
    with CudaMemory() as second:
        second.upload(second.allocate(values.nbytes), values + 1)
    memory.upload(pointer, values)
    assert np.array_equal(_read_back(pointer, values), values)


def test_more_than_the_gpu_has_is_refused(memory: CudaMemory) -> None:
    with pytest.raises(
        BuildError, match=r"^taking \d+ bytes of GPU memory .*give smaller calibration batches"
    ):
        memory.allocate(1 << 50)
    values = np.arange(9, dtype=np.float32)
    pointer = memory.allocate(values.nbytes)
    memory.upload(pointer, values)
    assert np.array_equal(_read_back(pointer, values), values)


def test_a_gpu_that_is_not_there_is_refused(memory: CudaMemory) -> None:
    with pytest.raises(MissingDependency, match=r"^calibrating in TensorRT needs GPU 99 and its driver"):
        CudaMemory(99)
