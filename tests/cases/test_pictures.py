"""Pictures of every kind are read by their values, and what is no file is not read at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.preprocess import Preprocess, read_image
from trtq.models.signature import TensorSpec

PICTURES = [TensorSpec("x", "float32", ("N", 3, 4, 4))]


def read(
    path: Path, channels: str = "L", size: tuple[int, int] | None = None, **more: object
) -> NDArray[np.float32]:
    steps = Preprocess(channels=channels, scale=1.0, mean=(0.0,), std=(1.0,), **more)  # type: ignore[arg-type]
    return np.asarray(read_image(path, steps, size))


def test_sixteen_bits_are_read_by_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 257, 10_000], [32_768, 60_000, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.allclose(read(tmp_path / "a.png"), values[None] / 257, atol=1e-4)
    assert np.allclose(read(tmp_path / "a.png", "RGB"), np.stack([values / 257] * 3), atol=1e-4)
    assert np.allclose(read(tmp_path / "a.png", "BGR"), np.stack([values / 257] * 3), atol=1e-4)


@pytest.mark.parametrize("mode", ["stretch", "short-side", "letterbox"])
def test_sixteen_bits_are_resized_and_cropped_as_others(tmp_path: Path, mode: str) -> None:
    Image.fromarray(np.full((8, 6), 25_700, np.uint16)).save(tmp_path / "a.png")
    pixels = read(
        tmp_path / "a.png", "RGB", resize=(4,), resize_mode=mode, crop=(4, 4) if mode == "short-side" else ()
    )
    assert pixels.shape == (3, 4, 4)
    assert set(np.unique(pixels)) <= {100.0, 114.0}
    assert (pixels == 100).any()


def test_a_palette_is_read_by_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode=None)
    image = image.convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "a.png")
    colours = np.array([[10, 20, 30], [200, 100, 50], [0, 0, 255], [200, 100, 50]], np.float32)
    assert np.array_equal(read(tmp_path / "a.png", "RGB").reshape(3, 4).T, colours)
    grey = np.rint(colours @ [0.299, 0.587, 0.114])
    assert np.abs(read(tmp_path / "a.png").reshape(4) - grey).max() <= 1


def test_cmyk_is_read_by_its_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    assert np.abs(read(tmp_path / "red.jpg", "RGB")[:, 0, 0] - [255, 0, 0]).max() <= 3
    assert abs(read(tmp_path / "red.jpg")[0, 0, 0] - 76) <= 3


def test_tiff_is_read_as_other_pictures(tmp_path: Path) -> None:
    values = np.array([[0, 257], [32_768, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray((values // 257).astype(np.uint8)).save(tmp_path / "b.tiff")
    assert np.allclose(read(tmp_path / "a.tif"), values[None] / 257, atol=1e-4)
    assert np.array_equal(read(tmp_path / "b.tiff"), values[None] // 257)


@pytest.mark.parametrize("exif", [False, True])
@pytest.mark.parametrize("name", ["a.tif", "a.webp", "a.png"])
def test_several_pages_or_frames_are_refused(tmp_path: Path, name: str, exif: bool) -> None:
    first, second = (Image.new("RGB", (4, 4), color) for color in ("red", "blue"))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.raises(DataError, match=rf"{name} holds 2 pages or frames; save each as a separate image"):
        read(tmp_path / name, exif=exif)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 0.5]], np.float32), "has float pixels of unknown range; give arrays in"),
        (np.array([[-1, 9]], np.int32), r"has pixel values from -1 to 9, not 0 to 65535 as 16 bits do"),
        (np.array([[0, 65_536]], np.int32), "has pixel values from 0 to 65536, not 0 to 65535 as 16 bits"),
    ],
)
def test_numbers_without_a_known_scale_are_refused(
    tmp_path: Path, values: NDArray[np.generic], message: str
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.tif")


def test_exif_turns_a_picture_only_if_it_is_asked_for(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    Image.fromarray(np.array([[1, 2, 3]], np.uint8)).save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]
    assert read(tmp_path / "a.png", exif=True).tolist() == [[[1], [2], [3]]]


def test_a_device_among_the_pictures_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "z.png").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"z\.png is a device, a pipe or a socket, not a file; leave it out"):
        open_batches(str(tmp_path), PICTURES, 2)


def test_a_pipe_among_feeds_or_as_data_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    for source in (tmp_path, tmp_path / "a.npz"):
        with pytest.raises(DataError, match=r"a\.npz is a device, a pipe or a socket"):
            open_batches(str(source), PICTURES, 2)
