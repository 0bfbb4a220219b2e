"""The sensitivity of a small model, whole, interrupted and again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_watcher import RecordingWatcher

from trtq.errors import ArtifactError, DataError, ModelError, UsageError
from trtq.files import write_atomically
from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.deliver.settings import read_settings
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.sensitivity import measure_groups, read_sensitivity, to_json
from trtq.pipeline.sensitivity import sensitivity


@pytest.fixture
def spec(small: Path) -> ModelSpec:
    data = str(small.parent / "data.npz")
    return ModelSpec(calibration=CalibrationSpec(data=data), layers=LayerSpec(force=(".",)))


def test_every_layer_is_measured_alone_and_left_out(small: Path, spec: ModelSpec) -> None:
    told = RecordingWatcher()
    found = sensitivity(small, spec=spec, watcher=told)
    assert told.stages[-1] == ("Measuring layers", 2 * 16)
    assert sum(told.samples["Measuring layers"]) == 2 * 16
    assert [(layer.name, layer.op_type, layer.macs) for layer in found.layers] == [
        ("first", "Conv", 8 * 8 * 8 * 27),
        ("second", "Conv", 4 * 8 * 8 * 8),
    ]
    first, second = found.layers
    assert found.all_quantized is not None
    # of two layers, the one left out is the other alone
    assert first.without == second.alone
    assert second.without == first.alone
    assert found.all_quantized.sqnr_db < min(first.alone.sqnr_db, second.alone.sqnr_db)
    assert (found.num_samples, found.total_macs) == (16, sum(layer.macs for layer in found.layers))
    assert read_sensitivity(small.parent / "small.sensitivity.json") == found


def test_what_is_complete_is_shown_without_any_work(small: Path, spec: ModelSpec) -> None:
    found = sensitivity(small, spec=spec)
    told = RecordingWatcher()
    assert sensitivity(small, spec=spec, watcher=told) == found
    assert [text for text, _ in told.stages] == ["Loading"]
    assert told.notes[-1].endswith("small.sensitivity.json holds all 2 layers: nothing has changed")


def test_work_that_was_ended_goes_on(small: Path, spec: ModelSpec) -> None:
    path = small.parent / "half.json"
    whole = sensitivity(small, spec=spec, output=path)
    path.write_bytes(to_json(replace(whole, layers=whole.layers[:1])))
    told = RecordingWatcher()
    assert sensitivity(small, spec=spec, output=path, watcher=told) == whole
    assert told.stages[-1] == ("Measuring layers", 16)
    assert f"goes on after 1 of 2 layers of {path}" in told.notes


def test_what_is_measured_before_an_interruption_is_written_once(
    small: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writes = small.parent / "half.json", list[int]()

    def write(path: Path, content: bytes) -> None:
        writes.append(len(content))
        write_atomically(path, content)

    def measure(*given: Any, **options: Any) -> Iterator[Any]:
        for index, found in enumerate(measure_groups(*given, **options)):
            if index == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr("trtq.pipeline.sensitivity._SAVE_SECONDS", math.inf)
    monkeypatch.setattr("trtq.pipeline.sensitivity.write_atomically", write)
    monkeypatch.setattr("trtq.pipeline.sensitivity.measure_groups", measure)
    monkeypatch.setattr(
        "trtq.pipeline.sensitivity.split_in_groups", lambda names, **_: [(name,) for name in (*names, *names)]
    )
    with pytest.raises(KeyboardInterrupt):
        sensitivity(small, spec=spec, output=path)
    assert [layer.name for layer in read_sensitivity(path).layers] == ["first", "second"]
    assert len(writes) == 1


def test_other_data_is_measured_anew(small: Path, spec: ModelSpec) -> None:
    sensitivity(small, spec=spec)
    np.savez(small.parent / "data.npz", x=np.ones((8, 3, 8, 8), np.float32))
    told = RecordingWatcher()
    assert sensitivity(small, spec=spec, watcher=told).num_samples == 8
    assert "is of another model, data or settings, and is rewritten" in told.notes[0]


def test_data_of_a_script_is_never_known_to_be_the_same(small: Path, spec: ModelSpec) -> None:
    script = small.parent / "feeds.py"
    script.write_text(
        "import numpy as np\ndef feeds():\n    yield {'x': np.ones((2, 3, 8, 8), np.float32)}\n"
    )
    spec = replace(spec, calibration=CalibrationSpec(data=f"{script}:feeds"))
    assert sensitivity(small, spec=spec).key == ""
    told = RecordingWatcher()
    sensitivity(small, spec=spec, watcher=told)
    assert "is rewritten, because a script may have changed" in told.notes[0]


def test_a_file_of_another_kind_is_not_written_over(small: Path, spec: ModelSpec) -> None:
    with pytest.raises(ArtifactError, match="is not a file of sensitivities"):
        sensitivity(small, spec=spec, output=small)


def test_a_model_without_layers_and_without_data_is_refused(small: Path, spec: ModelSpec) -> None:
    with pytest.raises(
        ModelError, match="has no layer that is quantized; `trtq inspect --placement` shows why"
    ):
        sensitivity(small, spec=replace(spec, layers=LayerSpec(skip=(".",))))
    with pytest.raises(DataError, match="cannot be calibrated without data"):
        sensitivity(small, spec=ModelSpec(layers=LayerSpec(force=(".",))))


def test_random_data_is_taken_to_try_it(small: Path) -> None:
    spec = ModelSpec(layers=LayerSpec(force=(".",)))
    assert sensitivity(small, spec=spec, random_data=True).data == "random numbers"


@pytest.fixture
def folder(small: Path, spec: ModelSpec) -> Path:
    """A build of the small model by a method that is not the best."""
    calibration = replace(spec.calibration, method="percentile", parameters={"percentile": 80.0})
    own = replace(spec, calibration=calibration, quantization=QuantizationSpec(repair=("none",)))
    target = Target(backend="onnxruntime", high_precision="fp16")
    return Path(build(small, spec=own, target=target, output=small.parent / "out.trtq").output)


def test_a_build_is_measured_with_its_own_settings(folder: Path, small: Path, spec: ModelSpec) -> None:
    told = RecordingWatcher()
    found = sensitivity(folder, watcher=told)
    best = sensitivity(small, spec=spec, target=Target(backend="onnxruntime"))
    report = read_report(folder)
    assert found.all_quantized is not None
    assert best.all_quantized is not None
    (compared,) = [item for item in report.comparison if (item.candidate, item.reference) == ("int8", "fp32")]
    assert found.all_quantized.sqnr_db == pytest.approx(compared.sqnr_db, abs=1.0)
    assert best.all_quantized.sqnr_db > found.all_quantized.sqnr_db + 6
    assert [text for text, _ in told.stages] == ["Loading", "Measuring layers"]  # nothing is calibrated
    assert f"layers, ranges (percentile(percentile=80.0)) and repairs are those of {folder}" in told.notes
    assert read_sensitivity(folder.parent / "out.sensitivity.json") == found


def test_a_build_has_the_layers_that_it_has(small: Path, spec: ModelSpec) -> None:
    skipping = replace(spec, layers=replace(spec.layers, skip=("second",)))
    report = build(small, spec=skipping, target=Target(backend="onnxruntime"))
    found = sensitivity(report.output)
    assert [layer.name for layer in found.layers] == ["first"]


def test_a_build_is_measured_as_it_was_built_or_not_at_all(folder: Path, small: Path) -> None:
    original = small.read_bytes()
    small.write_bytes(original + b"\x52\x00")  # an empty unknown field
    with pytest.raises(ArtifactError, match=r"small\.onnx was changed since .*out\.trtq was built; build it"):
        sensitivity(folder)
    small.write_bytes(original)
    ranges = folder / "ranges.json"
    ranges.write_bytes(ranges.read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match=r"ranges\.json"):
        sensitivity(folder)


def test_a_build_without_qdq_has_nothing_to_measure(small: Path, spec: ModelSpec) -> None:
    target = Target(backend="onnxruntime", precision="fp16")
    folder = build(small, spec=spec, target=target).output
    with pytest.raises(ArtifactError, match=r"is no build by Q/DQ alone, whose layers"):
        sensitivity(folder)


def test_a_build_with_a_script_for_data_runs_nothing_unasked(small: Path, spec: ModelSpec) -> None:
    script = small.parent / "feeds.py"
    script.write_text(
        "import numpy as np\ndef feeds():\n    yield {'x': np.ones((2, 3, 8, 8), np.float32)}\n"
    )
    own = replace(spec, calibration=CalibrationSpec(data=f"{script}:feeds"))
    folder = build(small, spec=own, target=Target(backend="onnxruntime")).output
    with pytest.raises(UsageError, match=r"manifest\.json, found beside the model, names the script"):
        sensitivity(folder)


def test_settings_come_back_from_a_manifest_as_they_were(folder: Path, small: Path) -> None:
    manifest = read_manifest(folder)
    spec, target = read_settings(manifest, folder)
    assert spec.calibration.parameters == {"percentile": 80.0}
    assert (spec.quantization.repair, target.high_precision) == (("none",), "fp16")
    assert spec.file == str(folder / "manifest.json")
    bad = replace(manifest, settings={"model": {"calibration": {"batch_size": "x"}}})
    with pytest.raises(ArtifactError, match=r"manifest\.json does not contain the settings of a build"):
        read_settings(bad, folder)
