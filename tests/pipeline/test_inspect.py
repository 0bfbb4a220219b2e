"""What a file is told to hold."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.parser
import pytest

from trtq.calibrators.cache import CalibrationCache
from trtq.calibrators.ranges import Ranges
from trtq.errors import ArtifactError, ModelError, UsageError
from trtq.files import hash_file
from trtq.json import to_plain
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.inspect import FolderSummary, ModelSummary, inspect


@pytest.fixture(scope="module")
def demo(demo_onnxruntime: Path) -> Path:
    return demo_onnxruntime / "model.onnx"


@pytest.fixture(scope="module")
def built(demo_onnxruntime: Path) -> Report:
    return read_report(demo_onnxruntime / "model.trtq" / "report.json")


def test_a_float_model_tells_what_a_build_would_do(demo: Path) -> None:
    summary = inspect(str(demo))
    assert isinstance(summary, ModelSummary)
    assert (summary.path, summary.sha256, summary.opset) == (str(demo), hash_file(demo), 18)
    assert [str(item) for item in summary.inputs] == ["image float32 (batch, 1, 8, 8)"]
    assert [str(item) for item in summary.outputs] == ["logits float32 (batch, 10)"]
    assert (summary.op_types["Conv"], summary.op_types["Gemm"]) == (10, 1)
    assert list(summary.op_types.values()) == sorted(summary.op_types.values(), reverse=True)
    assert summary.placement is not None
    assert len(summary.placement.layers) == 11
    assert summary.quantized_layers == ()
    weights = sum(
        4 * math.prod(tensor.dims)
        for tensor in onnx.load(demo).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    )
    assert weights <= summary.weight_bytes <= weights + 256


def test_a_quantized_model_tells_its_layers(built: Report) -> None:
    summary = inspect(Path(built.output) / "model.int8.onnx")
    assert isinstance(summary, ModelSummary)
    assert len(summary.quantized_layers) == 11
    assert (len(summary.placement.given), summary.placement.quantized) == (11, ())


def test_ranges_a_cache_and_a_folder_are_known(built: Report) -> None:
    folder = Path(built.output)
    ranges, cache, whole = (inspect(folder / name) for name in ("ranges.json", "calibration.cache", "."))
    assert isinstance(ranges, Ranges)
    assert isinstance(cache, CalibrationCache)
    assert list(cache.scales) == list(ranges.tensors)
    assert isinstance(whole, FolderSummary)
    assert whole.report == built
    assert whole.intact


def test_a_damaged_folder_is_told(built: Report, tmp_path: Path) -> None:
    folder = shutil.copytree(built.output, tmp_path / "out")
    (folder / "calibration.cache").unlink()
    summary = inspect(folder)
    assert isinstance(summary, FolderSummary)
    assert (summary.intact, summary.problems) == (False, "missing: calibration.cache")


def test_a_manifest_that_was_changed_is_told(built: Report, tmp_path: Path) -> None:
    folder = shutil.copytree(built.output, tmp_path / "out")
    content = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(content.replace(b"model.onnx", b"other.onnx", 1))
    summary = inspect(folder)
    assert isinstance(summary, FolderSummary)
    assert (summary.intact, summary.problems) == (False, "changed: manifest.json")


def test_every_summary_is_plain_json(demo: Path, built: Report) -> None:
    folder = Path(built.output)
    for path in (demo, folder, folder / "ranges.json", folder / "calibration.cache"):
        assert json.loads(json.dumps(to_plain(inspect(path)), allow_nan=False))


def test_numbers_that_json_lacks_become_null(built: Report) -> None:
    summary = inspect(built.output)
    assert isinstance(summary, FolderSummary)
    broken = replace(built.comparison[0], cosine=math.nan, sqnr_db=-math.inf)
    document = to_plain(replace(summary, report=replace(built, comparison=(broken,))))
    assert document["report"]["comparison"][0]["cosine"] is None
    assert document["report"]["comparison"][0]["sqnr_db"] is None


def _write_text(path: Path) -> None:
    path.write_text("hello")


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("none.onnx", UsageError, r"there is no file .*none\.onnx"),
        ("text.onnx", ModelError, r"text\.onnx is not an ONNX model"),
        ("text.json", ArtifactError, r"text\.json is not a ranges file"),
        ("text.plan", UsageError, r"text\.plan is an engine, which TensorRT alone reads; inspect its build"),
        ("text.other", UsageError, r"text\.other is none of the files that trtq knows: an \.onnx model, a"),
        ("folder", ArtifactError, "folder is not a build folder: cannot read"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, name: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "folder").mkdir()
    if name.startswith("text"):
        _write_text(tmp_path / name)
    with pytest.raises(kind, match=message):
        inspect(tmp_path / name)


def test_a_file_that_cannot_be_read_is_told() -> None:
    # Root reads every file, but nobody reads what is not mapped.
    with pytest.raises(ArtifactError, match="cannot read /proc/self/mem: Input/output error"):
        inspect("/proc/self/mem")


def test_the_placement_is_that_of_a_small_model(tmp_path: Path) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        product (float[2,4,4] a, float[2,4,4] b) => (float[2,4,4] c) { [product] c = MatMul (a, b) }
    """)
    onnx.save(model, tmp_path / "m.onnx")
    summary = inspect(tmp_path / "m.onnx")
    assert isinstance(summary, ModelSummary)
    assert summary.placement is not None
    assert [node.reason for node in summary.placement.kept] == [
        "two-activations: TensorRT fuses attention in float; INT8 with Attention in --op-types"
    ]
    assert summary.weight_bytes == 0
