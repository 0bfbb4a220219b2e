"""Two production models of the PyPI package rapidocr-onnxruntime, built with pictures of text.

They are the models of PaddleOCR as Paddle's exporter writes them: weights in Constant nodes, biases in Add
nodes, opset 11 and 12, dims that are all called "?". The pictures are prepared as that package does it:
(x / 255 - 0.5) / 0.5, channels in the order BGR.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import trtq

TEXT = (
    "the quick brown fox jumps over a lazy dog 0123456789 TensorRT INT8 calibration Invoice No. 4711 total "
    "99.50 EUR Berlin 2024-11-21 engine layer"
)
LINE, PAGE = (48, 192), (320, 480)
"""Height and width in pixels."""
pytestmark = pytest.mark.slow


def path_of(name: str) -> Path:
    if sys.version_info >= (3, 13):
        pytest.skip("rapidocr-onnxruntime has no release for Python 3.13")
    spec = importlib.util.find_spec("rapidocr_onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "models" / name


def spec_of(folder: Path, size: tuple[int, int], method: str = "auto", **sections: Any) -> trtq.ModelSpec:
    preprocess = trtq.Preprocess(resize=size, channels="BGR", mean=(0.5,), std=(0.5,))
    calibration = trtq.CalibrationSpec(data=str(folder), batch_size=2, method=method)
    return trtq.ModelSpec(preprocess=preprocess, calibration=calibration, **sections)


def draw(rng: np.random.Generator, size: tuple[int, int], height: tuple[int, int], gap: int) -> Image.Image:
    """Returns a picture with dark lines of text on a light ground; height and gap in pixels."""
    image = Image.new("RGB", (size[1], size[0]), tuple(rng.integers(180, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    top = int(rng.integers(2, 8))
    while top + height[1] < size[0]:
        text = " ".join(rng.choice(TEXT.split(), 4))
        font = ImageFont.load_default(int(rng.integers(*height)))
        pen.text((int(rng.integers(4, 9)), top), text, tuple(rng.integers(0, 90, 3).tolist()), font)
        top += height[1] + int(rng.integers(2, gap))
    return image


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of text, of which every second one is upside down; `turned.npy` beside them tells which."""
    folder, rng = tmp_path_factory.mktemp("ocr") / "lines", np.random.default_rng(0)
    folder.mkdir()
    turned = np.arange(64) % 2
    for index, is_turned in enumerate(turned):
        image = draw(rng, LINE, (20, 34), 30)
        (image.rotate(180) if is_turned else image).save(folder / f"{index:02}.png")
    np.save(folder.parent / "turned.npy", turned)
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of text."""
    folder, rng = tmp_path_factory.mktemp("ocr") / "pages", np.random.default_rng(1)
    folder.mkdir()
    for index in range(8):
        draw(rng, PAGE, (14, 30), 30).save(folder / f"{index}.png")
    return folder


def test_the_text_direction_classifier_keeps_its_answers(lines: Path) -> None:
    evaluation = trtq.EvaluationSpec(data=str(lines), labels=str(lines.parent / "turned.npy"))
    # By the scores alone it lies at the default gate of 0.99; a sample is 1.6 points of accuracy.
    gate = trtq.AccuracySpec(min_cosine=0.98, max_drop=5)
    report = trtq.build(
        path_of("ch_ppocr_mobile_v2.0_cls_infer.onnx"),
        spec=spec_of(lines, LINE, evaluation=evaluation, accuracy=gate),
        output=lines.parent / "classifier",
    )
    assert report.verdict == "pass"
    assert report.engine.num_realized == report.engine.layers_quantized > 30
    assert report.engine.fallbacks == ()
    assert {item.reason.partition(":")[0] for item in report.kept_float} == {"gate", "few-outputs"}
    agreement = {(item.candidate, item.reference): item.top1_agreement for item in report.comparison}
    assert agreement["int8", "fp16"] is not None
    assert agreement["int8", "fp16"] >= 0.9
    assert report.accuracy["fp32"] >= 0.9
    assert report.evaluated_samples == 64
    assert report.repairs is not None
    assert report.repairs.applied
    assert report.repairs.after_db > report.repairs.before_db + 2


def test_the_text_detector_finds_the_same_text(pages: Path) -> None:
    # The map of probabilities lies at the default gate of 0.99, on this side or that by the pictures; what
    # counts is where it passes rapidocr-onnxruntime's threshold.
    model = path_of("ch_PP-OCRv4_det_infer.onnx")
    report = trtq.build(
        model,
        spec=spec_of(
            pages,
            PAGE,
            method="mse",
            accuracy=trtq.AccuracySpec(min_cosine=0.97),
            quantization=trtq.QuantizationSpec(repair=("none",)),  # the classifier has the search
        ),
        output=pages.parent / "detector",
    )
    assert report.verdict == "pass"
    assert report.engine.num_realized == report.engine.layers_quantized > 40
    assert report.engine.fallbacks == ()
    others = {item.op_type for item in report.kept_float if not item.reason.startswith("gate: ")}
    assert others == {"ConvTranspose"}
    samples = [_prepared(path) for path in sorted(pages.glob("*.png"))]
    built = pages.parent / "detector" / "model.int8.onnx"
    ours, theirs = (_text_mask(path, samples) for path in (built, model))
    assert theirs.mean() > 0.03
    assert (ours & theirs).sum() / (ours | theirs).sum() > 0.9


def _prepared(path: Path) -> NDArray[np.float32]:
    """Returns the picture as rapidocr-onnxruntime prepares it: float32, shape (3, H, W)."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)[..., ::-1]
    return np.asarray((pixels / 255 - 0.5) / 0.5, np.float32).transpose(2, 0, 1)


def _text_mask(path: Path, samples: list[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Returns where the model sees text, by rapidocr-onnxruntime's threshold."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": sample[None]})[0] > 0.3 for sample in samples])


@pytest.fixture(scope="module")
def few(lines: Path) -> trtq.ModelSpec:
    """Settings that search for nothing, in eight lines."""
    return trtq.ModelSpec(
        preprocess=spec_of(lines, LINE).preprocess,
        calibration=trtq.CalibrationSpec(data=str(lines), batch_size=4, samples=8, method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )


@pytest.fixture(scope="module")
def ranges(few: trtq.ModelSpec) -> trtq.Ranges:
    return trtq.calibrate(path_of("ch_ppocr_mobile_v2.0_cls_infer.onnx"), spec=few)


@pytest.mark.parametrize("high_precision", ["fp16", "fp32"])
def test_the_quantized_classifier_is_valid_with_either_rest(
    few: trtq.ModelSpec, ranges: trtq.Ranges, tmp_path: Path, high_precision: Any
) -> None:
    model = path_of("ch_ppocr_mobile_v2.0_cls_infer.onnx")
    target = trtq.Target(high_precision=high_precision)
    trtq.quantize(model, ranges, tmp_path / "q.onnx", spec=few, target=target)
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    comparison = trtq.compare(model, tmp_path / "q.onnx", spec=few)
    assert comparison.outputs[0].cosine > 0.95
