"""Nothing is done to pictures in silence, and what a model says of its own range is listened to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import trtq
from trtq.cli import main
from trtq.models.preprocess import Preprocess, describe, find_reach
from trtq.pipeline.deliver.html.page_data import read_page_data
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.pictures import find_contradiction

_HEAD = '<ir_version: 9, opset_import: ["" : 19]> m (float[N,3,8,8] x) => (float[N,64] y) {'
_TAIL = "h = GlobalAveragePool(c) f = Flatten(h) y = MatMul(f, v) }"
_QUICK = ("--repair", "none", "--calib-method", "minmax")


def save_model(path: Path, opening: str = "", conv: str = "x") -> Path:
    """Writes a model that begins with these nodes; `conv` is what its convolution reads."""
    text = f"{_HEAD} {opening} c = Conv({conv}, w) {_TAIL}"
    rng, model = np.random.default_rng(0), onnx.parser.parse_model(text)
    for name, shape in (("w", (64, 3, 3, 3)), ("v", (64, 64))):
        weight = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with m.onnx and four pictures."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code in (0, 3), result.output
    return result


_COMMANDS = {
    "build": ("build", "m.onnx", "--int8", "--backend", "onnxruntime", "--calib-data", "photos", *_QUICK),
    "build evaluates": (
        "build",
        "m.onnx",
        "--fp16",
        "--backend",
        "onnxruntime",
        "--high-precision",
        "fp16",
        "--eval-data",
        "photos",
    ),
    "calibrate": ("calibrate", "m.onnx", "--calib-data", "photos", "-o", "r.json", *_QUICK[2:]),
    "sensitivity": ("sensitivity", "m.onnx", "--calib-data", "photos", *_QUICK),
    "compare": ("compare", "m.onnx", "m.onnx", "--data", "photos"),
    "quantize": (
        "quantize",
        "m.onnx",
        "--weights",
        "int4",
        "--weight-method",
        "gptq",
        "--calib-data",
        "photos",
        "--quantize-sensitive",
    ),
    "bench": ("bench", "m.onnx", "--data", "photos", "--seconds", "0.01", "--rounds", "1", "--warmup", "0"),
}


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_that_reads_pictures_says_how_they_are_prepared(folder: Path, name: str) -> None:
    unsaid = run(*_COMMANDS[name]).stderr
    assert "warning: image preprocessing: RGB, size of the model, / 255, mean [0.485, " in unsaid
    assert "these are the ImageNet defaults" in unsaid
    (folder / "m.toml").write_text("[preprocess]\nexif = true\n")
    said = run(*_COMMANDS[name]).stderr
    assert "note: image preprocessing: turned by EXIF, RGB, size of the model, / 255, mean " in said
    assert said.count("image preprocessing") == 1
    if name != "bench":
        told = run(*_COMMANDS[name], "--channels", "BGR", "--mean", "0", "--std", "0.5,1,2").stderr
        assert "turned by EXIF, BGR, size of the model, / 255, mean [0.0], std [0.5, 1.0, 2.0], " in told


def test_the_worst_pictures_are_told_by_their_names(folder: Path) -> None:
    result = CliRunner().invoke(main, [*_COMMANDS["build"], "--min-cosine", "1"])
    assert result.exit_code == 3
    report = read_report(folder / "m.trtq")
    (worst, *_) = report.comparison[0].worst
    assert worst.name == f"{worst.sample}.png"
    assert f"worst samples: {worst}" in result.stderr
    page = (folder / "m.trtq" / "report.html").read_bytes()
    assert f'<span class="name">{worst.name}</span>'.encode() in page
    thumbnails = read_page_data(folder / "m.trtq").thumbnails
    assert {*thumbnails} == {one.name for item in report.comparison for one in item.worst[:3]}
    assert page.count(b'<img src="data:image/jpeg;base64,') == len(thumbnails)
    assert trtq.report(folder / "m.trtq") == page


def test_a_package_says_how_the_pictures_of_its_warm_up_are_prepared(folder: Path) -> None:
    run(*_COMMANDS["build"], "-q")
    assert "image preprocessing of the warm-up: RGB, " in run("package", "m.trtq", "--triton", "r").stdout


@pytest.mark.parametrize(
    ("steps", "words", "reach"),
    [
        (Preprocess(), "RGB, size of the model, / 255, ", (-2.118, 2.64)),
        (
            Preprocess(scale=1.0, mean=(0.0,), std=(1.0,), layout="NHWC"),
            "x 1, mean [0.0], std [1.0], NHWC",
            (0, 255),
        ),
        (
            Preprocess(resize=(256,), resize_mode="short-side", crop=(224,)),
            "short-side to 256x256, crop 224x224",
            (-2.118, 2.64),
        ),
        (Preprocess(channels="L", mean=(0.5,), std=(-0.5,)), "L, ", (-1, 1)),
        (Preprocess(channels="L"), "mean [0.449], std [0.226]", (-1.987, 2.438)),  # of the three numbers
    ],
)
def test_the_words_tell_the_values(steps: Preprocess, words: str, reach: tuple[float, float]) -> None:
    assert words in describe(steps)
    assert find_reach(steps) == pytest.approx(reach, abs=1e-3)


IMAGENET, PIXELS = Preprocess(), Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))
UNIT = Preprocess(mean=(0.0,), std=(1.0,))
_OPENINGS = {
    "divides": ("k = Constant<value_float=255.0>() a = Div(x, k)", "a", PIXELS),
    "divides and subtracts": (
        "k = Constant<value_float=127.5>() a = Div(x, k) o = Constant<value_float=1.0>() b = Sub(a, o)",
        "b",
        PIXELS,
    ),
    "subtracts the mean": ("k = Constant<value_float=117.0>() a = Sub(x, k)", "a", PIXELS),
    "transposes first": (
        "t = Transpose<perm=[0,1,3,2]>(x) k = Constant<value_float=0.00392>() a = Mul(k, t)",
        "a",
        PIXELS,
    ),
    "normalizes 0 to 1": (
        "k = Constant<value_float=0.45>() a = Sub(x, k) s = Constant<value_float=0.225>() b = Div(a, s)",
        "b",
        UNIT,
    ),
    "doubles": (
        "k = Constant<value_float=2.0>() a = Mul(x, k) o = Constant<value_float=-1.0>() b = Add(a, o)",
        "b",
        UNIT,
    ),
    "batch norm of pixels": (
        "s = Constant<value_floats=[1.0,1.0,1.0]>() o = Constant<value_floats=[0.0,0.0,0.0]>() "
        "n = Constant<value_floats=[120.0,115.0,104.0]>() "
        "p = Constant<value_floats=[4000.0,4000.0,4000.0]>() "
        "a = BatchNormalization(x, s, o, n, p)",
        "a",
        PIXELS,
    ),
}


@pytest.mark.parametrize("name", _OPENINGS)
def test_a_model_that_normalizes_itself_contradicts_pictures_that_are_normalized(
    tmp_path: Path, name: str
) -> None:
    opening, conv, wanted = _OPENINGS[name]
    model = load(save_model(tmp_path / "m.onnx", opening, conv), min_opset=1).model
    top, scale = ("255", "1.0") if wanted is PIXELS else ("1", "0.0039215")
    said = find_contradiction(model, IMAGENET)
    assert f"seems to expect 0 to {top}, but images become -2.12 to 2.64" in said
    assert f"set `scale = {scale}" in said
    assert find_contradiction(model, UNIT if wanted is PIXELS else PIXELS)
    assert find_contradiction(model, wanted) == ""


@pytest.mark.parametrize(
    ("opening", "conv"),
    [
        ("", "x"),
        ("a = Relu(x)", "a"),
        ("k = Constant<value_float=1.1>() a = Mul(x, k)", "a"),
        ("k = Constant<value_float=0.01>() a = Sub(x, k)", "a"),
        ("k = Constant<value_float=255.0>() a = Div(k, x)", "a"),
        ("k = Constant<value_float=255.0>() b = Div(x, k) a = Add(b, x)", "a"),
    ],
)
def test_a_model_that_says_nothing_of_its_range_is_left_alone(
    tmp_path: Path, opening: str, conv: str
) -> None:
    model = load(save_model(tmp_path / "m.onnx", opening, conv), min_opset=1).model
    assert [find_contradiction(model, steps) for steps in (IMAGENET, UNIT, PIXELS)] == ["", "", ""]


def test_the_range_of_a_quantized_input_contradicts_other_pictures(tmp_path: Path) -> None:
    opening = "s = Constant<value_float=0.0208>() q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
    path = save_model(tmp_path / "m.onnx", opening, "d")
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.int8), "z"))
    onnx.save(model, path)
    found = load(path, min_opset=1).model
    assert find_contradiction(found, IMAGENET) == ""
    for steps in (UNIT, PIXELS):
        assert "quantizes 'x' to a range up to 2.66, but images become 0 to" in find_contradiction(
            found, steps
        )


def test_a_build_warns_of_a_contradiction(folder: Path) -> None:
    save_model(folder / "m.onnx", *_OPENINGS["divides"][:2])
    said = run(*_COMMANDS["calibrate"]).stderr
    assert "warning: the model prepares 'x' itself (Div) and seems to expect 0 to 255" in said
