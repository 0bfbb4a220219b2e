"""Tests of the page of a real build, and of making it again from the folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from trtq.errors import ArtifactError, UsageError
from trtq.files import hash_file
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.html.page_data import read_page_data
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.judge.sensitivity import Distance, Effect, LayerSensitivity, Sensitivity, to_json
from trtq.pipeline.report import report

PLAIN = Target(backend="onnxruntime")


def built(model: Path, method: str = "entropy", target: Target = PLAIN) -> Report:
    data = str(model.parent / "data.npz")
    return build(model, spec=ModelSpec(calibration=CalibrationSpec(data, method)), target=target)


@pytest.fixture
def folder(small: Path) -> Path:
    return Path(built(small).output)


def test_the_page_is_one_of_the_outputs_with_its_digest(folder: Path) -> None:
    outputs = read_manifest(folder).outputs
    for name in ("report.html", "tensors.json"):
        assert outputs[name] == hash_file(folder / name)


def test_made_again_it_is_the_same(folder: Path) -> None:
    assert report(folder) == (folder / "report.html").read_bytes()


def test_it_holds_the_tensors_and_layers_of_the_build(folder: Path) -> None:
    seen = read_page_data(folder)
    assert [tensor.name for tensor in seen.tensors] == ["x", "r"]
    assert [(layer.name, layer.tensors) for layer in seen.layers] == [("first", ("x",)), ("second", ("r",))]
    assert seen.tensors[0].total == 16 * 3 * 8 * 8
    assert min(seen.tensors[1].minimum, seen.tensors[1].zeros) == 0  # a Relu's
    page = (folder / "report.html").read_text()
    for text in ("small.onnx", "first", "second", "entropy(num_bins=2048", "trtq build", "data.npz"):
        assert text in page


def test_the_sizes_are_those_of_the_files(folder: Path, small: Path) -> None:
    sizes = read_report(folder / "report.json").sizes_bytes
    assert sizes["model"] == small.stat().st_size
    assert {name: (folder / name).stat().st_size for name in sizes if name != "model"} == {
        name: size for name, size in sizes.items() if name != "model"
    }
    assert sizes.keys() == {"model", "model.fp16.onnx", "model.int8.onnx"}


def test_weights_in_another_file_count_to_the_size_of_the_model(small: Path) -> None:
    ir.save(ir.load(small), small.parent / "parted.onnx", external_data="parted.data", size_threshold_bytes=1)
    shutil.copy(small.parent / "data.npz", small.parent / "parted.npz")
    sizes = built(small.parent / "parted.onnx").sizes_bytes
    assert sizes["model"] == 4 * (8 * 3 * 3 * 3 + 8 + 4 * 8)


def test_a_build_that_uses_the_ranges_again_shows_the_same_tensors(small: Path, folder: Path) -> None:
    before = read_page_data(folder)
    again = built(small, target=replace(PLAIN, high_precision="fp32"))
    assert again.reused == ("ranges",)
    assert read_page_data(folder) == before


def test_another_method_is_the_one_that_is_marked(small: Path) -> None:
    seen = read_page_data(Path(built(small, "mse").output))
    assert seen.method == "mse"
    for tensor in seen.tensors:
        assert tensor.used.amax == pytest.approx(tensor.methods["mse"].amax, rel=1e-6)


def measured(folder: Path, *names: str) -> Path:
    effect = Effect({"y": Distance(1.0, 33.25)})
    layers = tuple(LayerSensitivity(name, "Conv", 1, effect, effect) for name in names)
    path = folder.parent / "net.sensitivity.json"
    path.write_bytes(to_json(Sensitivity("net.onnx", "data", 16, len(names), layers=layers)))
    return path


def test_a_measurement_is_shown(folder: Path) -> None:
    page = report(folder, measured(folder, "first", "second")).decode()
    assert page.count("33.2") == 2
    assert page != (folder / "report.html").read_text()


def test_a_measurement_of_another_model_is_refused(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"sensitivity\.json is of net\.onnx, none of whose layers is one of"
    ):
        report(folder, measured(folder, "other"))


@pytest.mark.parametrize("name", ["report.json", "tensors.json"])
def test_a_changed_report_is_refused(name: str, folder: Path) -> None:
    document = json.loads((folder / name).read_bytes())
    (folder / name).write_text(json.dumps({**document, "verdict": "pass"}))
    with pytest.raises(ArtifactError, match=rf"{name} is not the file that was built"):
        report(folder)


def test_a_changed_manifest_is_refused(folder: Path) -> None:
    (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(ArtifactError, match=r"manifest\.json is not the file that was written"):
        report(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a build folder"):
        report(tmp_path)
