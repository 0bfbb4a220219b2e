"""From an old cache and the float model to Q/DQ: the same model as from data, scales bit for bit."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recording_watcher import RecordingWatcher

from trtq.calibrators.cache import CalibrationCache, format_cache, parse_cache
from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.errors import ArtifactError
from trtq.models.spec import AccuracySpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.cache import export_cache
from trtq.pipeline.calibrate.data import find_spec
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.cache_ranges import UncoveredTensor
from trtq.pipeline.inspect import FolderSummary, inspect
from trtq.pipeline.migrate import migrate
from trtq.pipeline.verify import verify

ORT = Target(backend="onnxruntime", shapes=GivenShapes(opt={"image": (8, 1, 8, 8)}))
ORT_PLAIN = Target(backend="onnxruntime")
NO_DATA = ModelSpec()
FILES = {
    "calibration.cache", "manifest.json", "migration.json", "model.fp16.onnx", "model.int8.onnx",
    "ranges.json", "report.html", "report.json", "tensors.json",
}  # fmt: skip


def activation_scales(path: Path) -> dict[str, bytes]:
    """Returns the bytes of the scale of each quantized tensor in a Q/DQ model."""
    graph = onnx.load(path).graph
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    return {
        node.input[0]: arrays[node.input[1]].tobytes()
        for node in graph.node
        if node.op_type == "QuantizeLinear"
    }


# The same as from data


def test_a_migrated_model_is_the_one_built_from_data(
    demo: Path, built: Report, cache: Path, tmp_path: Path
) -> None:
    migrated = migrate(demo, cache, target=ORT, output=tmp_path / "out")
    ours, theirs = (folder / "model.int8.onnx" for folder in (tmp_path / "out", Path(built.output)))
    assert ours.read_bytes() == theirs.read_bytes()
    assert migrated.report.accuracy == built.accuracy
    assert (migrated.report.verdict, migrated.report.high_precision) == ("pass", "fp32")
    assert migrated.report.engine.layers_quantized == built.engine.layers_quantized
    pairs = {(item.candidate, item.reference): item for item in built.comparison}
    assert migrated.report.comparison == tuple(pairs.values())
    assert (migrated.outcome.num_rounded, migrated.outcome.largest_rise) == (0, 0.0)
    assert (migrated.outcome.migration.uncovered, migrated.outcome.migration.unmapped) == ((), ())


def test_the_cache_of_a_build_migrates(demo: Path, built: Report, tmp_path: Path) -> None:
    source = Path(built.output) / "calibration.cache"
    migrated = migrate(demo, source, target=ORT, output=tmp_path / "out")
    assert migrated.report.accuracy["int8"] == built.accuracy["int8"]
    scales = parse_cache(source.read_bytes()).scales
    wanted = {name: struct.pack("<f", scale) for name, scale in scales.items()}
    assert activation_scales(tmp_path / "out" / "model.int8.onnx") == wanted


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_scales_are_those_of_the_cache_bit_for_bit(
    demo: Path, ranges: Ranges, tmp_path: Path, data: st.DataObject
) -> None:
    bits = {name: data.draw(st.integers(0x00800000, 0x7BFFFFFF)) for name in ranges.tensors}
    text = "TRT-8601-EntropyCalibration2\n" + "".join(f"{name}: {bit:x}\n" for name, bit in bits.items())
    (tmp_path / "old.cache").write_text(text)
    migrate(demo, tmp_path / "old.cache", spec=NO_DATA, target=ORT, output=tmp_path / "out")
    assert activation_scales(tmp_path / "out" / "model.int8.onnx") == {
        name: struct.pack("<I", bit) for name, bit in bits.items()
    }
    assert (tmp_path / "out" / "calibration.cache").read_text() == text


def test_in_fp16_scales_are_rounded_up_and_that_is_told(demo: Path, cache: Path, tmp_path: Path) -> None:
    heard = RecordingWatcher()
    target = replace(ORT, high_precision="fp16")
    migrated = migrate(demo, cache, target=target, output=tmp_path / "out", watcher=heard)
    scales = parse_cache(cache.read_bytes()).scales
    found = activation_scales(tmp_path / "out" / "model.int8.onnx")
    rises = [
        float(np.frombuffer(made, np.float16)[0]) / scale - 1
        for made, scale in zip(found.values(), scales.values(), strict=True)
    ]
    assert all(0 < rise < 2**-10 for rise in rises)
    assert migrated.outcome.num_rounded == len(rises) == 10
    assert migrated.outcome.largest_rise == max(rises)
    assert migrated.report.high_precision == "fp16"
    assert migrated.report.accuracy["int8"] == pytest.approx(migrated.report.accuracy["fp32"], abs=0.01)
    told = f"10 of 10 scales were rounded up to the model's precision, by at most {max(rises):.2%}"
    assert told in heard.notes
    assert told in migrated.report.notes


def test_a_model_in_fp16_has_scales_in_fp16(path_of: Callable[..., Path], tmp_path: Path) -> None:
    model = path_of(
        "g (float16[N,4] x) => (float16[N,4] y) { y = MatMul(x, w) }", w=np.eye(4, dtype=np.float16)
    )
    (tmp_path / "old.cache").write_bytes(format_cache(CalibrationCache({"x": 1 / 127 * 2})))
    target = Target(backend="onnxruntime", shapes=GivenShapes(opt={"x": (1, 4)}))
    assert (
        migrate(model, tmp_path / "old.cache", target=target, output=tmp_path / "out").outcome.num_rounded
        == 1
    )
    (tmp_path / "old.cache").write_bytes(format_cache(CalibrationCache({"x": 2.0**-7})))
    assert (
        migrate(model, tmp_path / "old.cache", target=target, output=tmp_path / "out").outcome.num_rounded
        == 0
    )


def test_tensorrt_rtx_builds_a_migrated_model(demo: Path, cache: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    target = replace(ORT, backend="tensorrt-rtx")
    engine = migrate(demo, cache, target=target, output=tmp_path / "out").report.engine
    assert (engine.path, engine.num_realized, engine.layers_quantized) == ("model.engine", 11, 11)
    assert engine.bytes == (tmp_path / "out" / "model.engine").stat().st_size


def test_the_settings_may_ask_for_one_scale_a_weight(demo: Path, cache: Path, tmp_path: Path) -> None:
    spec = ModelSpec(quantization=QuantizationSpec(weight_granularity="per-tensor"))
    migrate(demo, cache, spec=spec, target=ORT, output=tmp_path / "out")
    initializers = onnx.load(tmp_path / "out" / "model.int8.onnx").graph.initializer
    assert {item.dims[0] if item.dims else 1 for item in initializers if item.name.endswith("_scale")} == {1}


# What is written and told


def test_a_folder_holds_everything(demo: Path, cache: Path, tmp_path: Path) -> None:
    body = cache.read_bytes().partition(b"\n")[2]
    odd = tmp_path / "odd.cache"
    odd.write_bytes(body.replace(b"\n", b"\r\n") + b"(Unnamed Layer* 8) [Constant]_output: 0\r\n")
    migrated = migrate(demo, odd, target=ORT, output=tmp_path / "out")
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "calibration.cache").read_bytes() == odd.read_bytes()
    manifest = read_manifest(folder)
    assert verify(folder).is_intact
    assert set(manifest.outputs) == FILES - {"manifest.json"}
    assert {str(demo), str(odd)} < set(manifest.inputs)
    assert read_report(folder / "report.json") == migrated.report
    assert read_ranges(folder / "ranges.json").method == (
        "calibration cache by a calibrator that is not named (no header)"
    )
    document = json.loads((folder / "migration.json").read_bytes())
    assert (document["schema_version"], document["kind"]) == (1, "migration")
    assert document["cache"] == {"version": None, "algorithm": None}
    assert document["unmapped"] == [
        {"key": "(Unnamed Layer* 8) [Constant]_output", "reason": "a tensor that TensorRT made itself"}
    ]
    assert len(document["mapped"]) == 10
    summary = inspect(folder)
    assert isinstance(summary, FolderSummary)
    assert summary.intact


def test_the_folder_stands_beside_the_model(built: Report, cache: Path, tmp_path: Path) -> None:
    model = tmp_path / "net.onnx"
    model.write_bytes(Path(built.model).read_bytes())
    report = migrate(model, cache, target=ORT).report
    assert report.output == str(tmp_path / "net.migrated.trtq")
    assert (report.verdict, report.comparison) == ("unverified", ())
    again = migrate(model, cache, target=ORT).report  # and again, over it
    assert replace(again, timings_s=report.timings_s) == report


def test_the_calibration_data_stands_in_for_evaluation_data(demo: Path, cache: Path, tmp_path: Path) -> None:
    spec = ModelSpec(calibration=find_spec(demo).calibration)
    heard = RecordingWatcher()
    target = Target(backend="onnxruntime")
    report = migrate(demo, cache, spec=spec, target=target, output=tmp_path / "out", watcher=heard).report
    assert (report.verdict, report.evaluated_samples) == ("pass", 128)
    assert report.engine.profiles["image"].opt == (8, 1, 8, 8)
    assert any(note.startswith("input 'image' is dynamic: profile from the data") for note in heard.notes)


def test_the_gate_judges_a_migrated_model(demo: Path, cache: Path, tmp_path: Path) -> None:
    wrong = {name: scale / 50 for name, scale in parse_cache(cache.read_bytes()).scales.items()}
    (tmp_path / "wrong.cache").write_bytes(format_cache(CalibrationCache(wrong)))
    spec = replace(find_spec(demo), accuracy=AccuracySpec(min_cosine=0.999))
    report = migrate(demo, tmp_path / "wrong.cache", spec=spec, target=ORT, output=tmp_path / "out").report
    assert report.verdict == "fail"
    assert (tmp_path / "out" / "report.json").is_file()


def test_what_has_no_scale_is_told_and_stays_float(demo: Path, cache: Path, tmp_path: Path) -> None:
    scales = dict(parse_cache(cache.read_bytes()).scales)
    del scales["flatten/Reshape_output_0"]
    partial = tmp_path / "partial.cache"
    partial.write_bytes(format_cache(CalibrationCache({**scales, "old_name": 1.0})))
    heard = RecordingWatcher()
    migrated = migrate(demo, partial, target=ORT, output=tmp_path / "out", watcher=heard)
    reason = "the cache has no scale for 'flatten/Reshape_output_0'"
    assert heard.warnings == [
        f"no scale for 1 tensor, which leaves 1 node unquantized, such as 'head/Gemm': {reason}"
    ]
    assert "no tensor of the model for 1 key of the cache: 'old_name'" in heard.notes
    assert migrated.outcome.migration.uncovered == (
        UncoveredTensor("flatten/Reshape_output_0", reason, ("head/Gemm",)),
    )
    assert [(item.name, item.reason) for item in migrated.report.kept_float] == [("head/Gemm", reason)]
    assert migrated.report.warnings == tuple(heard.warnings)
    nodes = {node.name: node for node in onnx.load(tmp_path / "out" / "model.int8.onnx").graph.node}
    assert nodes["head/Gemm"].input[0] == "flatten/Reshape_output_0"


def test_a_cache_that_covers_little_is_suspected(demo: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.cache"
    few.write_bytes(format_cache(CalibrationCache({"image": 1 / 128, "pool/MaxPool_output_0": 0.125})))
    heard = RecordingWatcher()
    migrate(demo, few, spec=NO_DATA, target=ORT, output=tmp_path / "out", watcher=heard)
    assert heard.warnings[0].startswith("no scale for 8 tensors, which leaves 10 nodes unquantized, such as ")
    assert heard.warnings[0].endswith("; is the cache for another version of the model?")


def test_patterns_that_match_nothing_are_told(demo: Path, cache: Path, tmp_path: Path) -> None:
    spec = ModelSpec(layers=LayerSpec(skip=("^head$",), keep_fp32=("gap",)))
    heard = RecordingWatcher()
    migrate(demo, cache, spec=spec, target=ORT, output=tmp_path / "out", watcher=heard)
    assert heard.warnings[0].startswith("'^head$' matches no node")


def test_a_model_with_nothing_to_quantize_is_told(path_of: Callable[..., Path], tmp_path: Path) -> None:
    model = path_of("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    (tmp_path / "old.cache").write_bytes(b"x: 3c010204\n")
    heard = RecordingWatcher()
    migrate(model, tmp_path / "old.cache", target=ORT_PLAIN, output=tmp_path / "out", watcher=heard)
    assert heard.warnings == ["no layer can be quantized; the report says why"]


@pytest.fixture
def norm(path_of: Callable[..., Path]) -> Path:
    """Two convolutions with a BatchNormalization between, which is folded."""
    ones: dict[str, Any] = {"w": np.ones((4, 4, 1, 1), np.float32), "s": np.ones(4, np.float32)}
    return path_of(
        "g (float[2,4,8,8] x) => (float[2,4,8,8] y) "
        "{ c = Conv(x, w) b = BatchNormalization(c, s, s, s, s) y = Conv(b, w) }",
        **ones,
    )


def test_a_cache_with_the_names_of_the_folded_graph_is_told(norm: Path, tmp_path: Path) -> None:
    (tmp_path / "old.cache").write_bytes(format_cache(CalibrationCache({"x": 1.0, "c": 2.0})))
    heard = RecordingWatcher()
    migrate(norm, tmp_path / "old.cache", target=ORT_PLAIN, output=tmp_path / "out", watcher=heard)
    assert "the cache names tensors as in trtq's own graph, where BatchNormalization is folded" in heard.notes
    assert heard.warnings == []


# And back


def test_ranges_go_out_as_a_cache_and_come_back(norm: Path, ranges: Ranges, tmp_path: Path) -> None:
    (tmp_path / "old.cache").write_bytes(format_cache(CalibrationCache({"x": 1.0, "c": 9.0, "b": 2.0})))
    migrate(norm, tmp_path / "old.cache", target=ORT_PLAIN, output=tmp_path / "out")
    found = read_ranges(tmp_path / "out" / "ranges.json")
    cache = export_cache(found, 8601, "MinMaxCalibration", norm)
    assert cache == CalibrationCache({"x": 1.0, "b": 2.0}, 8601, "MinMaxCalibration")
    assert export_cache(found, 8601, "MinMaxCalibration").scales == {"x": 1.0, "c": 2.0}
    with pytest.raises(ArtifactError, match=r"^these ranges are for another model than .*\.onnx: they hold "):
        export_cache(ranges, 8601, "MinMaxCalibration", norm)
