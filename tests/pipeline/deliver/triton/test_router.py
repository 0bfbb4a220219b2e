"""The model in front of a pair, run as Triton's Python backend runs it."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from dataclasses import dataclass, replace
from typing import Any

import pytest

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.config import ModelConfig, TritonPort
from trtq.pipeline.deliver.triton.pbtxt import parse
from trtq.pipeline.deliver.triton.router import SCRIPT, write_router

A = ModelConfig(
    "net", "tensorrt", 8, (TritonPort("x", "TYPE_FP32", (4,)),), (TritonPort("y", "TYPE_FP32", (2,)),)
)
B = replace(A, name="net_onnx", backend="onnxruntime")


@dataclass
class Request:
    """A request, and a call of another model: both hold the inputs."""

    model_name: str = ""
    requested_output_names: tuple[str, ...] = ()
    inputs: Any = None
    broken: tuple[str, ...] = ()

    async def async_exec(self) -> Response:
        if self.model_name in self.inputs["broken"]:
            return Response(error=f"{self.model_name} is broken")
        return Response([self.model_name])


class Response:
    def __init__(self, output_tensors: list[str] | None = None, error: str | None = None) -> None:
        self.tensors, self.failure = output_tensors, error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> str | None:
        return self.failure

    def output_tensors(self) -> list[str] | None:
        return self.tensors


@dataclass
class Asked:
    broken: tuple[str, ...] = ()

    def inputs(self) -> dict[str, Any]:
        return {"broken": self.broken}


def answers(monkeypatch: pytest.MonkeyPatch, percent: float, requests: list[Asked]) -> list[Response]:
    """Returns what the router answers."""
    module = types.ModuleType("triton_python_backend_utils")
    module.InferenceRequest, module.InferenceResponse = Request, Response  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    config = parse(write_router("net_ab", (A, B), percent).text(), "x")
    seen = {item.key: {"string_value": item.value.string_value} for item in config.parameters}
    names: dict[str, Any] = {}
    exec(compile(SCRIPT, "model.py", "exec"), names)
    model = names["TritonPythonModel"]()
    model.initialize({"model_config": json.dumps({"parameters": seen, "output": [{"name": "y"}]})})
    found: list[Response] = asyncio.run(model.execute(requests))
    return found


@pytest.mark.parametrize(("percent", "name"), [(0, "net"), (100, "net_onnx")])
def test_all_or_none_of_the_requests_go_to_b(
    percent: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = answers(monkeypatch, percent, [Asked()] * 50)
    assert {item.tensors[0] for item in found if item.tensors} == {name}


def test_a_share_of_the_requests_goes_to_b(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", iter([k / 100 for k in range(100)]).__next__)
    found = answers(monkeypatch, 12.5, [Asked()] * 100)
    assert sum(item.tensors == ["net_onnx"] for item in found) == 13


@pytest.mark.parametrize("percent", [0, 100])
def test_where_one_fails_the_other_answers(percent: float, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = ("net", "net_onnx") if percent == 0 else ("net_onnx", "net")
    (fallen, failed) = answers(monkeypatch, percent, [Asked((first,)), Asked(("net", "net_onnx"))])
    assert fallen.tensors == [other]
    assert failed.failure == f"{other} is broken"


def test_the_router_batches_as_the_pair_does() -> None:
    router = write_router("net_ab", (A, B), 10)
    assert (router.name, router.backend, router.max_batch) == ("net_ab", "python", 8)
    assert router.inputs == A.inputs
    assert router.parameters == {"model_a": "net", "model_b": "net_onnx", "percent_b": "10"}


def test_two_models_that_take_other_requests_are_no_pair() -> None:
    other = replace(B, max_batch=4, inputs=(TritonPort("x", "TYPE_FP16", (4,)),), outputs=())
    with pytest.raises(ArtifactError, match="net and net_onnx cannot be paired for --ab") as caught:
        write_router("net_ab", (A, other), 10)
    told = str(caught.value)
    assert "their largest batches are 8 and 4" in told
    assert "'x' is TYPE_FP32 [4] and TYPE_FP16 [4]" in told
    assert "'y' is TYPE_FP32 [2] and missing" in told
