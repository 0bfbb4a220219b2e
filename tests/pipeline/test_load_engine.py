"""Tests of opening a build folder, and of comparing its engine."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plan_builder import Builder

from trtq.errors import ArtifactError, MissingDependency
from trtq.files import hash_file
from trtq.models.session import SessionOptions, open_session
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline import load as module
from trtq.pipeline.build import build
from trtq.pipeline.compare import compare
from trtq.pipeline.deliver.manifest import read_manifest, to_json
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.engine.target import Target
from trtq.pipeline.load import load
from trtq.pipeline.sign import sign


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": builder})
    monkeypatch.setattr(module, "BACKENDS", {**BACKENDS, "tensorrt": builder})
    monkeypatch.setattr("trtq.pipeline.load.fit.find_compute_capability", lambda: "8.6")
    return builder


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    return ModelSpec(calibration=CalibrationSpec(data=str(tmp_path / "c.npz")))


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    return path_of("g (float[N, 4] x) => (float[N, 3] y) { [mm] y = MatMul (x, w) }", w=weights)


@pytest.fixture
def wide(path_of: Callable[..., Path]) -> Path:
    """A model whose INT8 weights are large enough to lie in a file of their own."""
    weights = np.random.default_rng(1).normal(size=(4, 300)).astype(np.float32)
    return path_of("g (float[N, 4] x) => (float[N, 300] y) { [mm] y = MatMul (x, w) }", w=weights)


def _built(model: Path, spec: ModelSpec, backend: Builder, **options: Any) -> Path:
    backend.model = model
    target = Target(backend="tensorrt", options=BuilderOptions(**options))
    return Path(build(model, spec=spec, target=target).output)


def test_an_engine_that_fits_is_compared_by_running_it(
    model: Path, spec: ModelSpec, backend: Builder
) -> None:
    folder = _built(model, spec, backend)
    assert load(folder).report.engine.targets == ("8.6",)
    (output,) = compare(model, folder, spec=spec).outputs
    assert output.candidate == folder.name
    assert output.max_abs == 0.0


@pytest.mark.parametrize(("here", "options"), [("10.3.0", {}), ("10.16.1", {"version_compatible": True})])
def test_the_same_version_or_a_later_one_where_that_was_built_for_is_taken(
    here: str, options: dict[str, bool], model: Path, spec: ModelSpec, backend: Builder
) -> None:
    folder = _built(model, spec, backend, **options)
    backend.number = here
    assert load(folder).onnx is None


@pytest.mark.parametrize(
    ("here", "options"),
    [
        ("10.16.1", {}),
        ("10.2.0", {"version_compatible": True}),
        ("11.0.0", {"version_compatible": True}),
    ],
)
def test_an_engine_of_another_version_is_refused_and_both_are_named(
    here: str, options: dict[str, bool], model: Path, spec: ModelSpec, backend: Builder
) -> None:
    folder = _built(model, spec, backend, **options)
    backend.number = here
    with pytest.raises(
        ArtifactError,
        match=r"model\.engine was built by tensorrt 10\.3\.0 for compute capability 8\.6; here is tensorrt "
        rf"{here} on compute capability 8\.6; build it again here, or with --version-compatible for later "
        r"versions of the same major one$",
    ):
        load(folder)


def test_all_that_does_not_fit_is_said_at_once(
    model: Path, spec: ModelSpec, backend: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _built(model, spec, backend)
    backend.number = "10.16.1"
    monkeypatch.setattr("trtq.pipeline.load.fit.find_compute_capability", lambda: "8.9")
    with pytest.raises(
        ArtifactError,
        match=r"was built by tensorrt 10\.3\.0 for compute capability 8\.6; here is tensorrt 10\.16\.1 on "
        r"compute capability 8\.9; build it again here, or with --version-compatible .* and --hardware-comp",
    ):
        load(folder)
    monkeypatch.setattr("trtq.pipeline.load.fit.find_compute_capability", lambda: "")
    with pytest.raises(
        ArtifactError, match=r"8\.6; here is tensorrt 10\.16\.1; build it again here, or with "
    ):
        load(folder)


@pytest.mark.parametrize(("here", "level"), [("", "none"), ("8.9", "ampere+"), ("9.0", "ampere+")])
def test_a_gpu_that_was_built_for_is_taken(
    here: str, level: str, model: Path, spec: ModelSpec, backend: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _built(model, spec, backend, hardware_compatibility=level)
    monkeypatch.setattr("trtq.pipeline.load.fit.find_compute_capability", lambda: here)
    assert load(folder).onnx is None


@pytest.mark.parametrize(("here", "level"), [("8.9", "none"), ("7.5", "ampere+")])
def test_an_engine_for_another_gpu_is_refused_and_both_are_named(
    here: str, level: str, model: Path, spec: ModelSpec, backend: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _built(model, spec, backend, hardware_compatibility=level)
    monkeypatch.setattr("trtq.pipeline.load.fit.find_compute_capability", lambda: here)
    with pytest.raises(
        ArtifactError,
        match=r"was built by tensorrt 10\.3\.0 for compute capability 8\.6; here is tensorrt 10\.3\.0 on "
        rf"compute capability {here}; build it again here, or with --hardware-compatibility for other GPUs$",
    ):
        load(folder)


def test_a_changed_engine_is_refused(model: Path, spec: ModelSpec, backend: Builder) -> None:
    folder = _built(model, spec, backend)
    (folder / "model.engine").write_bytes(b"another")
    with pytest.raises(
        ArtifactError, match=r"model\.engine is not the file that was built: its SHA-256 does"
    ):
        load(folder)


def test_an_engine_that_changes_after_it_was_loaded_is_not_run(
    model: Path, spec: ModelSpec, backend: Builder
) -> None:
    folder = _built(model, spec, backend)
    engine = load(folder)
    assert engine.plan() == model.read_bytes()
    (folder / "model.engine").write_bytes(b"another")
    with pytest.raises(
        ArtifactError, match=r"model\.engine was changed since it was loaded; load the folder"
    ):
        engine.runner("engine")
    (folder / "model.engine").unlink()
    with pytest.raises(ArtifactError, match=r"^cannot read .*model\.engine: No such file or directory$"):
        engine.plan()


def test_a_changed_report_or_manifest_is_refused(model: Path, spec: ModelSpec, backend: Builder) -> None:
    folder = _built(model, spec, backend)
    report = (folder / "report.json").read_bytes()
    (folder / "report.json").write_bytes(report.replace(b"tensorrt 10", b"tensorrt 11"))
    with pytest.raises(
        ArtifactError, match=r"report\.json is not the file that was built: its SHA-256 does not"
    ):
        load(folder)
    (folder / "report.json").write_bytes(report)
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content.replace(b'"auto"', b'"minmax"', 1))
    with pytest.raises(
        ArtifactError, match=r"manifest\.json is not the file that was written: its own SHA-256"
    ):
        load(folder)


def test_a_model_whose_weights_were_changed_is_refused(model: Path, spec: ModelSpec) -> None:
    folder = Path(build(model, spec=spec, target=Target(backend="onnxruntime")).output)
    manifest = read_manifest(folder)
    digest = hashlib.sha256(b"weights").hexdigest()
    outputs = {**manifest.outputs, "model.int8.onnx.data": digest}
    (folder / "manifest.json").write_bytes(
        to_json(replace(manifest, outputs=outputs, settings={"target": 3}))
    )
    (folder / "model.int8.onnx.data").write_bytes(b"weights")
    assert load(folder).onnx == folder / "model.int8.onnx"
    (folder / "model.int8.onnx.data").write_bytes(b"others")
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx\.data is not the file that was built"):
        load(folder)


@pytest.mark.parametrize("path", ["../model.engine", "/etc/passwd", "a/model.engine", "..", ""])
def test_an_engine_outside_the_folder_is_refused(
    path: str, model: Path, spec: ModelSpec, backend: Builder
) -> None:
    folder = _built(model, spec, backend)
    report = json.loads((folder / "report.json").read_bytes())
    report["engine"]["path"] = path
    (folder / "report.json").write_text(json.dumps(report))
    manifest = read_manifest(folder)
    outputs = {**manifest.outputs, "report.json": hash_file(folder / "report.json")}
    (folder / "manifest.json").write_bytes(to_json(replace(manifest, outputs=outputs)))
    with pytest.raises(
        ArtifactError,
        match=rf"report\.json names the engine '{path}', which is not a file of the folder; build again$",
    ):
        load(folder)


def test_a_model_that_changes_after_it_was_loaded_is_not_run(model: Path, spec: ModelSpec) -> None:
    engine = load(build(model, spec=spec, target=Target(backend="onnxruntime")).output)
    assert engine.onnx is not None
    engine.onnx.write_bytes(model.read_bytes())
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx was changed since it was loaded; load the"):
        engine.runner("engine")


@pytest.mark.parametrize("limit", [1 << 30, 1])
def test_what_is_run_is_what_was_checked_even_if_the_files_are_swapped_meanwhile(
    limit: int, wide: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtq.models.session.INLINE_LIMIT_BYTES", limit)
    engine = load(build(wide, spec=spec, target=Target(backend="onnxruntime")).output)
    monkeypatch.undo()
    weights = [name for name in engine.manifest.outputs if name.endswith(".int8.onnx.data")]
    assert weights == (["model.int8.onnx.data"] if limit == 1 else [])
    assert engine.onnx is not None
    if limit == 1:
        assert (engine.folder / "model.int8.onnx.data").stat().st_size >= 1200
    feed = {"x": np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32)}
    as_users = SessionOptions(fuses_qdq=True)
    (wanted,) = open_session(engine.onnx, optimize=True, engine=as_users).run(None, feed)

    def swap(found: Any, **options: Any) -> Any:
        for path in (engine.folder / name for name in (*weights, "model.int8.onnx")):
            path.write_bytes(b"another")
        return open_session(found, **options)

    monkeypatch.setattr("trtq.pipeline.engine.onnxruntime.open_session", swap)
    with engine.runner("engine") as runner:
        assert np.array_equal(next(iter(runner.infer(feed).values())), wanted)
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx was changed since it was loaded; load the"):
        engine.runner("engine")


def test_weights_that_change_or_lie_outside_after_they_were_loaded_are_not_run(
    wide: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtq.models.session.INLINE_LIMIT_BYTES", 1)
    engine = load(build(wide, spec=spec, target=Target(backend="onnxruntime")).output)
    without = replace(engine, manifest=replace(engine.manifest, outputs={"model.int8.onnx": engine.sha256}))
    with pytest.raises(
        ArtifactError, match=r"has weights in 'model\.int8\.onnx\.data', which is not a file of the build"
    ):
        without.runner("engine")
    (engine.folder / "model.int8.onnx.data").write_bytes(b"another")
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx\.data was changed since it was loaded"):
        engine.runner("engine")
    (engine.folder / "model.int8.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"cannot read .*model\.int8\.onnx: No such file"):
        engine.runner("engine")


def test_an_engine_is_loaded_by_the_key_that_signed_it(
    model: Path, spec: ModelSpec, backend: Builder, keys: Callable[[str], Path]
) -> None:
    folder = _built(model, spec, backend)
    with pytest.raises(ArtifactError, match=r"is not signed: it has no manifest\.sig"):
        load(folder, key=keys("public"))
    sign(folder, keys("private"))
    assert load(folder, key=keys("public")).plan() == model.read_bytes()
    with pytest.raises(ArtifactError, match=r"^the signature of .* is not that of .*other: "):
        load(folder, key=keys("other"))


def test_settings_that_are_none_have_no_options(model: Path, spec: ModelSpec, backend: Builder) -> None:
    folder = _built(model, spec, backend)
    manifest = read_manifest(folder)
    for settings in ({"target": 3}, {"target": {"options": 3}}, {}):
        (folder / "manifest.json").write_bytes(to_json(replace(manifest, settings=settings)))
        assert load(folder).onnx is None


def test_a_backend_that_does_not_work_here_is_told(model: Path, spec: ModelSpec, backend: Builder) -> None:
    folder = _built(model, spec, backend)
    backend.reason = "there is no NVIDIA driver"
    with pytest.raises(
        MissingDependency,
        match=r"^backend tensorrt, for .*: there is no NVIDIA driver; model\.int8\.onnx of the same folder "
        r'runs on the CPU, with load\(\.\.\., backend="onnxruntime"\) or trtq run --backend onnxruntime$',
    ):
        load(folder)


def test_a_backend_of_another_trtq_is_refused(
    model: Path, spec: ModelSpec, backend: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _built(model, spec, backend)
    monkeypatch.setattr(module, "BACKENDS", {})
    with pytest.raises(ArtifactError, match=r"was built by 'tensorrt', which this trtq does not know$"):
        load(folder)


def test_the_model_of_onnx_runtime_is_compared_by_running_it(model: Path, spec: ModelSpec) -> None:
    report = build(model, spec=spec, target=Target(backend="onnxruntime"))
    engine = load(report.output)
    assert engine.onnx == Path(report.output) / "model.int8.onnx"
    assert isinstance(engine.backend, OnnxRuntime)
    (output,) = compare(model, report.output, spec=spec).outputs
    assert output.candidate == Path(report.output).name
    with engine.runner("engine") as runner:
        assert runner.infer({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 3)


def test_a_model_that_is_exchanged_after_it_was_checked_is_not_compared(
    model: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build(model, spec=spec, target=Target(backend="onnxruntime"))
    folder = Path(report.output)

    def exchange(*_: object) -> None:
        shutil.copy(model, folder / "model.int8.onnx")

    monkeypatch.setattr("trtq.pipeline.compare.require_same_inputs", exchange)
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx was changed since it was loaded; load"):
        compare(model, folder, spec=spec)


def test_an_engine_that_trtq_does_not_run_is_told(model: Path, spec: ModelSpec, backend: Builder) -> None:
    folder = _built(model, spec, backend)
    backend.runs = False
    with pytest.raises(
        ArtifactError,
        match=r"model\.engine is an engine of tensorrt, which trtq does not run; use model\.int8",
    ):
        compare(model, folder, spec=spec)


def test_a_folder_that_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a build folder: cannot read"):
        load(tmp_path)
