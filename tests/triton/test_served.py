"""What `trtq package` writes, served by Triton itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rewritten import rewrite
from triton_server import Server
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

import trtq
from trtq.files import hash_file
from trtq.pipeline.deliver.triton.config import Serving
from trtq.pipeline.package import PackageSpec, package

pytestmark = pytest.mark.slow
Serve = Callable[[Path], Server]
Build = Callable[[int], Path]
PYTHON = PackageSpec(name="net", fallback="python", ignore_gate=True)
OPTIONS: dict[str, Any] = {"backend": "onnxruntime", "effort": "quick", "min_cosine": -1, "int8": True}
TEXT = """g (float[N,4,16] x) => (float[N,4,16] y, float[N] total) {
    t = MatMul (x, w)
    y = Relu (t)
    total = ReduceSum <keepdims = 0> (y, axes)
}"""


@pytest.fixture
def build(path_of: Callable[..., Path], tmp_path: Path) -> Build:
    """Builds a small model with weights of this seed for ONNX Runtime."""

    def make(seed: int) -> Path:
        weight = np.random.default_rng(seed).normal(size=(16, 16)).astype(np.float32)
        model = path_of(TEXT, w=weight, axes=np.array([1, 2], np.int64))
        np.savez(tmp_path / "data.npz", x=samples(8))
        report = trtq.build(model, tmp_path / "data.npz", output=tmp_path / f"net{seed}.trtq", **OPTIONS)
        return Path(report.output)

    return make


def samples(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).normal(size=(count, 4, 16)).astype(np.float32)


def as_of_tensorrt(folder: Path) -> Path:
    """Returns the build as if TensorRT had made an engine; nothing of it runs here."""
    (folder / "model.engine").write_bytes(b"plan")
    digest = hash_file(folder / "model.engine")

    def built_by_tensorrt(report: dict[str, Any]) -> None:
        report["backend"] = "tensorrt 10.9.0"
        report["engine"] |= {"path": "model.engine", "targets": ["8.9"]}

    rewrite(folder, "report.json", built_by_tensorrt)
    rewrite(folder, "manifest.json", lambda manifest: manifest["outputs"].update({"model.engine": digest}))
    return folder


def test_versions_come_and_go_while_the_server_answers(build: Build, serve: Serve, tmp_path: Path) -> None:
    first, second, models = build(1), build(2), tmp_path / "models"
    expected = [trtq.load(folder).run(samples(3)) for folder in (first, second)]
    package(first, models, PYTHON)
    server = serve(models)

    def answers(number: int) -> bool:
        found = server.infer("net", x=samples(3))  # never fails, whichever version it is
        assert [found[name].shape for name in ("y", "total")] == [(3, 4, 16), (3, 1)]
        return all(
            np.array_equal(found[name].ravel(), value.ravel()) for name, value in expected[number].items()
        )

    server.wait(lambda: answers(0))
    package(second, models, PYTHON)
    server.wait(lambda: answers(1) and server.versions("net") == ["2"])
    shutil.rmtree(models / "net/2")
    server.wait(lambda: answers(0) and server.versions("net") == ["1"])
    package(second, models, replace(PYTHON, serving=Serving(num_versions=2)))
    server.wait(lambda: server.versions("net") == ["1", "2"])
    for version, outputs in zip("12", expected, strict=True):
        np.testing.assert_array_equal(server.infer("net", version, x=samples(3))["y"], outputs["y"])


def test_a_version_is_loaded_once(build: Build, serve: Serve, tmp_path: Path) -> None:
    package(build(1), tmp_path / "models", PYTHON)
    server = serve(tmp_path / "models")
    server.wait_for_polls()
    assert server.count("loading: net:1") == 1


def test_requests_are_joined_to_the_usual_batch(build: Build, serve: Serve, tmp_path: Path) -> None:
    folder = build(1)
    package(folder, tmp_path / "models", replace(PYTHON, serving=Serving(max_queue_delay_us=20_000_000)))
    server = serve(tmp_path / "models")
    before = server.client.get_inference_statistics("net").model_stats[0]
    found: list[Any] = []
    for sample in (arrays := np.split(samples(8), [1, 2, 4])):
        given = InferInput("x", list(sample.shape), "FP32")
        given.set_data_from_numpy(sample)
        server.client.async_infer("net", [given], lambda result, error: found.append(result or error))
    server.wait(lambda: len(found) == len(arrays))
    after = server.client.get_inference_statistics("net").model_stats[0]
    assert after.execution_count - before.execution_count == 1
    expected = trtq.load(folder).run(samples(8))
    totals = sorted(float(value) for result in found for value in result.as_numpy("total").ravel())
    np.testing.assert_allclose(totals, np.sort(expected["total"]), rtol=1e-6)


def test_a_model_without_a_batch_is_served(
    path_of: Callable[..., Path], serve: Serve, tmp_path: Path
) -> None:
    table = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    text = "g (int64[2,3] ids) => (float[2,3,8] y) { e = Gather (t, ids) y = MatMul (e, w) }"
    ids = np.arange(6).reshape(2, 3)
    np.savez(tmp_path / "ids.npz", ids=ids)
    report = trtq.build(path_of(text, t=table, w=table[:8]), tmp_path / "ids.npz", **OPTIONS)
    package(report.output, tmp_path / "models", PYTHON)
    found = serve(tmp_path / "models").infer("net", ids=ids)["y"]
    np.testing.assert_array_equal(found, trtq.load(report.output).run(ids)["y"])


def test_a_request_that_fails_is_answered_with_the_reason(build: Build, serve: Serve, tmp_path: Path) -> None:
    folder = build(1)
    package(folder, tmp_path / "models", PYTHON)
    (config := tmp_path / "models/net/config.pbtxt").write_text(
        config.read_text().replace("[4, 16]", "[-1, 16]", 1)
    )
    server = serve(tmp_path / "models")
    with pytest.raises(InferenceServerException, match="Got invalid dimensions for input: x"):
        server.infer("net", x=np.zeros((1, 7, 16), np.float32))
    assert server.infer("net", x=samples(2))["y"].shape == (2, 4, 16)


def test_the_other_model_of_a_pair_answers_where_one_cannot(
    build: Build, serve: Serve, tmp_path: Path
) -> None:
    folder = as_of_tensorrt(build(1))
    expected = trtq.load(folder, backend="onnxruntime").run(samples(2))  # each node as it stands
    package(folder, tmp_path / "models", replace(PYTHON, ab_percent=0))
    server = serve(tmp_path / "models")
    assert [server.versions(name) for name in ("net", "net_onnx", "net_ab")] == [[], ["1"], ["1"]]
    for _ in range(5):
        np.testing.assert_array_equal(server.infer("net_ab", x=samples(2))["y"], expected["y"])


@pytest.mark.parametrize(("backend", "fallback"), [("tensorrt", None), ("onnxruntime", "onnxruntime")])
def test_the_server_takes_the_configuration_and_then_looks_for_the_backend(
    backend: str, fallback: str | None, build: Build, serve: Serve, tmp_path: Path
) -> None:
    folder = as_of_tensorrt(build(1))
    package(folder, tmp_path / "models", replace(PYTHON, fallback=fallback))
    name = "net" if fallback is None else "net_onnx"
    shutil.copytree(tmp_path / "models" / name, tmp_path / "models/wrong")
    text = (tmp_path / "models" / name / "config.pbtxt").read_text()
    wrong = text.replace(f'name: "{name}"', 'name: "wrong"').replace(
        "preferred_batch_size: [8]", "preferred_batch_size: [9]"
    )
    (tmp_path / "models/wrong/config.pbtxt").write_text(wrong)
    server = serve(tmp_path / "models")
    missing = f"unable to find backend library for backend '{backend}'"
    assert server.count(f"failed to load '{name}' version 1: Invalid argument: {missing}")
    assert server.count("Poll failed for model directory 'wrong': dynamic batching preferred size must be <=")
    assert not server.count(f"Poll failed for model directory '{name}'")
