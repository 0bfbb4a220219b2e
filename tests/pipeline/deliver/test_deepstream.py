"""What nvinfer is told does to a picture what the build did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trtq.errors import ArtifactError
from trtq.models.preprocess import Preprocess, prepare_image
from trtq.models.signature import TensorSpec
from trtq.pipeline.deliver.deepstream import (
    find_scaling,
    format_config,
    list_picture_differences,
    list_picture_properties,
    read_picture_size,
)

RGB = TensorSpec("image", "float32", ("batch", 3, 4, 6))
CAFFE = Preprocess(channels="BGR", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    "steps",
    [
        CAFFE,
        Preprocess(mean=(0.0,), std=(1.0,)),
        Preprocess(mean=(0.5,), std=(0.5,)),
        Preprocess(mean=(0.485, 0.456, 0.406), std=(0.226,)),
        Preprocess(channels="L", mean=(0.1307,), std=(0.3081,)),
        Preprocess(channels="L"),
        Preprocess(scale=1.0, mean=(127.5,), std=(127.5,), layout="NHWC"),
    ],
)
def test_the_formula_of_nvinfer_gives_what_the_build_gave(steps: Preprocess) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    picture = Image.fromarray(pixels)
    expected = prepare_image(picture, steps, (4, 6), "picture")
    count = 1 if steps.channels == "L" else 3
    told = list_picture_properties(steps, (count, 4, 6))
    x = np.asarray(picture.convert("L"))[..., None] if count == 1 else pixels
    x = x[..., ::-1] if told["model-color-format"] == "1" else x
    mean = [float(word) for word in told["offsets"].split(";")]
    y = float(told["net-scale-factor"]) * (x.astype(np.float64) - mean)
    y = y if told["network-input-order"] == "1" else y.transpose(2, 0, 1)
    np.testing.assert_allclose(expected, y, rtol=1e-5, atol=1e-5)


def test_numbers_known_from_samples_come_out() -> None:
    assert find_scaling(CAFFE, 3) == (1.0, (103.939, 116.779, 123.68))
    told = list_picture_properties(Preprocess(mean=(0.0,), std=(1.0,)), (3, 544, 960))
    assert told["net-scale-factor"] == "0.00392156863"
    assert (told["offsets"], told["infer-dims"], told["model-color-format"]) == ("0;0;0", "3;544;960", "0")


def test_one_factor_for_each_channel_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"one net-scale-factor for all; build with --std 0.226, so that"):
        find_scaling(Preprocess(), 3)


@pytest.mark.parametrize("std", [(-1.0,), (1e308,)])
def test_a_factor_that_is_not_positive_is_refused(std: tuple[float]) -> None:
    with pytest.raises(ArtifactError, match=r"nvinfer takes no net-scale-factor of .*; it must be positive"):
        find_scaling(Preprocess(mean=(0.0,), std=std, scale=1e-20), 3)


@pytest.mark.parametrize(
    ("changes", "steps", "words"),
    [
        ({"dtype": "float16"}, {}, "nvinfer feeds images as float32 with four axes"),
        ({"shape": (3, 4, 6)}, {}, "nvinfer feeds images as float32 with four axes"),
        ({"shape": ("n", 4, 6, 3)}, {}, "4 channels in the layout NCHW, which are not those of RGB"),
        (
            {},
            {"channels": "L"},
            "3 channels in the layout NCHW, which are not those of L; build with --layout",
        ),
        ({"shape": ("n", 3, "h", 6)}, {}, "its height and width are dynamic, and the build names none"),
    ],
)
def test_what_nvinfer_cannot_feed_is_refused(changes: Any, steps: Any, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_picture_size(replace(RGB, **changes), Preprocess(**steps), ())


def test_the_size_is_that_of_the_input_or_of_the_profile() -> None:
    assert read_picture_size(RGB, Preprocess(), ()) == (3, 4, 6)
    free = replace(RGB, shape=(1, 3, "h", "w"))
    assert read_picture_size(free, Preprocess(), (1, 3, 20, 30)) == (3, 20, 30)
    last = Preprocess(layout="NHWC")
    assert read_picture_size(replace(RGB, shape=(1, 20, 30, 3)), last, ()) == (3, 20, 30)
    assert "infer-dims" not in list_picture_properties(replace(last, std=(1.0,)), (3, 20, 30))
    with pytest.raises(
        ArtifactError, match=r"nvinfer sets them \(infer-dims\) as C;H;W alone; fix them in the"
    ):
        read_picture_size(replace(RGB, shape=(1, "h", "w", 3)), last, (1, 20, 30, 3))


def test_other_cuts_of_the_frame_are_told() -> None:
    letterbox = Preprocess(resize_mode="letterbox", std=(1.0,))
    told = list_picture_properties(letterbox, (3, 4, 6))
    assert (told["maintain-aspect-ratio"], told["symmetric-padding"]) == ("1", "1")
    assert "pads with black" in list_picture_differences(letterbox, (3, 4, 6))[0]
    cropped = Preprocess(resize=(256,), crop=(224,))
    assert "stretches the whole frame to 224x224" in list_picture_differences(cropped, (3, 224, 224))[0]
    assert list_picture_differences(Preprocess(), (3, 4, 6)) == []


def test_a_configuration_is_a_group_of_keys() -> None:
    assert format_config({"a": "1", "b": "2;3"}, ["Words."]) == "# Words.\n[property]\na=1\nb=2;3\n"
