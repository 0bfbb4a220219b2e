"""Tests of implicit quantization: what TensorRT 8.6 to 10 sees of the calibrator, and how it can go wrong."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_memory import HostMemory

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.cache import parse_cache
from trtq.errors import BuildError, DataError, MissingDependency, UsageError
from trtq.models.spec import InputSpec
from trtq.pipeline.engine.backend import BuildRequest, ImplicitQuantization
from trtq.pipeline.engine.tensorrt import TensorRt

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
Module = Callable[[str], str]
SHAPES = {"x": (2, 4)}
MODEL = "g (float[{batch}, 4] x) => (float[{batch}, 3] y) {{ [act] h = Relu (x) [mm] y = MatMul (h, w) }}"
PROFILE = {"x": InputSpec((1, 4), (4, 4), (8, 4))}
SCALES = {"x": 0.5, "h": 0.25, "y": 1.0}


class Memory(HostMemory):
    """Host memory that tells whether it was closed."""

    is_closed = False

    def close(self) -> None:
        super().close()
        type(self).is_closed = True


@pytest.fixture
def backend(tensorrt_module: Module, one_gpu: None) -> Callable[[str], TensorRt]:
    Memory.is_closed = False
    return lambda version: TensorRt(tensorrt_module(version), Memory)


@pytest.fixture
def request_of(path_of: Callable[..., Path]) -> Callable[..., BuildRequest]:
    """Returns a request for INT8 and FP16; `batch` is the model's."""

    def request(implicit: ImplicitQuantization, batch: str = "2") -> BuildRequest:
        path = path_of(MODEL.format(batch=batch), w=np.ones((4, 3), np.float32))
        profiles = PROFILE if batch == "N" else {}
        return BuildRequest(path, profiles, precisions=("int8", "fp16"), implicit=implicit)

    return request


RequestOf = Callable[..., BuildRequest]


def _batches(*sizes: int, error: BaseException | None = None) -> Batches:
    def read() -> Iterator[Feed]:
        for number, size in enumerate(sizes):
            yield Feed({"x": np.full((size, 4), number + 1, np.float32)}, f"feed {number}", size)
        if error is not None:
            raise error

    return Batches(read, "calib.npz", None)


def _data(
    *sizes: int, algorithm: str = "entropy2", error: BaseException | None = None
) -> ImplicitQuantization:
    return ImplicitQuantization(algorithm=algorithm, batches=_batches(*sizes, error=error), shapes=SHAPES)


@pytest.mark.parametrize("version", [OLD, TEN])
@pytest.mark.parametrize(
    ("algorithm", "base", "written"),
    [
        ("entropy2", "IInt8EntropyCalibrator2", "EntropyCalibration2"),
        ("minmax", "IInt8MinMaxCalibrator", "MinMaxCalibration"),
    ],
)
def test_tensorrts_own_calibrator_takes_every_batch(
    version: str,
    algorithm: str,
    base: str,
    written: str,
    backend: Callable[[str], TensorRt],
    request_of: RequestOf,
) -> None:
    built = backend(version).build(request_of(_data(2, 2, 2, algorithm=algorithm)))
    record = json.loads(built.plan or b"")
    assert record["flags"] == ["INT8", "FP16"]
    assert record["network_flags"] == 1
    assert record["calibration"]["algorithm"] == base
    assert record["calibration"]["batch_size"] == 2
    assert record["calibration"]["firsts"] == [[1.0], [2.0], [3.0]]
    assert built.calibration_cache is not None
    cache = parse_cache(built.calibration_cache)
    assert (cache.algorithm, list(cache.scales)) == (written, ["x", "h", "y"])
    assert built.calibration_samples == 6
    assert {kernel.nodes[0]: kernel.multiplies_in for kernel in built.kernels} == {"act": "", "mm": "int8"}
    assert "free to run it in INT8 and found another precision faster" in built.usual_reason
    assert Memory.is_closed


@pytest.mark.parametrize(
    ("batch", "profile"), [("2", None), ("N", {"x": [[2, 4], [2, 4], [2, 4]]})], ids=["fixed", "dynamic"]
)
def test_dynamic_inputs_are_calibrated_with_the_shape_of_the_batches(
    batch: str, profile: Any, backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    record = json.loads(backend(TEN).build(request_of(_data(2), batch)).plan or b"")
    assert record["calibration_profile"] == profile
    assert record["profiles"] == ([{"x": [[1, 4], [4, 4], [8, 4]]}] if batch == "N" else [])


def test_a_smaller_last_batch_is_not_counted(
    backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    built = backend(TEN).build(request_of(_data(2, 1), "N"))
    assert built.calibration_samples == 2
    assert json.loads(built.plan or b"")["calibration"]["firsts"] == [[1.0]]


def test_our_ranges_go_as_a_cache_and_no_data_is_asked(
    backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    built = backend(TEN).build(request_of(ImplicitQuantization(scales=SCALES)))
    record = json.loads(built.plan or b"")
    assert (record["calibration"]["scales"], record["calibration"]["firsts"]) == (SCALES, [])
    assert built.calibration_cache == (
        b"TRT-101601-EntropyCalibration2\nx: 3f000000\nh: 3e800000\ny: 3f800000\n"
    )
    assert built.calibration_samples == 0


def test_kept_layers_do_not_run_in_int8(backend: Callable[[str], TensorRt], request_of: RequestOf) -> None:
    built = backend(TEN).build(replace(request_of(ImplicitQuantization(scales=SCALES)), kept={"mm": "fp16"}))
    assert {kernel.nodes[0]: kernel.inputs for kernel in built.kernels}["mm"] == ("Half",)


# What goes wrong


def test_an_error_in_the_data_is_raised_although_tensorrt_swallows_it(
    backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    for sizes in ((2, 2), ()):  # with batches before it the build succeeds, without it fails
        with pytest.raises(ZeroDivisionError, match="in the data"):
            backend(TEN).build(request_of(_data(*sizes, error=ZeroDivisionError("in the data"))))
    assert Memory.is_closed


def test_too_little_data_is_told(backend: Callable[[str], TensorRt], request_of: RequestOf) -> None:
    with pytest.raises(
        DataError, match=r"^TensorRT took no calibration batch of 2 from calib\.npz \(feed 0 is smaller"
    ):
        backend(TEN).build(request_of(_data(1)))


def test_batches_of_other_shapes_are_told(backend: Callable[[str], TensorRt], request_of: RequestOf) -> None:
    with pytest.raises(DataError, match=r"input 'x' of feed 1 has shape \(3, 4\), the calibration profile"):
        backend(TEN).build(request_of(_data(2, 3, 2), "N"))


def test_gpu_memory_that_is_not_there_is_told_although_the_build_fails(
    backend: Callable[[str], TensorRt], request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(own: object, num_bytes: int) -> int:
        raise BuildError(f"taking {num_bytes} bytes of GPU memory failed")

    monkeypatch.setattr(Memory, "allocate", full)
    with pytest.raises(BuildError, match=r"^taking 32 bytes of GPU memory failed:\n  "):
        backend(TEN).build(request_of(_data(2)))


def test_scales_that_tensorrt_rejects_are_told_although_the_build_fails(
    backend: Callable[[str], TensorRt], request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recording_tensorrt._number", lambda version: 999999)
    with pytest.raises(BuildError, match=r"^TensorRT did not take the scales: their cache has the header"):
        backend(TEN).build(request_of(ImplicitQuantization(scales=SCALES)))


def test_a_calibrator_that_was_never_asked_is_told(
    backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    for implicit, told in (
        (_data(2), r"^TensorRT asked for no calibration batch of calib\.npz: the build stopped before"),
        (
            ImplicitQuantization(scales=SCALES),
            r"^TensorRT did not ask for the scales: the build stopped before",
        ),
    ):
        with pytest.raises(BuildError, match=told):
            backend(TEN).build(replace(request_of(implicit), precisions=("fp16",)))


def test_a_build_that_fails_before_calibration_is_told_in_tensorrts_words(
    backend: Callable[[str], TensorRt],
    request_of: RequestOf,
    tensorrt_module: Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(own: Any, network: Any, config: Any) -> None:
        own._logger.log(module.ILogger.Severity.ERROR, "out of paper")

    module = importlib.import_module(tensorrt_module(TEN))
    monkeypatch.setattr(module.Builder, "build_serialized_network", fail)
    with pytest.raises(BuildError, match=r"could not build model\d\.onnx:\n  ERROR: out of paper$"):
        backend(TEN).build(request_of(_data(2)))


def test_a_calibration_profile_that_tensorrt_refuses_stops_the_build(
    backend: Callable[[str], TensorRt], request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recording_tensorrt.Config.set_calibration_profile", lambda *_: False)
    with pytest.raises(BuildError, match=r"^TensorRT 10\.16\.1\.11 could not build"):
        backend(TEN).build(request_of(_data(2), "N"))


def test_without_pycuda_it_says_what_to_install(
    tensorrt_module: Module, one_gpu: None, request_of: RequestOf
) -> None:
    if importlib.util.find_spec("pycuda") is not None:
        pytest.skip("pycuda is installed")
    with pytest.raises(MissingDependency, match=r"needs pycuda.* pip install 'trtq\[tensorrt\]'"):
        TensorRt(tensorrt_module(TEN)).build(request_of(_data(2)))


def test_a_version_without_calibrators_refuses(
    backend: Callable[[str], TensorRt], request_of: RequestOf
) -> None:
    with pytest.raises(UsageError, match=r"11\.4\.0\.106 has no IInt8EntropyCalibrator2: TensorRT 11 and"):
        backend(ELEVEN).build(request_of(_data(2)))


def test_no_scales_at_all_are_refused(backend: Callable[[str], TensorRt], request_of: RequestOf) -> None:
    with pytest.raises(UsageError, match=r"^there are no scales to hand to TensorRT; calibrate the model"):
        backend(TEN).build(request_of(ImplicitQuantization()))
