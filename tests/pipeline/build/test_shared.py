"""Ranges that are made once for several builds: each is as if it had made its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.build.shared import PIPED, SharedRanges, share_ranges
from trtq.pipeline.engine.target import Target
from trtq.progress import Silent

SCRIPT = """
import pathlib
import numpy as np

def feeds():
    with open(pathlib.Path(__file__).with_suffix(".calls"), "a") as calls:
        calls.write("x")
    rng = np.random.default_rng(3)
    for _ in range(6):
        yield {"x": rng.normal(size=(2, 4)).astype("float32")}
"""
TARGET = Target(backend="onnxruntime")


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    import numpy as np

    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    return path_of("g (float[N, 4] x) => (float[N, 3] y) { [mm] y = MatMul (x, w) }", w=weights)


@pytest.fixture
def spec(tmp_path: Path) -> ModelSpec:
    (tmp_path / "data.py").write_text(SCRIPT)
    return ModelSpec(calibration=CalibrationSpec(data=f"{tmp_path / 'data.py'}:feeds", batch_size=2))


def _share(model: Path, spec: ModelSpec, *earlier: Path, target: Target = TARGET) -> SharedRanges:
    made = share_ranges(
        model,
        spec=spec,
        target=target,
        output=None,
        random_data=False,
        sign_key=None,
        watcher=Silent(),
        workers=None,
        earlier=earlier,
    )
    return PIPED.decode(PIPED.encode(made), "pipe")


def test_a_build_with_shared_ranges_is_that_which_makes_them_itself(
    model: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    alone = build(model, spec=spec, target=TARGET, output=tmp_path / "alone.trtq")
    shared = _share(model, spec)
    before = (tmp_path / "data.calls").read_text()
    other = build(model, spec=spec, target=TARGET, output=tmp_path / "other.trtq", shared=shared)
    names = ("model.int8.onnx", "ranges.json", "tensors.json", "calibration.cache")
    for name in names:
        assert (tmp_path / "alone.trtq" / name).read_bytes() == (tmp_path / "other.trtq" / name).read_bytes()
    assert (other.repairs, other.warnings, other.verdict) == (alone.repairs, alone.warnings, alone.verdict)
    assert other.reused == ()
    assert "calibrate" not in other.timings_s
    assert len((tmp_path / "data.calls").read_text()) > len(before)  # it is compared on the data all the same


def test_ranges_of_an_earlier_build_are_shared_if_they_are_the_same(
    model: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    import numpy as np

    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    spec = replace(spec, calibration=CalibrationSpec(data=str(tmp_path / "c.npz")))
    build(model, spec=spec, target=TARGET, output=tmp_path / "alone.trtq")
    found = _share(model, spec, tmp_path / "none.trtq", tmp_path / "alone.trtq")
    assert any("reusing the ranges of the earlier build" in note for note in found.notes)
    assert json.loads(found.ranges) == json.loads((tmp_path / "alone.trtq" / "ranges.json").read_bytes())
    fresh = _share(model, spec)
    assert (fresh.key, fresh.ranges) == (found.key, found.ranges)


def test_a_build_that_needs_others_makes_its_own_and_says_so(
    model: Path, spec: ModelSpec, tmp_path: Path
) -> None:
    shared = _share(model, replace(spec, calibration=replace(spec.calibration, method="minmax")))
    report = build(model, spec=spec, target=TARGET, output=tmp_path / "a.trtq", shared=shared)
    assert any(text.startswith("this build is calibrated separately, because ") for text in report.warnings)
    assert "calibrate" in report.timings_s


def test_a_build_without_ranges_needs_none(model: Path, spec: ModelSpec, tmp_path: Path) -> None:
    target = replace(TARGET, precision="fp16")
    shared = _share(model, spec, target=target)
    report = build(model, spec=spec, target=target, output=tmp_path / "a.trtq", shared=shared)
    assert (report.precision, report.warnings) == ("fp16", ())
