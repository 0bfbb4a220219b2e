"""Tests of the settings beside a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trtq.calibrators.settings import read_spec
from trtq.errors import UsageError
from trtq.models.preprocess import Preprocess
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    QuantizationSpec,
)

EVERYTHING = """
[inputs.images]
min = [1, 3, 224, 224]
opt = [8, 3, 224, 224]
max = [16, 3, 640, 640]

[inputs."input_1:0"]
min = []
opt = []
max = []

[preprocess]
resize = [256]
resize_mode = "short-side"
crop = [224, 200]
channels = "BGR"
scale = 1
mean = [104.0, 117, 123.5]
std = [1]
layout = "NHWC"

[calibration]
data = "calib"
method = "percentile"
percentile = 99
samples = 500
batch_size = 4

[evaluation]
data = "eval.npz"
labels = "labels.npy"
output = "logits"
samples = 100

[accuracy]
min_cosine = -0.5
max_drop = 2
metric = "own.py:f1"

[layers]
skip = ["^head/", "Softmax"]
keep_fp32 = ["LayerNorm"]
"""


def _read(folder: Path, text: str) -> ModelSpec:
    path = folder / "model.toml"
    path.write_text(text)
    return read_spec(path)


def test_every_section_and_key_is_read(tmp_path: Path) -> None:
    assert _read(tmp_path, EVERYTHING) == ModelSpec(
        inputs={
            "images": InputSpec((1, 3, 224, 224), (8, 3, 224, 224), (16, 3, 640, 640)),
            "input_1:0": InputSpec((), (), ()),
        },
        preprocess=Preprocess(
            resize=(256,),
            resize_mode="short-side",
            crop=(224, 200),
            channels="BGR",
            scale=1,
            mean=(104.0, 117, 123.5),
            std=(1,),
            layout="NHWC",
        ),
        calibration=CalibrationSpec(str(tmp_path / "calib"), "percentile", {"percentile": 99}, 500, 4),
        evaluation=EvaluationSpec(str(tmp_path / "eval.npz"), str(tmp_path / "labels.npy"), "logits", 100),
        accuracy=AccuracySpec(-0.5, 2, f"{tmp_path}/own.py:f1"),
        layers=LayerSpec(("^head/", "Softmax"), ("LayerNorm",)),
    )


@pytest.mark.parametrize(
    "text", ["", "[calibration]\n[evaluation]\n[layers]\n[accuracy]\n[preprocess]\n[inputs]\n"]
)
def test_what_is_not_set_has_its_default(tmp_path: Path, text: str) -> None:
    spec = _read(tmp_path, text)
    assert spec == ModelSpec()
    assert spec.calibration == CalibrationSpec(None, "auto", {}, None, 8)
    assert spec.accuracy == AccuracySpec(0.99, 1.0)
    assert (spec.evaluation, spec.layers, spec.inputs) == (EvaluationSpec(), LayerSpec(), {})


def test_paths_are_taken_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    spec = _read(
        tmp_path,
        '[calibration]\ndata = "data/calib.py:feeds"\n[evaluation]\ndata = "/abs/eval"\nlabels = "labels"',
    )
    assert spec.calibration.data == f"{tmp_path}/data/calib.py:feeds"
    assert spec.evaluation.data == "/abs/eval"
    assert spec.evaluation.labels == "labels"  # the name of an array, not a file


def test_settings_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot read the settings .*gone.toml: No such file"):
        read_spec(tmp_path / "gone.toml")
    with pytest.raises(UsageError, match=r"^cannot read the settings .*: Is a directory$"):
        read_spec(tmp_path)


@pytest.mark.parametrize("content", [b"[calibration", b"a = ", b"\xff\xfe", b"[layers]\n[layers]\n"])
def test_settings_that_are_no_toml_are_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"model.toml is not valid TOML: \S"):
        read_spec(tmp_path / "model.toml")


@pytest.mark.parametrize("start", ["[inputs", "inputs", "a = {inputs", "[[inputs"])
@pytest.mark.parametrize("part", [".x", ' . "x"', ".'x y'"])
def test_a_key_whose_parts_would_take_minutes_to_read_is_refused(
    tmp_path: Path, start: str, part: str
) -> None:
    (tmp_path / "model.toml").write_text("[layers]\n" + start + part * 100_000)
    with pytest.raises(UsageError, match=r"model.toml has a key of more than 200 parts; remove it$"):
        read_spec(tmp_path / "model.toml")


def test_names_with_many_dots_are_no_keys(tmp_path: Path) -> None:
    names = [f"model.layers.{number}.mlp.down_proj/MatMul" for number in range(2000)]
    (tmp_path / "model.toml").write_text(f"[layers]\nskip = {json.dumps(names)}\n")
    assert read_spec(tmp_path / "model.toml").layers.skip == tuple(names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[calibrate]",
            "unknown section 'calibrate'; the sections are [inputs], [preprocess], [calibration], "
            "[quantization], [evaluation], [accuracy], [layers], [operators]",
        ),
        ("calibration = 3", "[calibration] must be a section, got 3"),
        ("[[layers]]", "[layers] must be a section, got [{}]"),
        ("inputs = 'images'", "[inputs] must be a section, got 'images'"),
        ("[inputs]\nimages = [1, 3]", "[inputs.images] must be a section, got [1, 3]"),
        (
            "[calibration]\nbatchsize = 8",
            "[calibration] has no key 'batchsize'; "
            "its keys are data, method, samples, batch_size, device, memory_bytes, "
            "num_bins, num_levels, max_clipped, percentile, num_candidates, smallest",
        ),
        ("[inputs.x]\nshape = [1]", "[inputs.x] has no key 'shape'; its keys are min, opt, max"),
        ("[calibration]\ndata = 3", "[calibration] data must be a string, got 3"),
        ("[calibration]\nmethod = ['minmax']", "[calibration] method must be a string, got ['minmax']"),
        ("[calibration]\npercentile = '99'", "[calibration] percentile must be a number, got '99'"),
        ("[calibration]\npercentile = true", "[calibration] percentile must be a number, got True"),
        ("[calibration]\nbatch_size = 8.0", "[calibration] batch_size must be a whole number, got 8.0"),
        ("[calibration]\nsamples = true", "[calibration] samples must be a whole number, got True"),
        ("[evaluation]\noutput = 0", "[evaluation] output must be a string, got 0"),
        ("[layers]\nskip = 'head'", "[layers] skip must be a list of strings, got 'head'"),
        ("[layers]\nskip = ['head', 3]", "[layers] skip must be a list of strings, got ['head', 3]"),
        ("[preprocess]\nmean = 0.5", "[preprocess] mean must be a list of numbers, got 0.5"),
        ("[preprocess]\nmean = [true]", "[preprocess] mean must be a list of numbers, got [True]"),
        ("[preprocess]\nresize = 224", "[preprocess] resize must be a list of whole numbers, got 224"),
        ("[preprocess]\ncrop = [2.5]", "[preprocess] crop must be a list of whole numbers, got [2.5]"),
        ("[preprocess]\nlayout = 1", "[preprocess] layout must be a string, got 1"),
        ("[inputs.x]\nmin = [true]", "[inputs.x] min must be a list of whole numbers, got [True]"),
        ("[inputs.x]\nmin = 1", "[inputs.x] min must be a list of whole numbers, got 1"),
        ("[accuracy]\nmax_drop = '1'", "[accuracy] max_drop must be a number, got '1'"),
        (
            "[calibration]\npercentile = 0",
            "[calibration]: percentile must be above 0 and at most 100, got 0",
        ),
        (
            "[calibration]\npercentile = 100.0000001",
            "[calibration]: percentile must be above 0 and at most 100, got 100.0000001",
        ),
        ("[calibration]\nsamples = 0", "[calibration]: calibration samples must be at least 1, got 0"),
        ("[calibration]\nbatch_size = 0", "[calibration]: calibration batch_size must be at least 1, got 0"),
        ("[evaluation]\nsamples = -1", "[evaluation]: evaluation samples must be at least 1, got -1"),
        ("[accuracy]\nmin_cosine = 1.5", "[accuracy]: min_cosine must be between -1 and 1, got 1.5"),
        ("[accuracy]\nmin_cosine = nan", "[accuracy] min_cosine must be a number, got nan"),
        ("[accuracy]\nmax_drop = -1", "[accuracy]: max_drop must be between 0 and 100 points, got -1"),
        (
            "[accuracy]\nmetric = 'map'",
            "[accuracy]: metric must be top-1, top-5 or script.py:function, got 'map'",
        ),
        ("[accuracy]\nmax_drop = 101.5", "[accuracy]: max_drop must be between 0 and 100 points, got 101.5"),
        (
            "[accuracy]\nmin_speedup = 0",
            "[accuracy]: min_speedup is a ratio above 0 and at most 1000, such as 1.05, got 0",
        ),
        ('[calibration]\ndata = ""', "[calibration]: data is empty; give a value or leave it out"),
        ('[evaluation]\nlabels = ""', "[evaluation]: labels is empty; give a value or leave it out"),
        (
            '[layers]\nskip = [""]',
            "[layers]: '' matches every node; write '.*' to mean that",
        ),
        (
            "[layers]\nkeep_fp32 = ['(']",
            "[layers]: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("[preprocess]\nstd = [0]", "[preprocess]: std must not contain 0, got [0]"),
    ],
)
def test_settings_that_are_wrong_are_told(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(f'{tmp_path}/model.toml: {message}')}$"):
        _read(tmp_path, text)


def test_an_incomplete_profile_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"model.toml: \[inputs.x\] is incomplete: .*missing 1 required .* 'max'; "
        r"its keys are min, opt, max$",
    ):
        _read(tmp_path, "[inputs.x]\nmin = [1]\nopt = [2]")


@pytest.mark.parametrize(
    ("low", "middle", "high"),
    [
        ((1,), (1, 3), (1, 3)),
        ((1, 3), (1, 3), (1,)),
        ((2, 3), (1, 3), (4, 3)),
        ((1, 3), (4, 3), (2, 3)),
        ((-1, 3), (1, 3), (2, 3)),
    ],
)
def test_a_profile_that_tensorrt_cannot_have_is_told(
    tmp_path: Path, low: tuple[int, ...], middle: tuple[int, ...], high: tuple[int, ...]
) -> None:
    message = (
        "[inputs.x]: profile shapes must have the same rank, no negative size, and min <= opt <= max in "
        f"every dimension; got min {low}, opt {middle}, max {high}"
    )
    with pytest.raises(UsageError, match=f"model.toml: {re.escape(message)}$"):
        _read(tmp_path, f"[inputs.x]\nmin = {list(low)}\nopt = {list(middle)}\nmax = {list(high)}")


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    assert CalibrationSpec(samples=1, batch_size=1).samples == 1
    assert EvaluationSpec(samples=1).samples == 1
    assert [AccuracySpec(cosine, drop).max_drop for cosine, drop in ((-1, 0), (1, 100))] == [0, 100]


def test_an_input_may_be_empty(tmp_path: Path) -> None:
    spec = _read(tmp_path, "[inputs.x]\nmin = [0, 4]\nopt = [10, 4]\nmax = [100, 4]")
    assert spec.inputs["x"].min == (0, 4)


@pytest.mark.parametrize(
    ("text", "repairs"),
    [
        ("", ("equalize", "smooth", "shift", "rotate", "bias", "weights")),
        ('[quantization]\nrepair = ["auto"]\n', ("equalize", "smooth", "shift", "rotate", "bias", "weights")),
        ('[quantization]\nrepair = ["none"]\n', ()),
        ('[quantization]\nrepair = ["bias", "smooth"]\n', ("bias", "smooth")),
        ('[quantization]\nrepair = ["adaround"]\n', ("adaround",)),
        (
            '[quantization]\nrepair = ["auto", "adaround"]\n',
            ("equalize", "smooth", "shift", "rotate", "bias", "weights", "adaround"),
        ),
        ('[quantization]\nrepair = ["shift", "pad"]\n', ("shift", "pad")),
    ],
)
def test_repairs_are_named_in_the_settings(tmp_path: Path, text: str, repairs: tuple[str, ...]) -> None:
    assert _read(tmp_path, text).quantization.repairs == repairs


def test_zero_points_are_asked_for_in_the_settings(tmp_path: Path) -> None:
    found = _read(tmp_path, '[quantization]\nactivations = "asymmetric"\n')
    assert found.quantization.activations == "asymmetric"
    wanted = "auto, symmetric, asymmetric or per-token"
    with pytest.raises(UsageError, match=f"activations must be {wanted}, got 'uint8'"):
        _read(tmp_path, '[quantization]\nactivations = "uint8"\n')


def test_the_scales_of_weights_are_named_in_the_settings(tmp_path: Path) -> None:
    found = _read(tmp_path, '[quantization]\nweight_granularity = "per-tensor"\n')
    assert found.quantization.weight_granularity == "per-tensor"
    with pytest.raises(UsageError, match="weight_granularity must be per-channel or per-tensor, got 'block'"):
        _read(tmp_path, '[quantization]\nweight_granularity = "block"\n')


@pytest.mark.parametrize(
    ("repair", "message"),
    [
        (
            ("all",),
            "there is no repair 'all'; use auto, none, equalize, smooth, shift, rotate, bias, weights",
        ),
        (("bias", "auto"), "repair is auto alone, none alone, or some of equalize, .*; got bias, auto"),
        (("adaround", "none"), "adaround, pad can be added to auto or these; got adaround, none"),
        (("auto", "bias", "adaround"), "repair is auto alone, .*; got auto, bias, adaround"),
        ((), "repair is auto alone, none alone, or some of equalize, .*; got nothing"),
    ],
)
def test_repairs_that_there_are_not_are_refused(repair: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuantizationSpec(repair)


def test_data_is_relative_to_the_file_that_names_it_unless_it_is_a_url(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(
        '[calibration]\ndata = "shard-{0..3}.tar"\n[evaluation]\ndata = "s3://b/a.npz"\n'
    )
    spec = read_spec(tmp_path / "model.toml")
    assert (spec.calibration.data, spec.evaluation.data) == (
        str(tmp_path / "shard-{0..3}.tar"),
        "s3://b/a.npz",
    )


def test_the_reference_is_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text('[evaluation]\nreference = "float.onnx"\n')
    assert read_spec(tmp_path / "model.toml").evaluation.reference == str(tmp_path / "float.onnx")


def test_the_mark_that_notepad_writes_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_bytes(b'\xef\xbb\xbf[calibration]\r\nmethod = "minmax"\r\n')
    assert read_spec(tmp_path / "model.toml").calibration.method == "minmax"


@pytest.mark.parametrize(
    "text", ['[calibration]\ndata = "a\\u0000b"', '[layers]\nskip = ["a\\u0000"]', '"\\U00000000" = 1']
)
def test_a_nul_is_refused_wherever_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text(text)
    with pytest.raises(
        UsageError, match=r"model\.toml has the character .u0000 in a text, which no name may"
    ):
        read_spec(tmp_path / "model.toml")
