"""Tests of running what was built: by the engine itself, and on data."""

from __future__ import annotations

import gc
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trtq.errors import ArtifactError, DataError, MissingDependency, UsageError
from trtq.files import hash_file
from trtq.models.session import open_session
from trtq.models.signature import TensorSpec
from trtq.models.spec import CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest, to_json
from trtq.pipeline.engine.gpu import explain_missing_gpu
from trtq.pipeline.engine.target import Target
from trtq.pipeline.load import LoadedEngine, load
from trtq.pipeline.run import run
from trtq.progress import Log, Silent

QUICK = QuantizationSpec(repair=("none",), activations="symmetric")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of a small model for ONNX Runtime, with `data.npz` beside it; nobody writes there."""
    place = tmp_path_factory.mktemp("built")
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        small (float[N,4] x) => (float[N,3] y, float[N,3] file) { y = MatMul (x, w)  file = Relu (y) }""")
    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, place / "m.onnx")
    x = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    np.savez(place / "data.npz", x=x)
    calibration = CalibrationSpec(data=str(place / "data.npz"), method="minmax")
    build(
        place / "m.onnx",
        spec=ModelSpec(calibration=calibration, quantization=QUICK),
        target=Target(backend="onnxruntime"),
    )
    return place / "m.trtq"


@pytest.fixture
def engine(folder: Path) -> Iterator[LoadedEngine]:
    with load(folder) as loaded:
        yield loaded


def data_of(folder: Path) -> Any:
    with np.load(folder.parent / "data.npz") as data:
        return data["x"]


def test_an_engine_tells_what_it_takes_and_runs_any_number_of_samples(engine: LoadedEngine) -> None:
    assert engine.inputs == (TensorSpec("x", "float32", ("N", 4)),)
    assert [str(spec) for spec in engine.outputs] == ["y float32 (N, 3)", "file float32 (N, 3)"]
    assert repr(engine) == f"LoadedEngine({str(engine.folder)!r}, onnxruntime runs model.int8.onnx)"
    x = data_of(engine.folder)
    (wanted, _) = open_session(engine.folder / "model.int8.onnx", optimize=False).run(None, {"x": x})
    assert engine.signature.batch == (1, 8)
    for count in (1, 8, 20):
        np.testing.assert_allclose(engine.run({"x": x[:count]})["y"], wanted[:count], atol=1e-5)


def test_the_runner_is_opened_once_and_again_after_it_was_closed(
    engine: LoadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def runner(self: LoadedEngine, name: str) -> Any:
        opened.append(name)
        return own(self, name)

    own = LoadedEngine.runner
    monkeypatch.setattr(LoadedEngine, "runner", runner)
    x = data_of(engine.folder)
    wanted = engine.run(x)["y"]
    with ThreadPoolExecutor(3) as threads:
        assert all(np.array_equal(found["y"], wanted) for found in threads.map(engine.run, [x] * 6))
    assert opened == ["engine"]
    engine.close()
    engine.close()
    engine.run(x)
    assert opened == ["engine", "engine"]


def test_an_engine_that_nobody_holds_is_closed(folder: Path) -> None:
    engine = load(folder)
    engine.run(data_of(folder))
    runner = engine._running._runner
    assert runner.is_active
    del engine
    gc.collect()
    assert not runner.is_active


def test_a_folder_without_its_model_still_loads_and_says_what_it_lacks(
    engine: LoadedEngine, tmp_path: Path
) -> None:
    lonely = replace(engine, folder=tmp_path)
    with pytest.raises(ArtifactError, match=r"^cannot read .*model\.int8\.onnx: No such file"):
        _ = lonely.inputs
    (tmp_path / "model.int8.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx was changed since it was loaded"):
        lonely.run(data_of(engine.folder))


def test_a_file_that_is_no_model_is_told_even_where_the_manifest_fits_it(
    engine: LoadedEngine, tmp_path: Path
) -> None:
    (tmp_path / "model.int8.onnx").write_bytes(b"\xff")
    sha256 = hash_file(tmp_path / "model.int8.onnx")
    manifest = replace(engine.manifest, outputs={"model.int8.onnx": sha256})
    path = tmp_path / "model.int8.onnx"
    damaged = replace(engine, folder=tmp_path, onnx=path, sha256=sha256, manifest=manifest)
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx is not a whole model; build again: "):
        _ = damaged.outputs
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx is not a whole model; build again: "):
        damaged.runner("engine")


def test_data_is_run_and_the_outputs_are_written(folder: Path, tmp_path: Path) -> None:
    log = Log(Silent())
    outcome = run(folder, str(folder.parent / "data.npz"), output=tmp_path / "out.npz", watcher=log)
    assert (outcome.num_samples, outcome.file) == (20, "model.int8.onnx")
    assert outcome.output == str(tmp_path / "out.npz")
    assert outcome.backend.startswith("onnxruntime ")
    with np.load(tmp_path / "out.npz") as written, load(folder) as engine:
        assert sorted(written.files) == ["file", "y"]
        for name, array in engine.run(data_of(folder)).items():
            np.testing.assert_array_equal(written[name], array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz"]
    assert run(folder, str(folder.parent / "data.npz"), samples=3).outputs["y"].shape == (8, 3)


def test_a_build_whose_gate_failed_runs_with_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = replace(load(folder).report, verdict="fail")
    monkeypatch.setattr("trtq.pipeline.load.read_report", lambda path: failed)
    log = Log(Silent())
    assert run(folder, str(folder.parent / "data.npz"), watcher=log).num_samples == 20
    assert log.warnings == [f"the accuracy gate of {folder} failed; see its report.html"]


def test_feeds_are_run_one_by_one_and_joined(folder: Path, tmp_path: Path) -> None:
    x = data_of(folder)
    for index, count in enumerate((1, 11)):
        np.savez(tmp_path / f"{index}.npz", x=x[:count])
    outcome = run(folder, str(tmp_path))
    assert (outcome.num_samples, outcome.outputs["y"].shape) == (12, (12, 3))


def test_a_model_of_a_fixed_batch_takes_what_does_not_fill_one(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    model = path_of("g (float[8, 4] x) => (float[8, 3] y) { y = MatMul (x, w) }", w=weights)
    data = str(tmp_path / "c.npz")
    np.savez(data, x=np.random.default_rng(0).normal(size=(11, 4)).astype(np.float32))
    spec = ModelSpec(calibration=CalibrationSpec(data=data, method="minmax"), quantization=QUICK)
    built = build(model, spec=spec, target=Target(backend="onnxruntime")).output
    assert run(built, data).outputs["y"].shape == (11, 3)


def test_samples_that_fill_no_batch_are_told_where_nothing_is_filled_up(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    model = path_of("g (float[4, 4] x) => (float[1, 4] y) { y = ReduceMean (x, axes) }", axes=np.array([0]))
    data = str(tmp_path / "c.npz")
    np.savez(data, x=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    built = build(model, target=Target(backend="onnxruntime", precision="fp16")).output
    log = Log(Silent())
    assert run(built, data, watcher=log).num_samples == 4
    assert log.warnings == [
        f"the last 2 samples of {data} do not fill a batch of the model's fixed size and are not run"
    ]


def test_outputs_that_cannot_be_joined_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadedEngine, "run", lambda self, feed: {"y": np.zeros((7, len(feed["x"])))})
    with pytest.raises(
        DataError,
        match=r"^output y float32 \(N, 3\) has shape \(7, 8\) for 8 samples, and nothing says .* cannot be "
        r"cut or joined; run the feeds one by one in Python, with trtq\.load\(\.\.\.\)\.run\(\.\.\.\)$",
    ):
        run(folder, str(folder.parent / "data.npz"), output=tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


def test_an_output_without_samples_is_not_joined_over_the_data(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    nodes = "y = MatMul (x, w) c = Relu (k)"
    model = path_of(f"g (float[N, 4] x) => (float[N, 3] y, float[8, 4] c) {{ {nodes} }}", w=weights,
                    k=np.ones((8, 4), np.float32))  # fmt: skip
    data = str(tmp_path / "c.npz")
    np.savez(data, x=np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32))
    spec = ModelSpec(calibration=CalibrationSpec(data=data, method="minmax"), quantization=QUICK)
    built = build(model, spec=spec, target=Target(backend="onnxruntime")).output
    with pytest.raises(DataError, match=r"^output c float32 \(8, 4\) has shape \(8, 4\) for 8 samples, and"):
        run(built, data)
    assert run(built, data, samples=8).outputs["c"].shape == (8, 4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"output": "out.npy"}, r"^outputs are written as \.npz, got out\.npy; name a file that ends so$"),
        (
            {"backend": "tensorrt"},
            r"for onnxruntime, it cannot be run by 'tensorrt'; use onnxruntime$",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=told):
        run(folder, "data.npz", **given)


@pytest.fixture(scope="module")
def rtx_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of the same model with an engine of TensorRT-RTX."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    calibration = CalibrationSpec(data=str(folder.parent / "data.npz"), method="minmax")
    spec = ModelSpec(calibration=calibration, quantization=QUICK)
    output = tmp_path_factory.mktemp("rtx") / "m.trtq"
    build(folder.parent / "m.onnx", spec=spec, target=Target(backend="tensorrt-rtx"), output=output)
    return output


@pytest.mark.skipif(not explain_missing_gpu(), reason="there is a GPU, see tests/gpu/test_run.py")
def test_without_a_gpu_an_engine_of_tensorrt_rtx_says_what_can_be_run_and_that_runs(rtx_folder: Path) -> None:
    with pytest.raises(
        MissingDependency,
        match=r"^backend tensorrt-rtx, for .*m\.trtq: its engines run on an NVIDIA GPU, and there is no "
        r"NVIDIA driver here; model\.int8\.onnx of the same folder runs on the CPU, with load\(",
    ):
        load(rtx_folder)
    with load(rtx_folder, backend="onnxruntime") as engine:
        assert repr(engine).endswith("onnxruntime runs model.int8.onnx)")
        assert engine.run(np.ones((20, 4), np.float32))["y"].shape == (20, 3)
    with pytest.raises(
        UsageError, match=r"by 'tensorrt'; use tensorrt-rtx, or onnxruntime for its ONNX model$"
    ):
        load(rtx_folder, backend="tensorrt")


def test_a_folder_with_the_float_model_alone_is_not_run_for_its_engine(
    rtx_folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(rtx_folder, tmp_path / "copy")
    manifest = read_manifest(copy)
    outputs = {name: digest for name, digest in manifest.outputs.items() if name != "model.int8.onnx"}
    (copy / "manifest.json").write_bytes(to_json(replace(manifest, outputs=outputs)))
    with pytest.raises(ArtifactError, match=r"holds no model\.int8\.onnx that onnxruntime could run"):
        load(copy, backend="onnxruntime")
    with pytest.raises(MissingDependency, match=r"there is no NVIDIA driver here$"):
        load(copy)
