"""Tests of what `trtq bench` puts beside each other, and of the inputs for all of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.errors import ArtifactError, DataError, MissingDependency, ModelError, TrtqError, UsageError
from trtq.files import hash_file
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline import load as loading
from trtq.pipeline.bench import runnables as module
from trtq.pipeline.bench.runnables import RunOptions, list_runnables
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import NAME, read_manifest, to_json
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.engine.backend import Backend, BuildRequest, BuiltEngine
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.load import fit

PLAN = {"inputs": {"x": [-1, 4]}, "outputs": {"y": [-1, 4]}, "profile": {"x": [[1, 4], [2, 4], [8, 4]]}}


class Builder(Backend):
    """A backend whose plans running_tensorrt runs."""

    name = "tensorrt"

    def version(self) -> str:
        return "10.3.0"

    def build(self, request: BuildRequest) -> BuiltEngine:
        return BuiltEngine(json.dumps(PLAN).encode(), (), targets=("8.6",))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has trtq believe in a GPU of compute capability 8.6, and in a TensorRT for it."""
    backends = {**BACKENDS, "tensorrt": Builder()}
    monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", backends)
    monkeypatch.setattr(loading, "BACKENDS", backends)
    monkeypatch.setattr(fit, "find_compute_capability", lambda: "8.6")
    monkeypatch.setattr(module, "count_gpus", lambda: 1)
    monkeypatch.setattr(module, "explain_missing_gpu", lambda: "")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "c.npz", x=np.arange(64, dtype=np.float32).reshape(16, 4))
    return tmp_path / "c.npz"


def built(model: Path, data: Path, **target: Any) -> Path:
    spec = ModelSpec(calibration=CalibrationSpec(data=str(data), batch_size=2))
    return Path(build(model, spec=spec, target=Target(**target)).output)


def seen(*targets: Path, **runs: Any) -> list[tuple[str, str, str, str]]:
    found, _, _ = list_runnables(targets, RunOptions(**runs))
    return [(item.name, item.precision, item.device, item.request.path.name) for item in found]


def test_of_a_folder_everything_is_taken_that_can_run(model: Path, data: Path, one_gpu: None) -> None:
    folder = built(model, data, backend="tensorrt")
    assert seen(folder) == [
        ("fp32", "fp32", "cpu", model.name),
        ("fp16", "fp16", "cpu", "model.fp16.onnx"),
        ("int8", "int8", "cpu", "model.int8.onnx"),
        ("int8 engine", "int8", "cuda", "model.engine"),
    ]
    found, skipped, inputs = list_runnables([folder], RunOptions(num_threads=3, graph=False))
    assert skipped == ()
    assert [item.high_precision for item in found] == ["", "", "fp16", "fp16"]
    assert {item.request.num_threads for item in found[:3]} == {3}
    plan = found[3].request
    assert (plan.kind, plan.modules, plan.graph) == ("plan", ("tensorrt",), False)
    assert plan.sha256 == read_manifest(folder).outputs["model.engine"]
    assert inputs.num_samples == 2  # as in the engine's profile
    assert inputs.origin == f"the first 2 samples of {data}"
    assert inputs.feed is not None
    np.testing.assert_array_equal(inputs.feed["x"], np.arange(8).reshape(2, 4))


def test_without_a_gpu_the_engine_is_left_out_and_why_is_said(
    model: Path, data: Path, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(model, data, backend="tensorrt")
    for why in ("there is no NVIDIA driver", "the NVIDIA driver shows no usable GPU"):
        monkeypatch.setattr(module, "explain_missing_gpu", lambda why=why: why)
        _, (skipped,), _ = list_runnables([folder], RunOptions())
        assert (skipped.name, skipped.reason) == (
            "int8 engine",
            f"{folder / 'model.engine'} needs an NVIDIA GPU to run, and {why} here",
        )
        with pytest.raises(
            MissingDependency, match=rf"model\.engine needs an NVIDIA GPU to run, and {why} here$"
        ):
            list_runnables([folder / "model.engine"], RunOptions())


def test_an_engine_in_its_folder_is_the_one_that_was_built(model: Path, data: Path, one_gpu: None) -> None:
    folder = built(model, data, backend="tensorrt")
    (item,), _, inputs = list_runnables([folder / "model.engine"], RunOptions())
    assert (item.name, item.precision, item.request.modules) == ("engine", "int8", ("tensorrt",))
    assert item.request.sha256 == read_manifest(folder).outputs["model.engine"]
    assert inputs.feed is None
    (folder / "model.engine").write_bytes(b"another")
    with pytest.raises(
        ArtifactError, match=r"model\.engine is not the file that was built: its SHA-256 does not"
    ):
        list_runnables([folder / "model.engine"], RunOptions())


def test_a_float_model_of_two_builds_is_measured_once(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    other = shutil.copytree(folder, model.parent / "other.trtq")
    names = [item[0] for item in seen(folder, other, model)]
    first, second = ([f"{each.name} {name}" for name in ("fp16", "int8")] for each in (folder, other))
    assert names == [f"{folder.name} fp32", *first, *second]


def test_an_engine_that_does_not_fit_is_left_out(
    model: Path, data: Path, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(model, data, backend="tensorrt")
    monkeypatch.setattr(fit, "find_compute_capability", lambda: "8.9")
    _, (skipped,), _ = list_runnables([folder], RunOptions())
    assert "for compute capability 8.6; here is tensorrt 10.3.0 on compute capability 8.9" in skipped.reason


def test_a_folder_of_fp16_has_no_third_model(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime", precision="fp16")
    assert [item[0] for item in seen(folder)] == ["fp32", "fp16"]


def test_a_float_model_that_is_gone_is_told(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    model.rename(model.with_suffix(".moved"))
    _, (skipped,), _ = list_runnables([folder], RunOptions())
    assert (skipped.name, skipped.reason) == (
        "fp32",
        f"{model} is gone or was changed since the build; give it as a target too",
    )


def test_a_float_model_in_the_folder_is_taken_from_there(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    manifest = read_manifest(folder)
    shutil.copy(model, folder / "model.float.onnx")
    outputs = {**manifest.outputs, "model.float.onnx": manifest.inputs[str(model)]}
    contract = type(manifest)(manifest.inputs, outputs, {}, {"model": 3})
    (folder / NAME).write_bytes(to_json(contract))
    assert seen(folder)[0] == ("fp32", "fp32", "cpu", "model.float.onnx")


def test_a_model_that_was_quantized_when_it_came_has_no_float(model: Path, data: Path) -> None:
    quantized = built(model, data, backend="onnxruntime") / "model.int8.onnx"
    shutil.copy(quantized, model.parent / "q.onnx")
    target = Target(backend="onnxruntime", shapes=GivenShapes(opt={"x": (2, 4)}))
    folder = Path(build(model.parent / "q.onnx", target=target).output)
    assert [item[0] for item in seen(folder)] == ["int8"]


def test_a_folder_that_is_not_what_was_built_is_refused(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    (folder / "ranges.json").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"is not what was built: changed: ranges\.json; build again$"):
        list_runnables([folder], RunOptions())
    (folder / REPORT).unlink()
    with pytest.raises(ArtifactError, match=r"changed: ranges\.json; missing: report\.json; build again$"):
        list_runnables([folder], RunOptions())


def test_names_tell_targets_and_devices_apart(
    model: Path, data: Path, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    folder = built(model, data, backend="onnxruntime")
    other = shutil.copytree(folder, model.parent / "deep" / folder.name)
    name = folder.name
    names = [item[0] for item in seen(folder, other)]
    assert names[:4] == [f"{name} fp32", f"{name} fp32 cuda", f"{name} fp16", f"{name} fp16 cuda"]
    assert names[6:8] == [f"{name} fp16 #2", f"{name} fp16 cuda #2"]
    assert len(set(names)) == len(names) == 10
    assert {item[2] for item in seen(folder, device="cpu")} == {"cpu"}
    assert {item[2] for item in seen(folder, device="cuda")} == {"cuda"}
    assert [item[0] for item in seen(folder, device="cuda")] == ["fp32", "fp16", "int8"]


def test_of_a_model_the_precision_is_that_of_its_weights(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    files = (model, folder / "model.fp16.onnx", folder / "model.int8.onnx")
    assert [item[:2] for item in seen(*files)] == [
        (model.name, "fp32"),
        ("model.fp16.onnx", "fp16"),
        ("model.int8.onnx", "quantized"),
    ]


def test_a_file_has_the_source_of_its_build_else_its_own_if_it_is_float(model: Path, data: Path) -> None:
    folder = built(model, data, backend="onnxruntime")
    alone = Path(shutil.copy(folder / "model.int8.onnx", model.parent / "alone.onnx"))
    found, _, _ = list_runnables([folder, folder / "model.fp16.onnx", alone], RunOptions())
    assert [item.source for item in found] == [hash_file(model)] * 3 + [""]
    found, _, _ = list_runnables([folder / "model.int8.onnx", model], RunOptions())
    assert [item.source for item in found] == [hash_file(model)] * 2


def test_an_engine_alone_makes_its_inputs_up(tmp_path: Path, one_gpu: None) -> None:
    (tmp_path / "a.plan").write_bytes(b"plan")
    (item,), skipped, inputs = list_runnables([tmp_path / "a.plan"], RunOptions())
    assert (item.name, item.precision, item.device) == ("engine", "engine", "cuda")
    assert item.request.modules == ("tensorrt", "tensorrt_rtx")
    assert (skipped, inputs.feed) == ((), None)


@pytest.mark.parametrize(
    ("runs", "option"),
    [({"batch": 4}, "--batch"), ({"shapes": {"x": (1, 4)}}, "--shapes"), ({"data": "d"}, "--data")],
)
def test_inputs_of_engines_alone_cannot_be_asked_for(
    runs: dict[str, Any], option: str, tmp_path: Path, one_gpu: None
) -> None:
    (tmp_path / "a.plan").write_bytes(b"plan")
    with pytest.raises(
        UsageError,
        match=rf"^{option} has no effect with engines alone, .*; give the build folder, or an \.onnx",
    ):
        list_runnables([tmp_path / "a.plan"], RunOptions(**runs))


# inputs


def feed_of(model: Path, **runs: Any) -> tuple[dict[str, tuple[int, ...]], str, int]:
    _, _, inputs = list_runnables([model], RunOptions(**runs))
    assert inputs.feed is not None
    shapes = {name: array.shape for name, array in inputs.feed.items()}
    return shapes, inputs.origin, inputs.num_samples


def test_without_data_inputs_are_random_numbers_of_one_sample(model: Path) -> None:
    assert feed_of(model) == ({"x": (1, 4)}, "random numbers", 1)
    assert feed_of(model, batch=5) == ({"x": (5, 4)}, "random numbers", 5)
    assert feed_of(model, shapes={"x": (3, 4)}) == ({"x": (3, 4)}, "random numbers", 3)


def test_settings_name_shapes_and_data(model: Path, data: Path) -> None:
    settings = model.with_suffix(".toml")
    settings.write_text("[inputs.x]\nmin = [1, 4]\nopt = [6, 4]\nmax = [8, 4]\n")
    assert feed_of(model)[0] == {"x": (6, 4)}
    settings.write_text(f"[calibration]\ndata = '{data}'\n")
    assert feed_of(model, batch=4) == ({"x": (4, 4)}, f"the first 4 samples of {data}", 4)
    assert feed_of(model, shapes={"x": (3, 4)})[1] == "random numbers"
    data.unlink()
    assert feed_of(model) == ({"x": (1, 4)}, "random numbers", 1)


def test_data_that_is_named_must_be_there(model: Path, data: Path) -> None:
    assert feed_of(model, data=str(data))[1] == f"the first 1 sample of {data}"
    with pytest.raises(DataError, match="there is no data"):
        feed_of(model, data=str(data) + "x")
    with pytest.raises(UsageError, match=r"^--data has its own shapes; leave --shapes out$"):
        feed_of(model, data=str(data), shapes={"x": (1, 4)})


def test_a_batch_of_a_model_with_a_fixed_one_is_refused(path_of: Callable[..., Path]) -> None:
    fixed = path_of("g (float[8, 4] x) => (float[8, 4] y) { y = Relu (x) }")
    assert feed_of(fixed, batch=8)[0] == {"x": (8, 4)}
    with pytest.raises(UsageError, match=r"^--batch 4 cannot be: no first axis is dynamic; 'x' is \(8, 4\)$"):
        feed_of(fixed, batch=4)


def test_a_batch_of_more_samples_than_there_are_is_refused(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    model, data = path_of("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"), tmp_path / "x.npy"
    np.save(data, np.ones((5, 4), np.float32))
    assert feed_of(model, data=str(data), batch=5)[0] == {"x": (5, 4)}
    told = r"^--batch 6 is more than the 5 samples of .*x\.npy; give --data with more, or --shapes for ran"
    with pytest.raises(DataError, match=told):
        feed_of(model, data=str(data), batch=6)


def test_open_axes_that_nothing_tells_are_asked_for(path_of: Callable[..., Path]) -> None:
    open_model = path_of("g (float[N, C, 8] x, float s) => (float[N, C, 8] y) { y = Mul (x, s) }")
    with pytest.raises(
        UsageError,
        match=r"^input 'x' is dynamic, \(N, C, 8\); give --shapes x:\.\.\., or --data with samples for it$",
    ):
        feed_of(open_model)
    assert feed_of(open_model, shapes={"x": (2, 3, 8)})[0] == {"x": (2, 3, 8), "s": ()}


@pytest.mark.parametrize(
    ("targets", "runs", "kind", "told"),
    [
        (
            [],
            {},
            UsageError,
            r"^there is nothing to measure; give a build folder, an \.engine or an \.onnx file$",
        ),
        (["absent"], {}, UsageError, r"^there is no file or folder .*absent$"),
        (["c.npz"], {}, UsageError, r"c\.npz is not a build folder, an \.engine or an \.onnx file$"),
        (["."], {}, ArtifactError, "is not a build folder: cannot read"),
        (
            ["MODEL"],
            {"shapes": {"z": (1, 4)}},
            UsageError,
            r"^shapes are given for 'z', but the inputs are x$",
        ),
        (
            ["MODEL"],
            {"shapes": {"x": (1, 5)}},
            UsageError,
            r"^shape \(1, 5\) does not fit input 'x', which is",
        ),
        (["MODEL"], {"batch": 0}, UsageError, r"^--batch is at least 1, got 0$"),
        (
            ["MODEL"],
            {"batch": 2, "shapes": {"x": (3, 4)}},
            UsageError,
            r"^--batch 2 and the shape \(3, 4\) of 'x' contradict each other; give one of them$",
        ),
        (
            ["MODEL"],
            {"num_threads": -1},
            UsageError,
            r"^--threads is a number of threads, 0 for all cores, got",
        ),
    ],
)
def test_bad_input_is_one_clear_line(
    targets: list[str], runs: dict[str, Any], kind: type[TrtqError], told: str, model: Path, data: Path
) -> None:
    paths = [model if name == "MODEL" else data.parent / name for name in targets]
    with pytest.raises(kind, match=told):
        list_runnables(paths, RunOptions(**runs))


def test_models_with_other_inputs_are_measured_apart(model: Path, path_of: Callable[..., Path]) -> None:
    other = path_of("g (float[N, 4] z) => (float[N, 4] y) { y = Relu (z) }")
    with pytest.raises(
        ModelError, match=r"takes z float32, .* takes x float32; give models with the same inputs$"
    ):
        list_runnables([model, other], RunOptions())


def test_a_folder_with_nothing_that_runs_is_told(model: Path, data: Path, one_gpu: None) -> None:
    folder = built(model, data, backend="onnxruntime")
    for name in ("model.fp16.onnx", "model.int8.onnx"):
        (folder / name).unlink()
    manifest = read_manifest(folder)
    outputs = {name: digest for name, digest in manifest.outputs.items() if not name.endswith(".onnx")}
    (folder / NAME).write_bytes(to_json(type(manifest)(manifest.inputs, outputs, {}, {})))
    model.unlink()
    with pytest.raises(UsageError, match=r"has nothing to measure$"):
        list_runnables([folder], RunOptions())
