"""`trtq init`: what it guesses, asks and writes."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import trtq

import trtq as package
from trtq.calibrators.settings import read_spec
from trtq.models.families import FAMILIES, describe_imagenet
from trtq.models.preprocess import Preprocess
from trtq.models.spec import InputSpec
from trtq.pipeline.init import PRESETS, find_hints

Write = Callable[..., Path]
PLAIN = "g (float[{dims}] {name}) => (float[{dims}] y) {{ y = Relu ({name}) }}"


@pytest.fixture
def model(path_of: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that takes pictures, in the current folder."""
    monkeypatch.chdir(tmp_path)
    path_of(PLAIN.format(dims="N,3,64,48", name="x")).rename("net.onnx")
    return Path("net.onnx")


@pytest.mark.parametrize(
    ("output", "words"),
    [("net.toml", ""), ("model.toml", ""), ("./net.toml", ""), ("my net.toml", " --spec 'my net.toml'")],
)
def test_the_next_command_reads_what_was_written(output: str, words: str, model: Path) -> None:
    result = trtq("init", model, "-o", output, "--preset", "arrays")
    assert result.stdout.splitlines()[-1] == f"next: trtq build net.onnx --int8{words}"


def test_the_demo_gets_its_data_and_labels(demo_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_folder, tmp_path / "demo")
    (folder / "model.toml").unlink()
    result = trtq("init", folder / "model.onnx")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"written to {folder / 'model.toml'}: imagenet, 'image' takes images, ")
    assert result.stdout.endswith(f"next: trtq build {folder / 'model.onnx'} --int8\n")
    spec = read_spec(folder / "model.toml")
    assert spec.calibration.data == str(folder / "calibration.npz")
    assert (spec.evaluation.data, spec.evaluation.labels) == (str(folder / "evaluation.npz"), "labels")
    assert spec.inputs["image"] == InputSpec((1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))
    assert spec.preprocess.channels == "L"
    assert trtq("build", folder / "model.onnx", "--int8", "--dry-run", "-q").exit_code == 0


def test_data_that_is_not_there_is_told(model: Path) -> None:
    for data, is_told in (("no.npz", True), ("*.npz", False), ("own.py:feeds", False), (model.name, False)):
        shown = trtq("init", model, "--calib-data", data, "--force", "-o", "s.toml").stdout
        assert (f"there is no {data} yet, which a build needs\n" in shown) == is_told


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_reads_back_and_explains_every_key(preset: str, model: Path) -> None:
    given = ("--preset", preset, "--calib-data", "data/c.npz", "-o", "s.toml")
    assert trtq("init", model, *given, "-q").output == ""
    found, text = read_spec("s.toml"), Path("s.toml").read_text()
    assert found.calibration.data == "data/c.npz"
    family = FAMILIES[preset]() if preset in FAMILIES else None
    if preset in ("encoder", "bert", "diffusion", "arrays"):
        assert "[preprocess]" not in text
    else:
        assert family is not None
        assert found.preprocess.mean == family.preprocess.mean
        assert found.inputs["x"].opt == (8, 3, 64, 48)
        assert "\n# std: Standard deviation to divide by, one number per channel or one for all." in text
    assert found.layers.skip == (family.layers.skip if family else ())
    assert "\n# min_cosine: Gate: lowest cosine similarity allowed for any output.  [default: 0.99]\n" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("name", "dims", "file", "preset"),
    [
        ("images", "1,3,64,64", "m", "yolo"),
        ("x", "1,3,64,64", "yolov8n", "yolo"),
        ("x", "1,3,64,64", "clip-visual", "clip"),
        ("x", "1,3,64,64", "vit_b", "vit"),
        ("x", "1,64,64,3", "m", "imagenet"),
        ("x", "1,7,64,64", "m", "arrays"),
        ("x", "1,3", "m", "arrays"),
        ("timestep", "1", "m", "diffusion"),
    ],
)
def test_the_family_is_guessed_by_names_and_shapes(
    name: str, dims: str, file: str, preset: str, path_of: Write, tmp_path: Path
) -> None:
    path = path_of(PLAIN.format(dims=dims, name=name)).rename(tmp_path / f"{file}.onnx")
    assert find_hints(path).preset == preset


def test_tokens_and_normalizations_of_the_model_are_seen(path_of: Write) -> None:
    text = "g (int64[N,L] input_ids, int64[N,L] attention_mask) => (int64[N,L] y) {{ y = {} }}"
    found = package.init(path_of(text.format("Add (input_ids, attention_mask)")))
    assert (found.preset, found.reason) == ("bert", "its inputs are input_ids, attention_mask")
    assert found.spec.inputs["attention_mask"] == InputSpec((1, 1), (8, 128), (32, 512))
    assert not found.has_pictures
    for factor, preset, scale in ((1 / 128, "pixels", 1.0), (4.5, "unit", 1 / 255)):
        own = path_of(
            "g (float[1,3,8,8] x) => (float[1,3,8,8] y) { a = Sub (x, m) y = Mul (a, f) }",
            m=np.float32(0.45 if preset == "unit" else 127),
            f=np.float32(factor),
        )
        found = package.init(own)
        assert (found.preset, found.spec.preprocess.scale, found.spec.preprocess.mean) == (
            preset,
            scale,
            (0.0,),
        )


def test_a_processor_beside_the_model_says_how_pictures_are_prepared(model: Path) -> None:
    steps = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "size": {"height": 64, "width": 48}}
    Path("preprocessor_config.json").write_text(json.dumps(steps))
    trtq("init", model, "-q")
    assert read_spec("net.toml").preprocess == Preprocess(
        resize=(64, 48), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0)
    )
    Path("preprocessor_config.json").write_text("[")
    result = trtq("init", model, "--force")
    assert (result.exit_code, "preprocessor_config.json cannot be read; move" in result.stderr) == (2, True)


def test_given_options_stand_in_the_place_of_guesses(model: Path) -> None:
    numbers = ("--mean", "0.5,0.25,1", "--std", "2", "--resize", "32x64", "--channels", "BGR", "--scale", "1")
    trtq("init", model, *numbers, "--eval-data", "e.npz", "--labels", "l.npy", "-o", "sub.toml", "-q")
    spec = read_spec("sub.toml")
    usual = replace(describe_imagenet((64, 48)).preprocess, resize=(32, 64), channels="BGR", scale=1.0)
    assert spec.preprocess == replace(usual, mean=(0.5, 0.25, 1.0), std=(2.0,))  # the rest is the preset's
    assert (spec.evaluation.data, spec.evaluation.labels) == ("e.npz", "l.npy")
    Path("elsewhere").mkdir()
    trtq("init", model, "--calib-data", "s3://data/c.npz", "-o", "elsewhere/t.toml", "-q")
    assert read_spec("elsewhere/t.toml").calibration.data == "s3://data/c.npz"
    python = package.ModelSpec(calibration=package.CalibrationSpec(data=[{}]))
    assert '\ndata = "list in Python"\n' in package.init(model, spec=python).text
    assert trtq("init", model, "--mean", "a", "-o", "t.toml").stderr == (
        "error: --mean takes numbers, such as 0.5,0.5,0.5, got 'a'\n"
    )
    assert (
        "--resize takes sizes in pixels, such as 224 or 480x640, got '1.5'"
        in trtq("init", model, "--resize", "1.5", "-o", "t.toml").stderr
    )


def test_nothing_is_written_over_and_what_cannot_be_is_refused(model: Path, path_of: Write) -> None:
    Path("net.toml").write_text("mine")
    result = trtq("init", model)
    assert (result.exit_code, Path("net.toml").read_text()) == (2, "mine")
    assert result.stderr == "error: net.toml already exists; --force overwrites it, -o names another file\n"
    assert trtq("init", model, "--force").exit_code == 0
    arrays = path_of(PLAIN.format(dims="1,3", name="x"))
    result = trtq("init", arrays, "--preset", "yolo")
    assert "the preset yolo is for images, and no input of" in result.stderr
    with pytest.raises(package.UsageError, match=r"^there is no preset 'x'; use imagenet, yolo, "):
        package.init(arrays, preset="x")
    assert "cannot read the model no.onnx" in trtq("init", "no.onnx").stderr


def test_in_a_terminal_it_asks_and_enter_takes_the_guess(model: Path) -> None:
    np.savez("calibration.npz", x=np.zeros((2, 3, 64, 48), np.float32))
    ours, theirs = pty.openpty()
    os.write(ours, b"yolo\n\nmore.npz\n")
    command = [sys.executable, "-m", "trtq", "init", str(model)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=True)
    for descriptor in (ours, theirs):
        os.close(descriptor)
    assert "it seems to be imagenet: 'x' takes images" in done.stderr
    assert "calibration data, a file or folder [calibration.npz]: " in done.stderr
    spec = read_spec("net.toml")
    assert (spec.calibration.data, spec.evaluation.data) == ("calibration.npz", "more.npz")
    assert (spec.preprocess.resize_mode, spec.layers.skip) == ("letterbox", ("dfl",))
