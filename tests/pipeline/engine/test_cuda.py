"""Tests of what is asked of CUDA's driver, over a driver without a GPU that is called as the real one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from running_tensorrt import read_floats

from trtq.errors import ArtifactError, MissingDependency
from trtq.pipeline.engine.cuda import MOST_RUNS, Cuda


def test_memory_gets_what_is_uploaded_in_c_order(driver: Any) -> None:
    cuda = Cuda(driver.path)
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    pointer = cuda.allocate(array.nbytes)
    cuda.upload(pointer, array)
    np.testing.assert_array_equal(read_floats(pointer, (4, 3)), array)
    assert cuda.allocate(0)
    assert cuda.used_bytes() > 0


@pytest.mark.parametrize("count", [1, 3, MOST_RUNS])
def test_every_run_has_its_time(driver: Any, count: int) -> None:
    cuda, ran = Cuda(driver.path), list[int]()
    times = cuda.times_ms(lambda: ran.append(1), count)
    assert len(ran) == len(times) == count
    assert min(times) >= 0


def test_a_graph_is_launched_as_one(driver: Any) -> None:
    cuda, ran = Cuda(driver.path), list[int]()
    before = driver.count("launches")
    launch = cuda.capture(lambda: ran.append(driver.count("capturing")))
    assert ran == [1]
    assert driver.count("capturing") == 0
    launch()
    launch()
    assert (len(ran), driver.count("launches") - before) == (1, 2)


def test_a_capture_that_fails_is_ended(driver: Any) -> None:
    def enqueue() -> None:
        raise ArtifactError("it does not run")

    cuda = Cuda(driver.path)
    with pytest.raises(ArtifactError, match=r"^it does not run$"):
        cuda.capture(enqueue)
    assert driver.count("capturing") == 0


def test_cudas_own_words_are_told(driver: Any) -> None:
    cuda = Cuda(driver.path)
    driver.fail("cuGraphLaunch")
    with pytest.raises(ArtifactError, match=r"^CUDA says CUDA_ERROR_UNKNOWN \(999\) in cuGraphLaunch$"):
        cuda.capture(lambda: None)()
    with pytest.raises(ArtifactError, match=r"^CUDA says an unknown error \(201\) in cuCtxSetCurrent$"):
        cuda._call("cuCtxSetCurrent", None)


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuStreamCreate"])
def test_a_gpu_that_does_not_work_is_told(name: str, driver: Any) -> None:
    driver.fail(name)
    with pytest.raises(
        MissingDependency,
        match=rf"^an engine needs an NVIDIA GPU that works; see nvidia-smi: CUDA says .* in {name}$",
    ):
        Cuda(driver.path)


def test_a_machine_without_a_driver_is_told() -> None:
    with pytest.raises(MissingDependency, match=r"^an engine needs an NVIDIA GPU, there is no driver: "):
        Cuda("libabsent.so.1")
