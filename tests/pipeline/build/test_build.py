"""The whole job with the real TensorRT-RTX builder: what it makes, in each precision, of any data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from recording_watcher import RecordingWatcher
from small_builds import spec_of

from trtq.calibrators.cache import parse_cache
from trtq.calibrators.ranges import read_ranges
from trtq.calibrators.settings import read_spec
from trtq.files import hash_file
from trtq.models.spec import AccuracySpec, CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.target import Target

FILES = [
    "calibration.cache", "manifest.json", "model.engine", "model.fp16.onnx", "model.int8.onnx", "ranges.json",
    "report.html", "report.json", "tensors.json",
]  # fmt: skip
NUM_LAYERS = 11
WITHOUT_ENGINE = Target(backend="onnxruntime")


@pytest.fixture(scope="module")
def quick(demo: Path) -> ModelSpec:
    """The settings of the demo, without a search, of less data."""
    spec = read_spec(demo / "model.toml")
    return replace(
        spec,
        calibration=replace(spec.calibration, method="minmax", samples=128),
        evaluation=replace(spec.evaluation, samples=64),
        quantization=QuantizationSpec(repair=("none",)),
    )


# What the demo's build makes


def test_the_demo_passes_the_gate_with_every_layer_in_int8(built: Report) -> None:
    assert (built.verdict, built.reasons) == ("pass", ())
    assert (built.engine.num_realized, built.engine.layers_quantized) == (NUM_LAYERS, NUM_LAYERS)
    assert built.engine.fallbacks == ()
    assert built.kept_float == ()
    assert all(item.cosine >= 0.99 for item in built.comparison)


def test_the_demo_loses_at_most_a_point_of_accuracy(built: Report) -> None:
    assert built.accuracy["fp32"] > 0.97
    assert built.accuracy["fp32"] - built.accuracy["int8"] <= 0.01
    assert built.evaluated_samples == 600


def test_all_files_are_written(demo: Path, built: Report) -> None:
    assert built.output == str(demo / "model.trtq")
    assert sorted(path.name for path in Path(built.output).iterdir()) == FILES
    assert not [path for path in demo.iterdir() if path.name.startswith(".")]


def test_the_engine_is_a_plan_of_the_reported_size(built: Report) -> None:
    plan = (Path(built.output) / built.engine.path).read_bytes()
    assert plan.startswith(b"vtrt")
    assert len(plan) == built.engine.bytes


@pytest.mark.parametrize("name", ["model.int8.onnx", "model.fp16.onnx"])
def test_the_models_pass_the_full_checker(built: Report, name: str) -> None:
    onnx.checker.check_model(str(Path(built.output) / name), full_check=True)


def test_the_report_has_the_promised_keys(built: Report) -> None:
    document = json.loads((Path(built.output) / "report.json").read_bytes())
    promised: dict[str, set[str]] = {
        "calibration": {"method", "samples", "seconds", "peak_rss_bytes"},
        "engine": {"path", "bytes", "layers_realized", "layers_quantized", "fallbacks"},
        "accuracy": {"fp32", "fp16", "int8"},
    }
    for section, names in promised.items():
        assert names <= set(document[section])
    pairs = {(item["candidate"], item["reference"]) for item in document["comparison"]}
    assert pairs == {("int8", "fp32"), ("int8", "fp16"), ("fp16", "fp32")}
    for item in document["comparison"]:
        assert {"output", "reference", "cosine", "sqnr_db", "max_abs", "top1_agreement"} <= set(item)
    assert set(document["timings_s"]) == {"calibrate", "repair", "quantize", "build", "compare"}
    assert (document["schema_version"], document["verdict"], document["precision"]) == (2, "pass", "int8")
    assert document["backend"].startswith("tensorrt-rtx 1.")
    assert document["engine"]["fallbacks"] == []
    assert document["calibration"]["samples"] == 512
    assert document["calibration"]["peak_rss_bytes"] > 1 << 20


def test_the_report_that_is_returned_is_the_one_that_is_written(small: Path) -> None:
    report = build(small, spec=spec_of(small), target=WITHOUT_ENGINE)
    assert read_report(Path(report.output) / "report.json") == report


def test_the_manifest_holds_the_digest_of_every_file(demo: Path, built: Report) -> None:
    folder = Path(built.output)
    manifest = read_manifest(folder)
    written = [path for path in folder.iterdir() if path.name != "manifest.json"]
    assert manifest.outputs == {path.name: hash_file(path) for path in written}
    assert manifest.inputs[str(demo / "model.onnx")] == hash_file(demo / "model.onnx")
    for use, name in (("calibration", "calibration.npz"), ("evaluation", "evaluation.npz")):
        assert manifest.inputs[f"{use}: {demo / name}"].startswith(hash_file(demo / name))


def test_the_manifest_tells_versions_settings_and_layers(built: Report) -> None:
    manifest = read_manifest(Path(built.output))
    assert f"tensorrt-rtx {manifest.versions['tensorrt-rtx']}" == built.backend
    assert {"python", "trtq", "numpy", "onnx", "onnxruntime", "polygraphy"} <= set(manifest.versions)
    assert manifest.settings["target"]["precision"] == "int8"
    assert manifest.settings["model"]["calibration"]["method"] == "auto"
    assert set(manifest.layers.values()) == {"Int8"}
    assert len(manifest.layers) == NUM_LAYERS


def test_the_cache_holds_the_ranges_as_scales(built: Report) -> None:
    folder = Path(built.output)
    ranges = read_ranges(folder / "ranges.json")
    scales = parse_cache((folder / "calibration.cache").read_bytes()).scales
    assert list(scales) == list(ranges.tensors)
    for name, scale in scales.items():
        exact = ranges.amax(name) / 127
        assert exact <= scale <= float(np.nextafter(np.float32(exact), np.float32(np.inf)))
    assert len(scales) > 1


def test_the_profile_of_a_dynamic_input_comes_from_the_data_and_that_is_said(built: Report) -> None:
    profile = built.engine.profiles["image"]
    assert (profile.min, profile.opt, profile.max) == ((1, 1, 8, 8), (8, 1, 8, 8), (8, 1, 8, 8))
    said = [note for note in built.notes if "'image' is dynamic: profile from the data" in note]
    assert len(said) == 1


def test_the_watcher_is_told_of_every_stage_sample_and_note(small: Path) -> None:
    told = RecordingWatcher()
    spec = ModelSpec(calibration=CalibrationSpec(data=str(small.parent / "data.npz")))
    report = build(small, spec=spec, watcher=told)
    assert told.stages == [
        ("Loading", None),
        ("Calibrating", 16),
        ("Trying repairs", None),
        ("Quantizing", None),
        ("Building with tensorrt-rtx", None),
        ("Comparing", 16),
    ]
    assert {name: sum(seen) for name, seen in told.samples.items()} == {"Calibrating": 16, "Comparing": 16}
    assert told.notes == list(report.notes)
    assert any("'x' is dynamic: profile from the data" in note for note in told.notes)
    assert told.warnings == []


# Other precisions, backends and data


def test_fp16_alone_builds_just_that(demo: Path, quick: ModelSpec, tmp_path: Path) -> None:
    report = build(demo / "model.onnx", spec=quick, target=Target(precision="fp16"), output=tmp_path / "out")
    assert (report.verdict, report.precision, report.high_precision) == ("pass", "fp16", "fp16")
    assert set(report.accuracy) == {"fp32", "fp16"}
    assert [(item.candidate, item.reference) for item in report.comparison] == [("fp16", "fp32")]
    assert report.engine.layers_quantized == 0
    assert report.calibration is None
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "model.engine", "model.fp16.onnx", "ranges.json", "report.html", "report.json", "manifest.json",
    }  # fmt: skip
    assert set(read_manifest(tmp_path / "out").layers.values()) == {"Half"}


def test_fp16_needs_no_data_for_a_model_with_fixed_shapes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> tiny (float[1,4] x) => (float[1,4] y) { y = Relu (x) }'
    )
    onnx.save(model, tmp_path / "tiny.onnx")
    report = build(tmp_path / "tiny.onnx", target=Target(precision="fp16"))
    assert report.verdict == "unverified"
    assert report.reasons == ("there was no float model or no data to compare with",)
    assert not (tmp_path / "tiny.trtq" / "ranges.json").exists()


def test_a_pattern_to_keep_fp32_that_matches_nothing_is_told_for_fp16_too(small: Path) -> None:
    spec = replace(spec_of(small), layers=LayerSpec(keep_fp32=("secnd",)))
    report = build(small, spec=spec, target=Target(precision="fp16", backend="onnxruntime"))
    assert report.warnings == ("'secnd' matches no node; the nearest names are second",)


@pytest.mark.slow
def test_an_fp32_rest_has_no_fp16_in_it(demo: Path, quick: ModelSpec, tmp_path: Path) -> None:
    target = Target(high_precision="fp32")
    report = build(demo / "model.onnx", spec=quick, target=target, output=tmp_path / "out")
    assert (report.verdict, report.high_precision) == ("pass", "fp32")
    assert report.engine.num_realized == NUM_LAYERS
    graph = onnx.load(tmp_path / "out" / "model.int8.onnx").graph
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in graph.initializer}
    assert "Cast" not in {node.op_type for node in graph.node}


def test_an_fp16_rest_is_the_default(built: Report) -> None:
    assert built.high_precision == "fp16"
    graph = onnx.load(Path(built.output) / "model.int8.onnx").graph
    kinds = {tensor.data_type for tensor in graph.initializer}
    assert {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8} <= kinds
    assert onnx.TensorProto.FLOAT not in kinds


def test_onnxruntime_runs_the_int8_model_itself(demo: Path, quick: ModelSpec, tmp_path: Path) -> None:
    report = build(demo / "model.onnx", spec=quick, target=WITHOUT_ENGINE, output=tmp_path / "out")
    assert report.verdict == "pass"
    assert report.backend.startswith("onnxruntime 1.")
    assert report.high_precision == "fp32"
    assert report.engine.path == "model.int8.onnx"
    assert report.engine.bytes == (tmp_path / "out" / "model.int8.onnx").stat().st_size
    assert not (tmp_path / "out" / "model.engine").exists()
    assert report.engine.layers_quantized == NUM_LAYERS
    assert len(report.engine.fallbacks) == NUM_LAYERS - report.engine.num_realized


def test_random_data_leaves_the_build_unverified(small: Path) -> None:
    watcher = RecordingWatcher()
    report = build(small, random_data=True, watcher=watcher)
    assert report.verdict == "unverified"
    assert report.reasons == ("the data was random, so its accuracy means nothing",)
    assert report.calibration is not None
    assert report.calibration.random
    assert (
        watcher.warnings
        == list(report.warnings)
        == ["calibrating with random numbers: the accuracy of this engine means nothing"]
    )
    assert read_ranges(Path(report.output) / "ranges.json").is_random


def test_a_failed_gate_names_the_output_and_the_samples(demo: Path, quick: ModelSpec, tmp_path: Path) -> None:
    spec = replace(quick, accuracy=AccuracySpec(min_cosine=1.0))
    report = build(demo / "model.onnx", spec=spec, target=WITHOUT_ENGINE, output=tmp_path / "out")
    assert report.verdict == "fail"
    assert report.reasons[0].startswith("output 'logits' has cosine ")
    assert "the gate requires 1; worst samples: " in report.reasons[0]
    assert read_report(tmp_path / "out" / "report.json").verdict == "fail"


@pytest.mark.slow
def test_skipped_layers_stay_float(demo: Path, quick: ModelSpec, tmp_path: Path) -> None:
    spec = replace(quick, layers=LayerSpec(skip=("^block1", "head")))
    report = build(demo / "model.onnx", spec=spec, output=tmp_path / "out")
    assert [(item.name, item.reason) for item in report.kept_float] == [
        ("block1.first.conv/Conv", "skipped by '^block1'"),
        ("block1.second.conv/Conv", "skipped by '^block1'"),
        ("head/Gemm", "skipped by 'head'"),
    ]
    assert report.engine.num_realized == report.engine.layers_quantized == NUM_LAYERS - 3
    layers = read_manifest(tmp_path / "out").layers
    assert {layers[item.name] for item in report.kept_float} == {"Half"}


def test_a_pattern_that_matches_nothing_warns_with_the_nearest_names(small: Path) -> None:
    spec = replace(spec_of(small), layers=LayerSpec(skip=("frist",)))
    report = build(small, spec=spec, target=WITHOUT_ENGINE)
    assert report.warnings == ("'frist' matches no node; the nearest names are first",)
    assert report.engine.layers_quantized == 1


def test_a_model_without_quantizable_layers_is_built_in_float(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        attention (float[2,4,4] a, float[2,4,4] b) => (float[2,4,4] c) { [product] c = MatMul (a, b) }
    """)
    onnx.save(model, tmp_path / "m.onnx")
    numbers = np.random.default_rng(0).standard_normal((4, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", a=numbers, b=numbers)
    spec = ModelSpec(calibration=CalibrationSpec(data=str(tmp_path / "data.npz")))
    report = build(tmp_path / "m.onnx", spec=spec)
    assert report.warnings == ("no layer can be quantized; the report says why",)
    assert [(item.name, item.reason) for item in report.kept_float] == [
        ("product", "two-activations: TensorRT fuses attention in float; INT8 with Attention in --op-types")
    ]
    assert (report.engine.layers_quantized, report.engine.num_realized) == (0, 0)
    assert (report.verdict, report.calibration) == ("unverified", None)
    assert report.reasons == ("no layer is quantized: float was compared with float",)
    assert not (tmp_path / "m.trtq" / "calibration.cache").exists()


def test_tensorrt_rtx_runs_int8_with_one_scale_a_weight(small: Path) -> None:
    quantization = QuantizationSpec(("none",), "per-tensor")
    report = build(small, spec=replace(spec_of(small), quantization=quantization))
    assert (report.engine.num_realized, report.engine.layers_quantized, report.engine.fallbacks) == (2, 2, ())
    graph = onnx.load(Path(report.output) / "model.int8.onnx").graph
    scales = {node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    assert [tuple(item.dims) for item in graph.initializer if item.name in scales] == [()] * 4
