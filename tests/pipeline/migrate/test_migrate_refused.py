"""Tests of migrations that cannot be done; nothing is half written."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from trtq.errors import ArtifactError, BuildError, DataError, ModelError, UsageError
from trtq.models.spec import EvaluationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import models
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.migrate import migrate
from trtq.pipeline.verify import verify

ORT = Target(backend="onnxruntime", shapes=GivenShapes(opt={"image": (8, 1, 8, 8)}))
NO_DATA = ModelSpec()


def test_only_engines_with_quantized_layers_come_of_a_cache(demo: Path, cache: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^a calibration cache makes an INT8 or FP8 engine, no fp16 one: use `trtq build`$"
    ):
        migrate(demo, cache, target=Target(precision="fp16"))


@pytest.mark.parametrize(
    ("target", "option"),
    [
        (Target(auto=True), "--auto"),
        (Target(weights=WeightScheme("int4")), "--weights"),
        (Target(quantization="implicit"), "--quantization implicit"),
    ],
)
def test_what_only_a_build_does_is_refused(demo: Path, cache: Path, target: Target, option: str) -> None:
    message = rf"^{option} is for `trtq build`; `trtq migrate` takes the ranges as they are in the cache$"
    with pytest.raises(UsageError, match=message):
        migrate(demo, cache, target=target)


def test_what_a_build_refuses_a_migration_refuses(demo: Path, cache: Path) -> None:
    spec = ModelSpec(quantization=QuantizationSpec(activations="asymmetric"))
    with pytest.raises(UsageError, match=r"^--activations asymmetric is for --backend onnxruntime"):
        migrate(demo, cache, spec=spec, target=Target(backend="tensorrt-rtx"))


def test_rows_take_no_scales_from_a_cache(demo: Path, cache: Path) -> None:
    spec = ModelSpec(quantization=QuantizationSpec(activations="per-token"))
    message = r"^--activations per-token finds scales in each run, and takes none from a calibration cache"
    with pytest.raises(UsageError, match=message):
        migrate(demo, cache, spec=spec, target=ORT)


def test_a_quantized_model_has_its_scales(built: Report, cache: Path) -> None:
    path = Path(built.output) / "model.int8.onnx"
    with pytest.raises(
        ModelError,
        match=r"int8\.onnx is quantized already; give the float model that the cache was made for$",
    ):
        migrate(path, cache, target=ORT)


def test_the_folder_of_an_input_is_not_replaced(demo: Path, built: Report) -> None:
    with pytest.raises(
        UsageError, match=r"calibration\.cache is inside the output folder .*, which is replaced as a whole; "
    ):
        migrate(demo, Path(built.output) / "calibration.cache", target=ORT, output=built.output)
    assert verify(Path(built.output)).is_intact


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"^cannot read the calibration cache .*old\.cache: No such file or directory$"),
        (b"", r"old\.cache: the calibration cache is empty; calibrate again$"),
        (b"\xff\xd8\xff", r"old\.cache: not a calibration cache: 'utf-8' codec"),
        (
            b"TRT-8601-A\nimage: 7fc00000\n",
            r"old\.cache: line 2 of .* gives 'image' the scale nan, which must",
        ),
        (
            b"TRT-8601-A\nimages: 3c010204\n",
            r"old\.cache is a cache for another model: it has scales for 'im",
        ),
        (
            b"TRT-8601-A\nlogits: 3c010204\n",
            r"old\.cache has no scale for any tensor of .*model\.onnx that q",
        ),
    ],
)
def test_bad_caches_are_refused_and_leave_what_was_there(
    demo: Path, cache: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    out = tmp_path / "out"
    migrate(demo, cache, spec=NO_DATA, target=ORT, output=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    if content is not None:
        (tmp_path / "old.cache").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        migrate(demo, tmp_path / "old.cache", spec=NO_DATA, target=ORT, output=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "old.cache"}


def test_a_failed_build_leaves_nothing(
    demo: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = onnx.ModelProto(producer_name="nobody").SerializeToString()
    monkeypatch.setattr(models, "save", lambda _, path: path.write_bytes(empty))
    with pytest.raises(
        BuildError, match=r"^trtq made an invalid model\.fp16\.onnx, which is its fault: The model does not"
    ):
        migrate(demo, cache, target=ORT, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_shapes_that_nobody_tells_are_asked_for(demo: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^input 'image' is dynamic, .* and there is no data to take its shapes"
    ):
        migrate(demo, cache, spec=NO_DATA, target=Target(backend="onnxruntime"), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_missing_is_told(demo: Path, cache: Path, tmp_path: Path) -> None:
    spec = ModelSpec(evaluation=EvaluationSpec(data=str(tmp_path / "none.npz")))
    with pytest.raises(DataError, match=r"none\.npz"):
        migrate(demo, cache, spec=spec, target=ORT, output=tmp_path / "out")
