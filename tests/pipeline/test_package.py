"""Build folders as models of Triton: what of a build gets into the repository."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from rewritten import rewrite
from tritonclient.grpc import model_config_pb2

from trtq.errors import ArtifactError, DataError, GateError, UsageError
from trtq.files import hash_file
from trtq.models.spec import AccuracySpec, CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.triton.config import Serving
from trtq.pipeline.deliver.triton.pbtxt import parse
from trtq.pipeline.engine.target import Target
from trtq.pipeline.package import Package, PackageSpec, package
from trtq.pipeline.sign import sign

TEN = "10.16.1.11"
Install = Callable[[str], None]


@pytest.fixture(scope="module")
def built(demo_onnxruntime: Path) -> Path:
    """The demo, built for ONNX Runtime."""
    return demo_onnxruntime / "model.trtq"


@pytest.fixture
def onnx_folder(built: Path, tmp_path: Path) -> Path:
    """A build for ONNX Runtime, to change."""
    shutil.copytree(built, tmp_path / "model.trtq")
    return tmp_path / "model.trtq"


@pytest.fixture
def folder(onnx_folder: Path) -> Path:
    """The same as if TensorRT had built an engine."""
    (onnx_folder / "model.engine").write_bytes(b"plan" * 100)
    digest = hash_file(onnx_folder / "model.engine")

    def built_by_tensorrt(report: dict[str, Any]) -> None:
        report["backend"] = f"tensorrt {TEN}"
        report["engine"] |= {"path": "model.engine", "targets": ["8.9"]}

    rewrite(onnx_folder, "report.json", built_by_tensorrt)
    rewrite(onnx_folder, "manifest.json", lambda it: it["outputs"].update({"model.engine": digest}))
    return onnx_folder


def config_of(done: Package, name: str) -> Any:
    text = (Path(done.repository) / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_an_engine_gets_a_configuration_that_triton_reads(folder: Path, tmp_path: Path) -> None:
    done = package(folder, tmp_path / "models")
    assert [(item.name, item.version) for item in done.models] == [("model", 1)]
    read = config_of(done, "model")
    assert (read.name, read.platform, read.max_batch_size) == ("model", "tensorrt_plan", 8)
    assert [(item.name, list(item.dims)) for item in (*read.input, *read.output)] == [
        ("image", [1, 8, 8]), ("logits", [10]),
    ]  # fmt: skip
    assert list(read.dynamic_batching.preferred_batch_size) == [8]
    assert hash_file(tmp_path / "models/model/1/model.plan") == hash_file(folder / "model.engine")
    text = (tmp_path / "models/model/config.pbtxt").read_text()
    assert "# profile 0, image: min 1x1x8x8, opt 8x1x8x8, max 8x1x8x8\n" in text
    assert any(f"the engine needs tensorrt {TEN} in the server, and a GPU of" in note for note in done.notes)


def test_the_warm_up_is_the_first_calibration_sample(built: Path, folder: Path, tmp_path: Path) -> None:
    done = package(folder, tmp_path / "models")
    sizes = {item.name: item for item in config_of(done, "model").model_warmup}
    assert [item.batch_size for item in sizes.values()] == [1, 8]
    item = sizes["batch of 8"].inputs["image"]
    assert list(item.dims) == [1, 8, 8]
    raw = (tmp_path / "models/model/warmup" / item.input_data_file).read_bytes()
    with np.load(built.parent / "calibration.npz") as data:
        np.testing.assert_array_equal(np.frombuffer(raw, np.float32), data["image"][0].ravel())


def test_what_is_asked_for_stands_in_the_configuration(folder: Path, tmp_path: Path) -> None:
    serving = Serving(max_batch=4, max_queue_delay_us=500, instances=2, num_versions=None)
    done = package(folder, tmp_path / "models", PackageSpec(name="net", serving=serving))
    read = config_of(done, "net")
    assert read.max_batch_size == 4
    assert list(read.dynamic_batching.preferred_batch_size) == [4]
    assert read.dynamic_batching.max_queue_delay_microseconds == 500
    assert read.instance_group[0].count == 2
    assert read.version_policy.HasField("all")


def test_a_model_that_shall_not_batch_warms_up_with_a_whole_batch(folder: Path, tmp_path: Path) -> None:
    done = package(folder, tmp_path / "models", PackageSpec(serving=Serving(max_batch=0)))
    read = config_of(done, "model")
    assert (read.max_batch_size, list(read.input[0].dims)) == (0, [-1, 1, 8, 8])
    assert [(item.batch_size, list(item.inputs["image"].dims)) for item in read.model_warmup] == [
        (1, [8, 1, 8, 8])
    ]
    assert "requests are not joined to batches: --max-batch 0" in done.notes


def test_the_next_build_is_the_next_version(small: Path, install: Install, tmp_path: Path) -> None:
    install(TEN)
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(small.parent / "data.npz"), method="minmax"),
        quantization=QuantizationSpec(repair=("none",)),
    )
    target = Target(backend="tensorrt")
    folder = build(small, spec=spec, target=target).output
    assert [item.is_new for item in package(folder, tmp_path / "models").models] == [True]
    assert [item.is_new for item in package(folder, tmp_path / "models").models] == [False]
    build(small, spec=spec, target=replace(target, high_precision="fp32"))
    (tmp_path / "models/small/config.pbtxt").write_text("max_batch_size: 8 # by hand\n")
    done = package(folder, tmp_path / "models")
    assert [item.version for item in done.models] == [2]
    assert "small/config.pbtxt was edited and is kept" in done.notes


def test_tensorrt_8_has_no_int64(path_of: Callable[..., Path], install: Install, tmp_path: Path) -> None:
    install("8.6.1")
    weights = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    model = path_of(
        "g (int64[N,4] ids) => (float[N,4,8] y) { e = Gather (t, ids) [mm] y = MatMul (e, w) }",
        t=weights, w=weights[:8],
    )  # fmt: skip
    np.savez(tmp_path / "ids.npz", ids=np.ones((8, 4), np.int64))
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(tmp_path / "ids.npz")), accuracy=AccuracySpec(min_cosine=-1)
    )
    folder = Path(build(model, spec=spec, target=Target(backend="tensorrt")).output)
    options = PackageSpec(name="ids", fallback="onnxruntime", ignore_gate=True)
    done = package(folder, tmp_path / "models", options)
    old, new = (config_of(done, name) for name in ("ids", "ids_onnx"))
    assert (old.input[0].data_type, new.input[0].data_type) == (8, 9)  # TYPE_INT32, TYPE_INT64
    raw = tmp_path / "models/ids/warmup" / old.model_warmup[0].inputs["ids"].input_data_file
    assert raw.read_bytes() == np.ones(4, "<i4").tobytes()
    with pytest.raises(ArtifactError, match=r"'ids' is TYPE_INT32 \[4\] and TYPE_INT64 \[4\]"):
        package(folder, tmp_path / "pair", replace(options, ab_percent=10))


def test_a_pair_gets_a_model_in_front(folder: Path, tmp_path: Path) -> None:
    done = package(folder, tmp_path / "models", PackageSpec(name="net", ab_percent=12.5))
    assert [item.name for item in done.models] == ["net", "net_onnx", "net_ab"]
    assert hash_file(tmp_path / "models/net_onnx/1/model.onnx") == hash_file(folder / "model.int8.onnx")
    assert config_of(done, "net_onnx").optimization.graph.level == -1  # as the gate saw it
    assert config_of(done, "net_ab").parameters["percent_b"].string_value == "12.5"
    compile((tmp_path / "models/net_ab/1/model.py").read_text(), "model.py", "exec")


def test_a_build_for_onnx_runtime_is_served_by_it(onnx_folder: Path, tmp_path: Path) -> None:
    done = package(onnx_folder, tmp_path / "models")
    assert not config_of(done, done.models[0].name).HasField("optimization")
    assert config_of(done, "model").backend == "onnxruntime"
    assert (tmp_path / "models/model/1/model.onnx").is_file()
    with pytest.raises(UsageError, match="is for ONNX Runtime as it is; leave --fallback and --ab out"):
        package(onnx_folder, tmp_path / "models", PackageSpec(fallback="onnxruntime"))


def test_the_python_backend_runs_the_model_of_any_build(folder: Path, tmp_path: Path) -> None:
    spec = PackageSpec(fallback="python")
    done = package(folder, tmp_path / "models", spec)
    assert [(name, config_of(done, name).backend) for name in ("model", "model_onnx")] == [
        ("model", "tensorrt"), ("model_onnx", "python"),
    ]  # fmt: skip
    read = config_of(done, "model_onnx")
    assert (read.platform, read.instance_group[0].Kind.Name(read.instance_group[0].kind)) == ("", "KIND_CPU")
    assert read.optimization.graph.level == -1
    assert {path.name for path in (tmp_path / "models/model_onnx/1").iterdir()} == {
        "model.onnx", "model.py", "__pycache__",
    }  # fmt: skip
    rewrite(folder, "report.json", lambda report: report.update(backend="tensorrt-rtx 1.7.1"))
    assert [item.name for item in package(folder, tmp_path / "rtx", spec).models] == ["model_onnx"]


def test_a_build_for_onnx_runtime_is_served_by_the_python_backend(onnx_folder: Path, tmp_path: Path) -> None:
    done = package(onnx_folder, tmp_path / "models", PackageSpec(fallback="python"))
    assert [item.name for item in done.models] == ["model"]
    assert config_of(done, "model").backend == "python"
    with pytest.raises(ArtifactError, match="backend is python, not onnxruntime"):
        package(onnx_folder, tmp_path / "models")
    with pytest.raises(UsageError, match="--fallback is one of onnxruntime, python, got 'torch'"):
        PackageSpec(fallback="torch")


def test_weights_in_a_second_file_come_along(onnx_folder: Path, tmp_path: Path) -> None:
    (onnx_folder / "model.int8.onnx.data").write_bytes(b"weights")
    digest = hash_file(onnx_folder / "model.int8.onnx.data")
    rewrite(onnx_folder, "manifest.json", lambda it: it["outputs"].update({"model.int8.onnx.data": digest}))
    package(onnx_folder, tmp_path / "models")
    version = tmp_path / "models/model/1/model.onnx"
    assert sorted(path.name for path in version.iterdir()) == ["model.int8.onnx.data", "model.onnx"]


def test_an_engine_of_tensorrt_rtx_is_not_for_triton(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "report.json", lambda report: report.update(backend="tensorrt-rtx 1.7.1"))
    for spec in (PackageSpec(), PackageSpec(ab_percent=10)):
        with pytest.raises(
            ArtifactError, match="was built by TensorRT-RTX, and Triton's TensorRT backend is"
        ):
            package(folder, tmp_path / "models", spec)
    done = package(folder, tmp_path / "models", PackageSpec(fallback="onnxruntime"))
    assert [item.name for item in done.models] == ["model_onnx"]
    assert any("the Q/DQ model alone was packaged" in note for note in done.notes)


def test_a_changed_file_is_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "model.engine").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.engine").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"is not what was built: changed: model\.engine; build again$"):
        package(folder, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_changed_manifest_is_refused(onnx_folder: Path, tmp_path: Path) -> None:
    content = (onnx_folder / "manifest.json").read_bytes()
    (onnx_folder / "manifest.json").write_bytes(content.replace(b"calibration.npz", b"other.npz"))
    with pytest.raises(ArtifactError, match=r"is not what was built: changed: manifest\.json; build again$"):
        package(onnx_folder, tmp_path / "models")


def test_a_model_that_the_manifest_lacks_is_named(onnx_folder: Path, tmp_path: Path) -> None:
    (onnx_folder / "model.int8.onnx").unlink()
    rewrite(onnx_folder, "manifest.json", lambda it: it["outputs"].pop("model.int8.onnx"))
    with pytest.raises(ArtifactError, match=r"has no model\.int8\.onnx by its manifest\.json; build again$"):
        package(onnx_folder, tmp_path / "models")


def test_a_build_is_packaged_if_the_owner_of_the_key_has_signed_it(
    onnx_folder: Path, keys: Callable[[str], Path], tmp_path: Path
) -> None:
    spec = PackageSpec(key=keys("public"))
    with pytest.raises(ArtifactError, match="is not signed"):
        package(onnx_folder, tmp_path / "models", spec)
    sign(onnx_folder, keys("private"))
    with pytest.raises(ArtifactError, match="is not that of"):
        package(onnx_folder, tmp_path / "models", PackageSpec(key=keys("other")))
    assert not (tmp_path / "models").exists()
    assert [item.version for item in package(onnx_folder, tmp_path / "models", spec).models] == [1]


def test_a_build_that_failed_its_gate_needs_a_word(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "report.json", lambda report: report.update(verdict="fail", reasons=["worse"]))
    with pytest.raises(GateError, match=r"the accuracy gate of .* failed: worse; --ignore-gate packages it"):
        package(folder, tmp_path / "models")
    done = package(folder, tmp_path / "models", PackageSpec(ignore_gate=True))
    assert "the build is fail" in done.notes[0]


def test_a_version_compatible_engine_names_the_servers_option(folder: Path, tmp_path: Path) -> None:
    options = {"options": {"version_compatible": True}}
    rewrite(folder, "manifest.json", lambda manifest: manifest["settings"]["target"].update(options))
    done = package(folder, tmp_path / "models")
    assert any("--backend-config=tensorrt,version-compatible=true" in note for note in done.notes)


# Data for the warm-up


def uses_random_data(done: Package) -> bool:
    return bool(config_of(done, done.models[0].name).model_warmup[0].inputs["image"].random_data)


def test_without_the_calibration_data_the_warm_up_is_random(
    built: Path, folder: Path, tmp_path: Path
) -> None:
    data = {"calibration": {"data": "moved.npz"}}
    rewrite(folder, "manifest.json", lambda manifest: manifest["settings"]["model"].update(data))
    done = package(folder, tmp_path / "models")
    assert uses_random_data(done)
    assert any("there is no data moved.npz" in note for note in done.notes)
    given = PackageSpec(warmup_data=str(built.parent / "calibration.npz"))
    assert not uses_random_data(package(folder, tmp_path / "other", given))
    with pytest.raises(DataError, match=r"there is no data nowhere\.npz"):
        package(folder, tmp_path / "third", PackageSpec(warmup_data="nowhere.npz"))


def test_a_script_that_a_manifest_names_is_not_run(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "feeds.py"
    script.write_text("raise SystemExit('was run')\ndef feeds(): ...\n")
    data = {"calibration": {"data": f"{script}:feeds"}}
    rewrite(folder, "manifest.json", lambda manifest: manifest["settings"]["model"].update(data))
    done = package(folder, tmp_path / "models")
    assert uses_random_data(done)
    assert any("is a script, which is not run from here" in note for note in done.notes)


def test_a_build_without_data_warms_up_with_random_bits(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, "manifest.json", lambda manifest: manifest["settings"].update(model={}))
    done = package(folder, tmp_path / "models")
    assert uses_random_data(done)
    assert any("the build names no data" in note for note in done.notes)


def test_a_sample_outside_of_the_profile_does_not_warm_up(built: Path, folder: Path, tmp_path: Path) -> None:
    def narrow(report: dict[str, Any]) -> None:
        report["engine"]["profiles"]["image"] = {kind: [8, 1, 8, 7] for kind in ("min", "opt", "max")}

    rewrite(folder, "report.json", narrow)
    given = PackageSpec(warmup_data=str(built.parent / "calibration.npz"))
    with pytest.raises(DataError, match="outside of the engine's profile, 8x1x8x7 to 8x1x8x7"):
        package(folder, tmp_path / "models", given)


@pytest.mark.parametrize("percent", [-1, 101])
def test_a_share_is_a_percentage(percent: float) -> None:
    with pytest.raises(UsageError, match="--ab is a percentage, 0 to 100"):
        PackageSpec(ab_percent=percent)


def test_the_package_is_read_without_tritonclient(folder: Path, tmp_path: Path) -> None:
    done = package(folder, tmp_path / "models")
    assert parse((tmp_path / "models/model/config.pbtxt").read_text(), "x").max_batch_size == 8
    assert done.repository == str(tmp_path / "models")
