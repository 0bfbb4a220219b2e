"""The sensitivity of a small model, whole, interrupted and again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from recording_watcher import RecordingWatcher

from trtq.errors import ArtifactError, DataError, ModelError
from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec
from trtq.pipeline.judge.sensitivity import read_sensitivity, to_json
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


def test_other_data_is_measured_anew(small: Path, spec: ModelSpec) -> None:
    sensitivity(small, spec=spec)
    np.savez(small.parent / "data.npz", x=np.ones((8, 3, 8, 8), np.float32))
    told = RecordingWatcher()
    assert sensitivity(small, spec=spec, watcher=told).num_samples == 8
    assert "is of another model, data or settings, and is written anew" in told.notes[0]


def test_data_of_a_script_is_never_known_to_be_the_same(small: Path, spec: ModelSpec) -> None:
    script = small.parent / "feeds.py"
    script.write_text(
        "import numpy as np\ndef feeds():\n    yield {'x': np.ones((2, 3, 8, 8), np.float32)}\n"
    )
    spec = replace(spec, calibration=CalibrationSpec(data=f"{script}:feeds"))
    assert sensitivity(small, spec=spec).key == ""
    told = RecordingWatcher()
    sensitivity(small, spec=spec, watcher=told)
    assert "is written anew: nobody can tell whether a script still does the same" in told.notes[0]


def test_a_file_of_another_kind_is_not_written_over(small: Path, spec: ModelSpec) -> None:
    with pytest.raises(ArtifactError, match="is not a file of sensitivities"):
        sensitivity(small, spec=spec, output=small)


def test_a_model_without_layers_and_without_data_is_refused(small: Path, spec: ModelSpec) -> None:
    with pytest.raises(
        ModelError, match="has no layer that is quantized; `trtq inspect --placement` tells why"
    ):
        sensitivity(small, spec=replace(spec, layers=LayerSpec(skip=(".",))))
    with pytest.raises(DataError, match="cannot be calibrated without data"):
        sensitivity(small, spec=ModelSpec(layers=LayerSpec(force=(".",))))


def test_random_data_is_taken_to_try_it(small: Path) -> None:
    spec = ModelSpec(layers=LayerSpec(force=(".",)))
    assert sensitivity(small, spec=spec, random_data=True).data == "random numbers"
