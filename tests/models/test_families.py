"""Settings by family, and their text."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trtq.calibrators.settings import read_spec
from trtq.models.families import (
    FAMILIES,
    describe_diffusion,
    describe_encoder,
    describe_family,
    describe_imagenet,
    describe_transformer,
    describe_yolo,
)
from trtq.models.inputs import ModuleInput, parse_input
from trtq.models.preprocess import Preprocess
from trtq.models.spec import CalibrationSpec, InputSpec, ModelSpec
from trtq.models.toml import format_spec


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_of_every_family_reads_back_as_it(name: str, tmp_path: Path) -> None:
    spec = FAMILIES[name]()
    (tmp_path / "model.toml").write_text(format_spec(spec))
    assert read_spec(tmp_path / "model.toml") == spec


def test_defaults_are_left_out_and_names_are_quoted_where_they_must(tmp_path: Path) -> None:
    spec = ModelSpec(
        inputs={'in:0 "a"': InputSpec((1,), (2,), (3,))}, calibration=CalibrationSpec(method="mse", samples=5)
    )
    text = format_spec(spec)
    assert text == (
        '[inputs."in:0 \\"a\\""]\nmin = [1]\nopt = [2]\nmax = [3]\n\n'
        '[calibration]\nmethod = "mse"\nsamples = 5\n'
    )
    (tmp_path / "model.toml").write_text(text)
    assert read_spec(tmp_path / "model.toml") == spec
    assert format_spec(ModelSpec()) == ""


def test_an_imagenet_classifier_is_prepared_as_torchvision_does() -> None:
    spec = describe_imagenet()
    assert spec.inputs["image"].opt == (8, 3, 224, 224)
    steps = spec.preprocess
    assert (steps.resize, steps.resize_mode, steps.crop) == ((256,), "short-side", (224,))
    assert (steps.mean, steps.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_detector_is_letterboxed_and_keeps_its_decoding_float() -> None:
    spec = describe_yolo()
    assert (spec.preprocess.resize_mode, spec.preprocess.mean, spec.preprocess.std) == (
        "letterbox",
        (0,),
        (1,),
    )
    assert spec.inputs["images"].max == (32, 3, 640, 640)
    assert spec.layers.skip


def test_an_encoder_takes_up_to_its_length() -> None:
    assert describe_encoder(length=64).inputs["attention_mask"] == InputSpec((1, 1), (8, 64), (32, 64))


def test_the_configuration_of_a_transformer_tells_its_inputs() -> None:
    config = SimpleNamespace(type_vocab_size=2, max_position_embeddings=512)
    inputs, spec = describe_transformer(config, "input_ids", None)
    assert [item.name for item in inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert set(spec.inputs) == {item.name for item in inputs}
    vision, spec = describe_transformer(
        SimpleNamespace(image_size=[32, 48], num_channels=1), "pixel_values", None
    )
    assert vision == (ModuleInput("pixel_values", ("N", 1, 32, 48)),)
    assert spec.inputs["pixel_values"].min == (1, 1, 32, 48)
    assert describe_transformer(SimpleNamespace(), "input_features", None) == ((), ModelSpec())


@pytest.mark.parametrize(
    ("processor", "size", "steps"),
    [
        (  # ViT
            {"size": {"height": 224, "width": 224}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            224,
            Preprocess((224,), mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
        (  # an older ViT
            {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            224,
            Preprocess((224,), mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
        (  # MobileNet
            {
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True,
            },
            224,
            Preprocess((256,), "short-side", (224,)),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, Preprocess((256,), "short-side", (224,))),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 384, Preprocess((384,))),
        (
            {"size": 256, "crop_size": 224, "do_center_crop": True, "do_normalize": False},
            224,
            Preprocess((256,), "short-side", (224,), mean=(0.0,), std=(1.0,)),
        ),
        ({"do_resize": False, "do_rescale": False}, 224, Preprocess(scale=1.0)),
    ],
)
def test_pictures_are_prepared_as_the_preprocessor_says(
    processor: dict[str, Any], size: int, steps: Preprocess
) -> None:
    inputs, spec = describe_transformer(SimpleNamespace(), "pixel_values", processor)
    assert inputs == (ModuleInput("pixel_values", ("N", 3, size, size)),)
    assert spec.preprocess == steps


def test_a_family_takes_the_name_and_the_size_of_the_picture() -> None:
    spec = describe_family("yolo", (parse_input("ids:N"), parse_input("x:Nx3x320x416")))
    assert spec.inputs == {"x": InputSpec((1, 3, 320, 416), (8, 3, 320, 416), (32, 3, 320, 416))}
    assert spec.preprocess.resize == (320, 416)
    spec = describe_family("imagenet", (parse_input("x:Nx3x160x160"),))
    assert (spec.preprocess.resize, spec.preprocess.crop) == ((183,), (160,))
    assert describe_family("imagenet", (parse_input("x:Nx3xHxW"),)) == describe_imagenet()
    assert describe_family("encoder", (parse_input("x:NxL"),)) == describe_encoder()


@pytest.mark.parametrize(
    ("name", "is_last"),
    [
        ("proj_out/MatMul", True),
        ("/proj_out/Gemm", True),
        ("transformer.norm_out.linear/Gemm", True),
        ("single_transformer_blocks.0.proj_out/MatMul", False),
        ("proj_output/MatMul", False),
    ],
)
def test_the_last_layers_of_a_diffusion_transformer_stay_float(name: str, is_last: bool) -> None:
    patterns = describe_diffusion().layers.skip
    assert any(re.search(pattern, name) for pattern in patterns) == is_last
