"""Tests of an engine as a session, over a TensorRT whose engines double their input."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import running_tensorrt
from running_tensorrt import IExecutionContext, read_floats

from trtq.errors import ArtifactError
from trtq.models.runner import create_runner
from trtq.pipeline.engine.cuda import Cuda
from trtq.pipeline.engine.plan import OpenedPlan
from trtq.pipeline.engine.plan_session import PlanPort, PlanSession

RECORD = {
    "inputs": {"x": [-1, 4]},
    "outputs": {"y": [-1, 4]},
    "profile": {"x": [[1, 4], [3, 4], [8, 4]]},
}
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def opened(driver: Any, **record: Any) -> PlanSession:
    return PlanSession(running_tensorrt, json.dumps({**RECORD, **record}).encode(), Cuda(driver.path))


def test_arrays_go_in_and_new_arrays_come_out(driver: Any) -> None:
    session = opened(driver)
    assert session.get_inputs() == [PlanPort("x", "tensor(float)", (None, 4))]
    assert session.get_outputs() == [PlanPort("y", "tensor(float)", (None, 4))]
    (first,) = session.run(None, {"x": X})
    (second,) = session.run(None, {"x": X[:1] + 1})
    np.testing.assert_array_equal(first, 2 * X)
    np.testing.assert_array_equal(second, 2 * X[:1] + 2)


def test_room_on_the_gpu_stays_until_more_is_needed(driver: Any) -> None:
    session, before = opened(driver), driver.count("freed")
    for count in (2, 1, 2):
        session.run(None, {"x": X[:count]})
    assert driver.count("freed") == before
    (found,) = session.run(None, {"x": np.tile(X, (2, 1))})
    np.testing.assert_array_equal(found, 2 * np.tile(X, (2, 1)))
    assert driver.count("freed") == before + 2


def test_a_polygraphy_runner_runs_it(driver: Any) -> None:
    with create_runner(opened(driver), "engine") as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], 2 * X)


@pytest.mark.parametrize("host", [["x"], ["y"], ["x", "y"]])
def test_what_is_on_the_host_stays_there(host: list[str], driver: Any) -> None:
    allocated = {"x", "y"} - {*host}
    session = opened(driver, host=host)
    np.testing.assert_array_equal(session.run(None, {"x": X})[0], 2 * X)
    assert session._memory.keys() == allocated


def test_bf16_is_exchanged_as_fp32(driver: Any) -> None:
    session = opened(driver, bf16=["x"], profile={})
    assert session.get_inputs()[0].type == "tensor(float)"
    session.run(None, {"x": X})
    (context,) = IExecutionContext.made
    sent = read_floats(context.addresses["x"], (4,)).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(sent.astype(np.float32), X.ravel())


@pytest.mark.parametrize(
    ("record", "count", "told"),
    [
        ({}, 9, r"^the engine has no profile for x \(9, 4\): \(9, 4\) is outside of the profile$"),
        ({"fails": "run"}, 1, r"^the engine does not run: out of memory$"),
        ({"fails": "size"}, 1, r"^the size of output 'y' depends on the values .* with backend onnxruntime$"),
    ],
)
def test_what_an_engine_does_not_do_is_told(record: Any, count: int, told: str, driver: Any) -> None:
    session = opened(driver, **record)
    with pytest.raises(ArtifactError, match=told):
        session.run(None, {"x": np.ones((count, 4), np.float32)})


def test_a_type_that_numpy_has_not_is_refused(driver: Any) -> None:
    with pytest.raises(ArtifactError, match=r"^'y' of the engine is FP8, which trtq does not exchange"):
        opened(driver, fp8=["y"])


def test_the_names_of_tensorrt_rtx_are_those_of_its_bindings() -> None:
    trt: ModuleType = pytest.importorskip("tensorrt_rtx")
    assert trt.DataType.BF16.name == "BF16"
    with pytest.raises(TypeError):
        trt.nptype(trt.DataType.FP8)
    for name in ("get_tensor_shape", "get_max_output_size", "set_tensor_address", "execute_async_v3"):
        assert hasattr(trt.IExecutionContext, name)


def test_the_bindings_of_tensorrt_rtx_refuse_what_is_no_engine() -> None:
    trt: ModuleType = pytest.importorskip("tensorrt_rtx")
    with pytest.raises(ArtifactError, match=r"^tensorrt_rtx [\d.]+ does not load it: .+"):
        OpenedPlan(trt, b"no engine")
