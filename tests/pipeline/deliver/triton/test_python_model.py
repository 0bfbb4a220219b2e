"""The script that runs an ONNX model, run as Triton's Python backend runs it."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.config import TritonPort
from trtq.pipeline.deliver.triton.python_model import SCRIPT, list_script_files, refuse_bfloat16

Request = Mapping[str, NDArray[Any]]
Run = Callable[..., list["Response"]]
TEXT = "g (float[N,2] x, float[N,2] z) => (float[N,2] y, float[N,2] d) { y = Add (x, z) d = Sub (x, z) }"


@dataclass
class Tensor:
    name: str
    array: NDArray[Any]

    def as_numpy(self) -> NDArray[Any]:
        return self.array


@dataclass
class Response:
    output_tensors: tuple[Tensor, ...] = ()
    error: str = ""


@pytest.fixture
def run(path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Gives the responses of the model to requests that came together."""
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceResponse, module.TritonError = Tensor, Response, str
    module.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    (tmp_path / "1").mkdir()
    path_of(TEXT).rename(tmp_path / "1/model.onnx")

    def answer(*requests: Request, max_batch: int = 8, **config: Any) -> list[Response]:
        inputs, outputs = ([{"name": name} for name in names] for names in ("xz", "yd"))
        config |= {"input": inputs, "output": outputs, "max_batch_size": max_batch}
        place = {"model_repository": str(tmp_path), "model_version": "1", "model_instance_kind": "CPU"}
        names: dict[str, Any] = {}
        exec(compile(SCRIPT, "model.py", "exec"), names)
        model = names["TritonPythonModel"]()
        model.initialize({"model_config": json.dumps(config), **place})
        found: list[Response] = model.execute(requests)
        return found

    return answer


def request(count: int, start: float) -> Request:
    x = np.arange(count * 2, dtype=np.float32).reshape(count, 2) + np.float32(start)
    return {"x": x, "z": x * 2}


@pytest.mark.parametrize("max_batch", [8, 0])
def test_each_request_gets_its_own_samples_back(max_batch: int, run: Run) -> None:
    requests = [request(count, start) for count, start in ((1, 0), (3, 10), (2, 20))]
    for given, response in zip(requests, run(*requests, max_batch=max_batch), strict=True):
        y, d = response.output_tensors
        assert (y.name, d.name) == ("y", "d")
        np.testing.assert_array_equal(y.array, given["x"] * 3)
        np.testing.assert_array_equal(d.array, -given["x"])


def test_a_model_with_a_file_of_weights_lies_in_a_folder(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "1/model.onnx"
    content = model.read_bytes()
    model.unlink()
    model.mkdir()
    (model / "model.onnx").write_bytes(content)
    (response,) = run(given := request(2, 0))
    np.testing.assert_array_equal(response.output_tensors[0].array, given["x"] * 3)


def test_where_the_model_fails_each_request_gets_the_reason(run: Run) -> None:
    wrong = {"x": np.zeros((1, 3), np.float32), "z": np.zeros((1, 3), np.float32)}
    found = run(wrong, wrong)
    assert len(found) == 2
    assert all("Got invalid dimensions for input" in response.error for response in found)
    assert "Got invalid dimensions" in run(wrong, max_batch=0)[0].error


def test_the_model_computes_each_node_where_the_configuration_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    levels = []
    opened = onnxruntime.InferenceSession

    def spy(path: Path, options: Any, **kept: Any) -> Any:
        levels.append(options.graph_optimization_level)
        return opened(path, options, **kept)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    run(request(1, 0), optimization={"graph": {"level": -1}})
    run(request(1, 0))
    level = onnxruntime.GraphOptimizationLevel
    assert levels == [level.ORT_ENABLE_BASIC, level.ORT_ENABLE_ALL]


def test_python_keeps_nothing_it_compiles_in_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in list_script_files("value = 3").items():
        (tmp_path / name).write_bytes(content)
    before = (tmp_path.stat().st_mtime_ns, sorted(tmp_path.iterdir()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.delitem(sys.modules, "model", raising=False)
    assert __import__("model").value == 3
    assert (tmp_path.stat().st_mtime_ns, sorted(tmp_path.iterdir())) == before


def test_bfloat16_is_refused() -> None:
    with pytest.raises(ArtifactError, match="'x' is bfloat16, which Triton's Python backend does not read"):
        refuse_bfloat16((TritonPort("x", "TYPE_BF16", (2,)),))
