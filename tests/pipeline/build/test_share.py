"""How much of the work runs in INT8, as the report says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target

_NET = """
net (float[N, 16, 8, 8] x) => (float[N, 16, 8, 8] y) {
  [small] a = Conv <kernel_shape = [1, 1]> (x, w1) r = Relu (a)
  [large] h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r, w2) s = Relu (h)
  [last] y = Conv <kernel_shape = [1, 1]> (s, w3)
}"""


@pytest.fixture
def model(random_model: Callable[..., Path]) -> Path:
    """Three layers, of which the second does nine elevenths of the work, with 16 samples beside them."""
    return random_model(_NET, (16, 16, 8, 8), w1=(16, 16, 1, 1), w2=(16, 16, 3, 3), w3=(16, 16, 1, 1))


def spec_of(model: Path, *skip: str) -> ModelSpec:
    data = CalibrationSpec(str(model.parent / "x.npz"), "mse")
    layers = LayerSpec(skip=skip, force=(".",))
    return ModelSpec(calibration=data, quantization=QuantizationSpec(repair=("none",)), layers=layers)


@pytest.mark.slow
@pytest.mark.parametrize(("skip", "share", "is_mostly_float"), [((), 1.0, False), (("large",), 2 / 11, True)])
def test_the_share_is_of_what_the_engine_runs(
    skip: tuple[str, ...], share: float, is_mostly_float: bool, model: Path
) -> None:
    target = Target(compute_capabilities=("8.9",))
    report = build(model, spec=spec_of(model, *skip), target=target)
    assert report.quantized_macs == pytest.approx(share)
    assert (report.verdict, report.is_mostly_float) == ("pass", is_mostly_float)
    page = (Path(report.output) / "report.html").read_text()
    assert ("Pass, mostly float" in page) == is_mostly_float
    assert f"{share:.1%} of the MACs" in page


def test_layers_behind_qdq_that_run_in_float_do_not_count(model: Path) -> None:
    report = build(model, spec=spec_of(model), target=Target(backend="onnxruntime"))
    assert [item.name for item in report.kept_float] == ["last"]
    assert report.engine.num_realized == 2
    assert report.quantized_macs == pytest.approx(10 / 11)
    spec = replace(spec_of(model), quantization=QuantizationSpec(repair=("none",), activations="symmetric"))
    report = build(model, spec=spec, target=Target(backend="onnxruntime"))
    assert (report.engine.num_realized, report.quantized_macs) == (0, 0.0)


def test_other_precisions_and_builds_without_data_have_no_share(model: Path) -> None:
    target = Target(backend="onnxruntime", precision="fp16")
    assert build(model, spec=spec_of(model), target=target).quantized_macs is None
    target = replace(target, shapes=GivenShapes(opt={"x": (1, 16, 8, 8)}))
    assert build(model, spec=ModelSpec(), target=target).quantized_macs is None
