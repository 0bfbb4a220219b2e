"""Each stage as a call of its own: what one writes, the next one takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from opset_23 import needs_opset_23
from recording_watcher import RecordingWatcher

from trtq.calibrators.ranges import Ranges, ranges_to_json, read_ranges
from trtq.calibrators.settings import read_spec
from trtq.errors import ArtifactError, DataError, ModelError, UsageError
from trtq.models import session
from trtq.models.spec import (
    CalibrationSpec,
    EvaluationSpec,
    LayerSpec,
    ModelSpec,
    QuantizationSpec,
)
from trtq.pipeline.build import build
from trtq.pipeline.calibrate import calibrate
from trtq.pipeline.compare import compare, name_compared
from trtq.pipeline.engine.target import Target
from trtq.pipeline.quantize import measure_model, quantize


@pytest.fixture(scope="module")
def demo(demo_build: tuple[Path, Any]) -> Path:
    return demo_build[0] / "model.onnx"


@pytest.fixture(scope="module")
def ranges(demo: Path) -> Ranges:
    """What the demo's build found, which `calibrate` finds too."""
    return read_ranges(demo.parent / "model.trtq" / "ranges.json")


def write_identity(path: Path, dtype: str = "float", name: str = "x") -> Path:
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 19]> g ({dtype}[N,2] {name}) => ({dtype}[N,2] y) '
        f"{{ y = Identity ({name}) }}"
    )
    onnx.save(model, path)
    return path


@pytest.mark.slow
def test_the_stages_make_the_files_of_the_build(demo: Path, tmp_path: Path) -> None:
    spec = read_spec(demo.parent / "model.toml")
    spec = replace(spec, calibration=replace(spec.calibration, method="entropy", samples=64))
    spec = replace(spec, quantization=QuantizationSpec(repair=("none",)))
    spec = replace(spec, evaluation=replace(spec.evaluation, samples=64))
    target = Target(backend="onnxruntime", high_precision="fp16")
    report = build(demo, spec=spec, target=target, output=tmp_path / "out")
    ranges = calibrate(demo, spec=spec)
    assert read_ranges(tmp_path / "out" / "ranges.json") == ranges
    written = quantize(demo, ranges, tmp_path / "staged.onnx", spec=spec, target=target)
    assert written == tmp_path / "staged.onnx"
    assert onnx.load(written) == onnx.load(tmp_path / "out" / "model.int8.onnx")
    comparison = compare(demo, written, spec=spec)
    assert comparison.accuracy == {
        "model.onnx": report.accuracy["fp32"],
        "staged.onnx": report.accuracy["int8"],
    }
    ours = comparison.outputs[0]
    theirs = next(item for item in report.comparison if (item.candidate, item.reference) == ("int8", "fp32"))
    assert (ours.cosine, ours.max_abs) == (theirs.cosine, theirs.max_abs)
    assert (ours.candidate, ours.reference) == ("staged.onnx", "model.onnx")


def test_ranges_survive_their_file(ranges: Ranges, tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_bytes(ranges_to_json(ranges))
    assert read_ranges(tmp_path / "ranges.json") == ranges


def test_the_calibrated_tensors_follow_the_skipped_layers(demo: Path, ranges: Ranges) -> None:
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(demo.parent / "calibration.npz"), samples=8),
        layers=LayerSpec(skip=("^stem",)),
    )
    watcher = RecordingWatcher()
    fewer = calibrate(demo, spec=spec, watcher=watcher)
    assert set(ranges.tensors) - set(fewer.tensors) == {"image"}
    assert (fewer.num_samples, sum(watcher.samples["Calibrating"])) == (8, 8)
    assert watcher.notes[0] == "raised the opset from 18 to 19"
    assert watcher.notes[1].startswith("no repair is tried: the calibration data is one batch")


def test_random_numbers_mark_the_ranges(demo: Path) -> None:
    watcher = RecordingWatcher()
    assert calibrate(demo, random_data=True, watcher=watcher).is_random
    assert watcher.warnings[0] == (
        "calibrating with random numbers: the accuracy of what has these ranges means nothing"
    )


def test_the_quantized_model_is_whole_and_valid(demo: Path, ranges: Ranges, tmp_path: Path) -> None:
    quantize(demo, ranges, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("high_precision", "kind"),
    [
        ("auto", onnx.TensorProto.FLOAT16),
        ("fp16", onnx.TensorProto.FLOAT16),
        ("fp32", onnx.TensorProto.FLOAT),
    ],
)
def test_the_rest_of_the_quantized_model_has_the_precision_that_is_asked(
    demo: Path, ranges: Ranges, tmp_path: Path, high_precision: str, kind: int
) -> None:
    target = Target(high_precision=high_precision)  # type: ignore[arg-type]
    graph = onnx.load(quantize(demo, ranges, tmp_path / "m.onnx", target=target)).graph
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    scales = [node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {kinds[name] for name in scales} == {kind}


def test_weights_of_a_large_model_go_to_a_second_file(
    demo: Path, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 1000)
    quantize(demo, ranges, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    (tmp_path / "other.data").write_bytes(bytes(9))
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert measure_model(tmp_path / "m.onnx") == sizes["m.onnx"] + sizes["m.onnx.data"]
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_new_weights_never_overwrite_those_that_the_old_graph_refers_to(
    demo: Path, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 1000)
    (tmp_path / "m.onnx.db.data").write_bytes(b"of somebody else")
    quantize(demo, ranges, tmp_path / "m.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = Path.replace

    def killed_at_the_graph(self: Path, target: Path) -> Path:
        if target.name == "m.onnx":
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed_at_the_graph)
    with pytest.raises(KeyboardInterrupt):
        quantize(demo, ranges, tmp_path / "m.onnx", target=Target(high_precision="fp32"))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    monkeypatch.setattr(Path, "replace", replace)
    quantize(demo, ranges, tmp_path / "m.onnx", target=Target(high_precision="fp32"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.2.data", "m.onnx.db.data"]
    onnx.checker.check_model(str(tmp_path / "m.onnx"))


def test_ranges_of_another_file_are_taken_with_a_warning(demo: Path, ranges: Ranges, tmp_path: Path) -> None:
    watcher = RecordingWatcher()
    quantize(demo, replace(ranges, model_sha256="0" * 64), tmp_path / "m.onnx", watcher=watcher)
    assert watcher.warnings == [
        f"the ranges were calibrated for another file than {demo}; if its weights differ, calibrate again"
    ]


def test_ranges_that_lack_a_tensor_are_refused(demo: Path, ranges: Ranges, tmp_path: Path) -> None:
    fewer = {name: item for name, item in ranges.tensors.items() if name != "image"}
    with pytest.raises(UsageError, match="the ranges hold nothing for tensor 'image'"):
        quantize(demo, replace(ranges, tensors=fewer), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["none/m.onnx", "folder"])
def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing(
    demo: Path, ranges: Ranges, tmp_path: Path, output: str
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=f"cannot write {tmp_path / output}"):
        quantize(demo, ranges, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_quantized_model_is_neither_calibrated_nor_quantized_again(
    demo: Path, ranges: Ranges, tmp_path: Path
) -> None:
    written = quantize(demo, ranges, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx is quantized already; give the float model"):
        calibrate(written, random_data=True)
    with pytest.raises(ModelError, match=r"m\.onnx is quantized already; give the float model"):
        quantize(written, ranges, tmp_path / "again.onnx")


# Comparing


def test_a_model_is_equal_to_itself(demo: Path) -> None:
    spec = ModelSpec(evaluation=EvaluationSpec(data=str(demo.parent / "calibration.npz"), samples=16))
    watcher = RecordingWatcher()
    comparison = compare(demo, demo, spec=spec, watcher=watcher)
    assert comparison.outputs[0].max_abs == 0
    assert comparison.outputs[0].sqnr_db == float("inf")
    assert comparison.outputs[0].candidate == f"{demo} again"
    assert (comparison.accuracy, comparison.num_samples, sum(watcher.samples["Comparing"])) == ({}, 16, 16)


def test_the_calibration_data_stands_in_for_evaluation_data(demo: Path) -> None:
    spec = ModelSpec(calibration=CalibrationSpec(data=str(demo.parent / "calibration.npz")))
    assert compare(demo, demo, spec=spec).num_samples == 128


def test_models_cannot_be_compared_without_data(demo: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be compared without data; give --data with an \.npz"):
        compare(demo, demo, spec=ModelSpec())


@pytest.mark.parametrize(
    ("dtype", "name", "theirs"), [("float", "z", "z float32"), ("int32", "x", "x int32")]
)
def test_models_with_other_inputs_cannot_be_compared(
    tmp_path: Path, dtype: str, name: str, theirs: str
) -> None:
    reference = write_identity(tmp_path / "a.onnx")
    candidate = write_identity(tmp_path / "b.onnx", dtype, name)
    with pytest.raises(ModelError, match=f"b.onnx takes {theirs}, .*a.onnx takes x float32"):
        compare(reference, candidate)


def test_settings_beside_the_reference_are_read(tmp_path: Path) -> None:
    reference = write_identity(tmp_path / "a.onnx")
    (tmp_path / "a.toml").write_text('[evaluation]\ndata = "x.npz"\n')
    np.savez(tmp_path / "x.npz", x=np.ones((3, 2), np.float32))
    assert compare(reference, reference).num_samples == 3


@pytest.mark.parametrize(
    ("reference", "candidate", "names"),
    [
        ("a/float.onnx", "b/int8.onnx", ("float.onnx", "int8.onnx")),
        ("a/model.onnx", "b/model.onnx", ("a/model.onnx", "b/model.onnx")),
        ("model.onnx", "model.onnx", ("model.onnx", "model.onnx again")),
    ],
)
def test_compared_models_have_names_that_tell_them_apart(
    reference: str, candidate: str, names: tuple[str, str]
) -> None:
    assert name_compared(Path(reference), Path(candidate)) == names


@needs_opset_23
def test_nvfp4_is_calibrated_quantized_and_compared_stage_by_stage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    header = '<ir_version: 9, opset_import: ["" : 19]>'
    for width in (64, 40):
        model = onnx.parser.parse_model(
            f"{header} g (float[N, {width}] x) => (float[N, 32] y) {{ h = MatMul (x, w) y = Relu (h) }}"
        )
        weight = rng.standard_normal((width, 32)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(model, tmp_path / f"{width}.onnx")
        np.savez(tmp_path / f"{width}.npz", x=rng.standard_normal((16, width)).astype(np.float32))
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(tmp_path / "64.npz"), method="percentile"),
        quantization=QuantizationSpec(repair=("none",)),
    )
    target = Target(precision="nvfp4", high_precision="fp32")
    ranges = calibrate(tmp_path / "64.onnx", spec=spec, target=target)
    with np.load(tmp_path / "64.npz") as data:
        assert ranges.amax("x") == np.abs(data["x"]).max()  # which the method would clip
    made = quantize(tmp_path / "64.onnx", ranges, tmp_path / "q.onnx", spec=spec, target=target)
    assert [node.op_type for node in onnx.load(made).graph.node if node.domain] == ["TRT_FP4DynamicQuantize"]
    (found,) = compare(tmp_path / "64.onnx", made, spec=spec).outputs
    assert 15 < found.sqnr_db < 25
    spec = replace(spec, calibration=CalibrationSpec(data=str(tmp_path / "40.npz")))
    other = calibrate(tmp_path / "40.onnx", spec=spec, target=target)
    with pytest.raises(ModelError, match=r"no layer that can be NVFP4 \(MatMul: .* multiples of 16 inputs"):
        quantize(tmp_path / "40.onnx", other, tmp_path / "none.onnx", spec=spec, target=target)
    assert not (tmp_path / "none.onnx").exists()


def test_no_model_and_no_data_is_written_over(demo: Path, ranges: Ranges, tmp_path: Path) -> None:
    for name in ("model.onnx", "calibration.npz"):
        (tmp_path / name).write_bytes((demo.parent / name).read_bytes())
    (tmp_path / "link.onnx").symlink_to(tmp_path / "model.onnx")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    spec = ModelSpec(calibration=CalibrationSpec(data=str(tmp_path / "calibration.npz")))
    for path in before:
        with pytest.raises(ArtifactError, match="is read by this command; choose another file"):
            quantize(tmp_path / "model.onnx", ranges, path, spec=spec)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
