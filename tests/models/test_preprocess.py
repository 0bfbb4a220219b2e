"""Tests of the way from a picture to an array: by hand, pixel for pixel."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from trtq.errors import DataError, UsageError
from trtq.models.preprocess import Preprocess, read_image, restore_image


def _steps(**changes: Any) -> Preprocess:
    return Preprocess(**{"scale": 1.0, "mean": (0.0,), "std": (1.0,), **changes})


def _written(tmp_path: Path, pixels: object, name: str = "a.png") -> Path:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(tmp_path / name)
    return tmp_path / name


def _numbered(height: int, width: int) -> NDArray[np.uint8]:
    """Red tells the row, green the column, blue is 200."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 200)], axis=-1).astype(np.uint8)


def test_the_pixels_come_in_the_layout_that_is_asked(tmp_path: Path) -> None:
    pixels = _numbered(3, 5)
    path = _written(tmp_path, pixels)
    first = read_image(path, _steps(), None)
    assert (first.shape, first.dtype.name, first.flags["C_CONTIGUOUS"]) == ((3, 3, 5), "float32", True)
    assert np.array_equal(first, pixels.transpose(2, 0, 1))
    assert np.array_equal(read_image(path, _steps(layout="NHWC"), None), pixels)


def test_channels_may_be_swapped_or_grey(tmp_path: Path) -> None:
    path = _written(tmp_path, [[[10, 20, 30]]])
    assert read_image(path, _steps(), None).reshape(-1).tolist() == [10, 20, 30]
    assert read_image(path, _steps(channels="BGR"), None).reshape(-1).tolist() == [30, 20, 10]
    grey = read_image(path, _steps(channels="L"), None)
    assert grey.shape == (1, 1, 1)
    assert grey[0, 0, 0] == round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)  # ITU-R 601, as Pillow says


@pytest.mark.parametrize(
    "steps",
    [
        Preprocess(),
        Preprocess(channels="BGR", layout="NHWC", scale=0.5, mean=(3.0, 1.0, 2.0), std=(7.0, 9.0, 2.0)),
        Preprocess(channels="L", mean=(0.5,), std=(0.25,)),
    ],
)
def test_a_sample_becomes_the_picture_that_it_was(tmp_path: Path, steps: Preprocess) -> None:
    path = _written(tmp_path, _numbered(3, 5))
    wanted = Image.open(path).convert("L" if steps.channels == "L" else "RGB")
    found = restore_image(read_image(path, steps, None), steps)
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


def test_a_grey_picture_has_three_equal_channels(tmp_path: Path) -> None:
    assert read_image(_written(tmp_path, [[7]]), _steps(), None).reshape(-1).tolist() == [7, 7, 7]


def test_a_picture_with_transparency_loses_it(tmp_path: Path) -> None:
    path = _written(tmp_path, [[[10, 20, 30, 128]]])
    assert read_image(path, _steps(), None).reshape(-1).tolist() == [10, 20, 30]


def test_scale_comes_before_mean_and_std(tmp_path: Path) -> None:
    path = _written(tmp_path, [[[100, 50, 200]]])
    steps = Preprocess(scale=0.5, mean=(10.0, 20.0, 30.0), std=(2.0, 5.0, 10.0))
    assert read_image(path, steps, None).reshape(-1).tolist() == [20, 1, 7]


def test_the_defaults_are_those_of_imagenet(tmp_path: Path) -> None:
    found = read_image(_written(tmp_path, [[[255, 0, 128]]]), Preprocess(), None).reshape(-1)
    wanted = [(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("mean", "std", "wanted"),
    [
        ((2.0,), (4.0,), 2.0),
        ((2.0, 2.0), (4.0, 4.0, 4.0, 4.0), 2.0),  # the same for all
        ((1.0, 2.0, 6.0), (3.5,), 2.0),  # the ImageNet way on grey: the mean of them
    ],
)
def test_one_number_stands_for_every_channel(
    tmp_path: Path, mean: tuple[float, ...], std: tuple[float, ...], wanted: float
) -> None:
    path = _written(tmp_path, [[10]])
    assert read_image(path, _steps(channels="L", mean=mean, std=std), None).item() == wanted


def test_equal_numbers_of_any_count_stand_for_every_channel(tmp_path: Path) -> None:
    path = _written(tmp_path, [[[10, 20, 30]]])
    found = read_image(path, _steps(mean=(2.0, 2.0), std=(4.0,)), None)
    assert found.reshape(-1).tolist() == [2.0, 4.5, 7.0]


@pytest.mark.parametrize("key", ["mean", "std"])
def test_another_number_of_channels_is_told(tmp_path: Path, key: str) -> None:
    path = _written(tmp_path, [[10]])
    with pytest.raises(DataError, match=r"^mean and std need 3 numbers, one per channel, got \[1.0, 2.0\]$"):
        read_image(path, _steps(**{key: (1.0, 2.0)}), None)


def test_a_picture_stays_as_it_is_without_a_size(tmp_path: Path) -> None:
    assert read_image(_written(tmp_path, _numbered(3, 5)), _steps(), None).shape == (3, 3, 5)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({}, (8, 6)),  # the model's
        ({"resize": (4,)}, (4, 4)),
        ({"resize": (4, 10)}, (4, 10)),
        ({"resize": (4,), "resize_mode": "short-side"}, (4, 8)),
        ({"resize": (40,), "resize_mode": "short-side"}, (40, 80)),
        ({"resize": (4,), "resize_mode": "letterbox"}, (4, 4)),
        ({"resize": (10, 4), "resize_mode": "letterbox"}, (10, 4)),
        ({"crop": (2, 3)}, (2, 3)),  # the model's size is not used
        ({"crop": (5,)}, (5, 5)),
        ({"crop": (1,)}, (1, 1)),
        ({"crop": (10, 20)}, (10, 20)),
        ({"resize": (8,), "resize_mode": "short-side", "crop": (7,)}, (7, 7)),
    ],
)
def test_sizes(tmp_path: Path, changes: dict[str, Any], shape: tuple[int, int]) -> None:
    path = _written(tmp_path, _numbered(10, 20))
    assert read_image(path, _steps(**changes), (8, 6)).shape == (3, *shape)


def test_stretching_averages_neighbours(tmp_path: Path) -> None:
    path = _written(tmp_path, [[0, 0, 100, 100]] * 4)
    # A triangle over the three nearest: 3/4, 3/4 and 1/4 of a pixel each, and 100 * 1/7 is 14.
    assert read_image(path, _steps(channels="L"), (2, 2))[0].tolist() == [[14, 86], [14, 86]]


def test_the_short_side_is_the_smaller_one_of_a_tall_picture(tmp_path: Path) -> None:
    path = _written(tmp_path, _numbered(20, 10))
    assert read_image(path, _steps(resize=(5,), resize_mode="short-side"), None).shape == (3, 10, 5)


@pytest.mark.parametrize(("channels", "depth"), [("RGB", 3), ("L", 1)])
def test_a_letterbox_pads_both_sides_with_grey(tmp_path: Path, channels: str, depth: int) -> None:
    path = _written(tmp_path, np.full((2, 4, 3), 50))
    found = read_image(path, _steps(resize=(4,), resize_mode="letterbox", channels=channels), None)
    assert found.shape == (depth, 4, 4)
    assert found.tolist() == [[[114] * 4, [50] * 4, [50] * 4, [114] * 4]] * depth


@pytest.mark.parametrize("size", [(1, 400), (400, 1)])
def test_a_letterbox_of_a_thread_keeps_one_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    path = _written(tmp_path, np.full((*size, 3), 50))
    found = read_image(path, _steps(resize=(4,), resize_mode="letterbox"), None)
    assert (found[0] == 50).sum() == 4


def test_the_crop_is_the_middle(tmp_path: Path) -> None:
    found = read_image(_written(tmp_path, _numbered(9, 12)), _steps(crop=(3, 4)), None)
    assert found[0].tolist() == [[3] * 4, [4] * 4, [5] * 4]
    assert found[1].tolist() == [[4, 5, 6, 7]] * 3


@pytest.mark.parametrize(("crop", "shown"), [((4, 2), "4x2"), ((2, 6), "2x6")])
def test_a_crop_larger_than_the_picture_is_told(tmp_path: Path, crop: tuple[int, int], shown: str) -> None:
    path = _written(tmp_path, _numbered(3, 5))
    with pytest.raises(
        DataError,
        match=rf"a.png is 3x5 after resizing, smaller than the crop {shown}; "
        r"set `resize` in \[preprocess\] to at least the crop$",
    ):
        read_image(path, _steps(crop=crop), None)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a.png cannot be read as an image: \S"):
        read_image(tmp_path / "a.png", Preprocess(), None)


def test_a_picture_that_promises_too_many_pixels_is_told(tmp_path: Path) -> None:
    path = _written(tmp_path, _numbered(3, 5), "a.bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"a.bmp cannot be read as an image: Image size \(3600000000 pixels\)"
    ):
        read_image(path, Preprocess(), None)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["png", "jpeg", "webp"]))
def test_no_damage_escapes_as_a_foreign_error(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3)):
        content[place] = value
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[: data.draw(places)] if data.draw(st.booleans()) else content)
    with suppress(DataError):
        assert read_image(path, _steps(resize=(4,)), None).shape == (3, 4, 4)


def test_a_broken_chunk_is_told(tmp_path: Path) -> None:
    path = _written(tmp_path, np.random.default_rng(0).integers(0, 255, (300, 300, 3)))
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\xff\x01\xfe\x02"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png cannot be read as an image: broken PNG file"):
        read_image(path, Preprocess(), None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": (1, 2, 3)}, "resize must be one or two positive sizes in pixels, got [1, 2, 3]"),
        ({"crop": (0,)}, "crop must be one or two positive sizes in pixels, got [0]"),
        ({"crop": (5, -1)}, "crop must be one or two positive sizes in pixels, got [5, -1]"),
        ({"resize_mode": "fit"}, "resize_mode must be one of stretch, short-side, letterbox, got 'fit'"),
        ({"channels": "rgb"}, "channels must be one of RGB, BGR, L, got 'rgb'"),
        ({"layout": "HWC"}, "layout must be one of NCHW, NHWC, got 'HWC'"),
        ({"mean": ()}, "mean and std must hold one number, or one per channel, got [] and [1.0]"),
        ({"std": ()}, "mean and std must hold one number, or one per channel, got [0.0] and []"),
        ({"std": (1.0, 0.0, 1.0)}, "std must not contain 0, got [1.0, 0.0, 1.0]"),
    ],
)
def test_steps_that_are_wrong_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        _steps(**changes)
