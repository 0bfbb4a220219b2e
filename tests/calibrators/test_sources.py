"""Tests of the calibration data that a user may name: arrays, feeds, pictures; and of made-up numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import join, sizes_of
from numpy.typing import NDArray
from PIL import Image

from trtq.calibrators.data.files import LocalFolder
from trtq.calibrators.sources import ACCEPTED_DATA, make_random_batches, open_batches
from trtq.errors import DataError
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec

OPEN = [TensorSpec("x", "float32", ("N", 2))]
FIXED = [TensorSpec("x", "float32", (4, 2))]
PICTURE = TensorSpec("image", "float32", ("N", 3, 4, 6))
PLAIN = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))
X = np.arange(20, dtype=np.float32).reshape(10, 2)


def _picture(path: Path, size: tuple[int, int] = (6, 4), color: object = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(color, int) else "RGB", size, color).save(path)  # type: ignore[arg-type]


# Arrays with a sample axis


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_comes_in_batches(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "calib.npz", x=X)
    batches = open_batches(str(tmp_path / "calib.npz"), OPEN, 4)
    assert sizes_of(batches) == [4, 4, 2]
    assert np.array_equal(join(batches), X)
    assert batches.num_samples == 10


def test_an_npy_comes_in_batches(tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", X)
    assert np.array_equal(join(open_batches(str(tmp_path / "calib.npy"), OPEN, 4)), X)


def test_a_fixed_batch_size_wins_and_an_incomplete_last_batch_is_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", x=X)
    batches = open_batches(str(tmp_path / "calib.npz"), FIXED, 3)
    assert (sizes_of(batches), batches.num_samples) == ([4, 4], 8)
    assert np.array_equal(join(batches), X[:8])


def test_too_few_samples_for_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", x=X[:3])
    with pytest.raises(DataError, match=r"calib.npz holds 3 samples, the model takes batches of exactly 4$"):
        open_batches(str(tmp_path / "calib.npz"), FIXED, 8)


def test_labels_may_stand_beside_the_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "calib.npz", x=X, labels=np.arange(10))
    path = str(tmp_path / "calib.npz")
    assert join(open_batches(path, OPEN, 4, extra=["labels"]), "labels").tolist() == list(range(10))
    with pytest.raises(DataError, match=r"has an array 'labels' that the model does not take"):
        list(open_batches(path, OPEN, 4))
    with pytest.raises(DataError, match=r"its inputs are x, and labels are read from 'truth'$"):
        list(open_batches(path, OPEN, 4, extra=["truth"]))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": X}, r"calib.npz \(samples 0 to 7\) has no array 'x'; it has y, the model takes x$"),
        ({"x": X.astype("i8")}, r"input 'x' of .* \(samples 0 to 7\) is int64, the model expects float32; "),
        ({"x": X[:, :1]}, r"samples 0 to 7\) has shape \(8, 1\), the model expects \(N, 2\); "),
        (
            {"x": np.where(X == 18, np.nan, X)},
            r"samples 8 to 9\) has 1 NaN or infinite value, the first in",
        ),
        ({"x": X[:0]}, r"calib.npz holds no samples; give at least one$"),
    ],
)
def test_arrays_that_do_not_fit_are_told(
    tmp_path: Path, arrays: Mapping[str, NDArray[Any]], message: str
) -> None:
    np.savez(tmp_path / "calib.npz", **dict(arrays))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        list(open_batches(str(tmp_path / "calib.npz"), OPEN, 8))


def test_an_axis_of_no_samples_fixes_no_batch(tmp_path: Path) -> None:
    """Such as that of a cache that holds nothing yet."""
    np.savez(tmp_path / "calib.npz", x=X)
    path = str(tmp_path / "calib.npz")
    with pytest.raises(DataError, match=r"has shape \(8, 2\), the model expects \(0, 2\); "):
        list(open_batches(path, [TensorSpec("x", "float32", (0, 2))], 8))


# A folder of feeds


@pytest.mark.parametrize("inputs", [OPEN, FIXED])
def test_a_folder_of_feeds_keeps_their_batch_axis(tmp_path: Path, inputs: Sequence[TensorSpec]) -> None:
    for index in range(3):
        np.savez(tmp_path / f"{index}.npz", x=X[index : index + 4])
    batches = open_batches(str(tmp_path), inputs, 1)
    assert (sizes_of(batches), batches.num_samples) == ([4, 4, 4], 12)


def test_a_feed_of_another_size_than_the_fixed_one_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=X[:3])
    with pytest.raises(DataError, match=r"0.npz has shape \(3, 2\), the model expects \(4, 2\); "):
        list(open_batches(str(tmp_path), FIXED, 1))


# A folder of pictures


def test_pictures_are_found_at_any_depth_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for number, name in enumerate(["b/two.PNG", "a/one.jpeg", "top.bmp", "b/deep/er/three.webp"]):
        _picture(tmp_path / name, color=(number, 0, 0))
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    batches = open_batches(str(tmp_path), [PICTURE], 3, preprocess=PLAIN)
    assert [feed.source for feed in batches] == [
        f"{tmp_path / 'a/one.jpeg'} to two.PNG",
        f"{tmp_path / 'top.bmp'} to top.bmp",
    ]
    assert (batches.origin, batches.num_samples) == (f"{tmp_path} (4 images)", 4)


def test_pictures_become_what_the_model_takes(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", (60, 40))
    _picture(tmp_path / "b.png", (12, 80), (1, 2, 3))
    (feed,) = open_batches(str(tmp_path), [PICTURE], 8, preprocess=PLAIN)
    array = feed.arrays["image"]
    assert (array.shape, array.dtype.name) == ((2, 3, 4, 6), "float32")
    assert array[:, :, 0, 0].tolist() == [[10, 20, 30], [1, 2, 3]]
    assert (array == array[:, :, :1, :1]).all()


def test_pictures_are_prepared_like_those_of_imagenet_unless_told_otherwise(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (feed,) = open_batches(str(tmp_path), [PICTURE], 8)
    wanted = (np.array([10, 20, 30]) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert feed.arrays["image"][0, :, 2, 3] == pytest.approx(wanted, rel=1e-5)


def test_pictures_in_nhwc_take_the_size_of_the_model(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", (50, 50))
    spec = TensorSpec("image", "float32", ("N", 4, 6, 3))
    steps = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,), layout="NHWC")
    (feed,) = open_batches(str(tmp_path), [spec], 8, preprocess=steps)
    assert feed.arrays["image"].shape == (1, 4, 6, 3)
    assert feed.arrays["image"][0, 0, 0].tolist() == [10, 20, 30]


def test_a_fixed_batch_size_leaves_pictures_out(tmp_path: Path) -> None:
    for index in range(5):
        _picture(tmp_path / f"{index}.png")
    batches = open_batches(str(tmp_path), [TensorSpec("image", "float32", (2, 3, 4, 6))], 8)
    assert (sizes_of(batches), batches.num_samples) == ([2, 2], 4)


def test_a_picture_that_is_broken_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    with pytest.raises(DataError, match=r"b.png cannot be read as an image: "):
        list(open_batches(str(tmp_path), [PICTURE], 1))


def test_a_picture_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"^cannot read .*b.png: No such file or directory; "):
        open_batches(str(tmp_path), [PICTURE], 1)


@pytest.mark.parametrize("other", ["a.tar", "deep/a.parquet", "a.npz", "deep/a.mp4", "a.HEIC", "a.tar.xz"])
def test_a_folder_with_files_of_another_kind_is_told(tmp_path: Path, other: str) -> None:
    _picture(tmp_path / "deep" / "a.png")
    (tmp_path / other).touch()
    with pytest.raises(DataError, match=r" holds .* and .*; give files of one kind only$"):
        open_batches(str(tmp_path), [PICTURE], 4)


def test_links_in_a_folder_are_followed_and_no_file_is_read_twice(tmp_path: Path) -> None:
    _picture(tmp_path / "elsewhere" / "b.png")
    _picture(tmp_path / "data" / "a.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "round").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "second").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "z.png").symlink_to(tmp_path / "data" / "a.png")
    (feed,) = open_batches(str(tmp_path / "data"), [PICTURE], 4)
    assert feed.names == ("a.png", "link/b.png")


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^cannot read the folder .*/gone: No such file or directory$"):
        LocalFolder(tmp_path / "gone").list()


def test_a_folder_with_nothing_in_it_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"holds neither .npz files nor images \(.bmp, .jpeg, .jpg, .png, .tif, .tiff, .webp\), "
        r"tar archives, Parquet files or videos; give an .npz or .npy ",
    ):
        open_batches(str(tmp_path), [PICTURE], 1)


@pytest.mark.parametrize("inputs", [OPEN, [PICTURE, *OPEN], []])
def test_pictures_for_another_kind_of_model_are_refused(tmp_path: Path, inputs: Sequence[TensorSpec]) -> None:
    _picture(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        open_batches(str(tmp_path), inputs, 1)
    wanted = ", ".join(map(str, inputs))
    assert str(caught.value) == (
        f"an image folder feeds one input of rank 4, the model takes {wanted}; give .npz files"
    )


def test_pictures_for_an_open_size_need_a_size_or_come_one_by_one(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", (6, 4))
    _picture(tmp_path / "b.png", (8, 2))
    spec = TensorSpec("image", "float32", ("N", 3, "H", "W"))
    with pytest.raises(
        DataError,
        match=r"^the model leaves the size of 'image' \(N, 3, H, W\) open; set `resize` in \[preprocess\] of "
        r"model.toml so that images fit into batches, or use a batch size of 1$",
    ):
        open_batches(str(tmp_path), [spec], 2)
    with pytest.raises(DataError, match=r"the size of 'image' \(N, 3, 4, W\) open"):
        open_batches(str(tmp_path), [TensorSpec("image", "float32", ("N", 3, 4, "W"))], 2)
    one_by_one = open_batches(str(tmp_path), [spec], 1)
    assert [feed.arrays["image"].shape for feed in one_by_one] == [(1, 3, 4, 6), (1, 3, 2, 8)]
    resized = open_batches(str(tmp_path), [spec], 2, preprocess=Preprocess(resize=(5, 7)))
    assert [feed.arrays["image"].shape for feed in resized] == [(2, 3, 5, 7)]
    cropped = open_batches(str(tmp_path), [spec], 2, preprocess=Preprocess(crop=(2,)))
    assert [feed.arrays["image"].shape for feed in cropped] == [(2, 3, 2, 2)]


def test_pictures_that_do_not_fit_into_one_batch_are_told(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", (6, 4))
    _picture(tmp_path / "b.png", (12, 4))
    with pytest.raises(
        DataError,
        match=r"b.png becomes an array of shape \(3, 4, 12\), others in its batch have \(3, 4, 6\); "
        r"set `crop`, or another `resize_mode`, in \[preprocess\] of model.toml$",
    ):
        list(open_batches(str(tmp_path), [PICTURE], 2, preprocess=Preprocess(resize_mode="short-side")))


@pytest.mark.parametrize("color", [200, (200, 200, 200), 0, 255])
def test_a_model_that_takes_bytes_gets_the_pixels(tmp_path: Path, color: object) -> None:
    _picture(tmp_path / "a.png", color=color)
    spec = TensorSpec("image", "uint8", ("N", 3, 4, 6))
    (feed,) = open_batches(str(tmp_path), [spec], 8, preprocess=PLAIN)
    assert feed.arrays["image"].dtype == np.uint8
    assert (feed.arrays["image"] == (color if isinstance(color, int) else 200)).all()


@pytest.mark.parametrize(
    ("dtype", "mean", "scale", "shown"),
    [
        ("uint8", 104.0, 1.0, "from -94 to -74"),
        ("int8", 0.0, 8.0, "from 80 to 240"),
        ("int32", 0.0, 0.125, "from 1.25 to 3.75"),
    ],
)
def test_prepared_pixels_that_a_model_of_integers_cannot_take_are_told(
    tmp_path: Path, dtype: str, mean: float, scale: float, shown: str
) -> None:
    _picture(tmp_path / "a.png")
    spec = TensorSpec("image", dtype, ("N", 3, 4, 6))
    with pytest.raises(
        DataError,
        match=rf"a.png becomes numbers {shown}, the model takes {dtype}; set `scale = 1.0`, `mean = \[0.0\]` "
        r"and `std = \[1.0\]` in \[preprocess\] of model.toml$",
    ):
        list(
            open_batches(
                str(tmp_path),
                [spec],
                8,
                preprocess=Preprocess((), "stretch", (), "RGB", scale, (mean,), (1.0,)),
            )
        )


def test_the_digest_of_pictures_tells_their_preparation(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    digests = {
        open_batches(str(tmp_path), [PICTURE], size, preprocess=steps).digest
        for size, steps in ((1, None), (1, Preprocess()), (2, None), (1, PLAIN))
    }
    assert len(digests) == 3


def test_a_name_that_is_no_utf_8_is_taken(tmp_path: Path) -> None:
    _picture(tmp_path / "\udcff.png")
    batches = open_batches(str(tmp_path), [PICTURE], 1)
    assert [feed.names for feed in batches] == [("\udcff.png",)]
    assert batches.digest


# Anything else


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_batches(str(tmp_path / "gone.npz"), OPEN, 8)
    assert str(caught.value) == f"there is no data {tmp_path / 'gone.npz'}; give {ACCEPTED_DATA}"


@pytest.mark.parametrize("name", ["calib.csv", "calib.py", "calib"])
def test_data_of_no_known_kind_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1,2,3")
    with pytest.raises(DataError) as caught:
        open_batches(str(tmp_path / name), OPEN, 8)
    assert (
        str(caught.value) == f"{tmp_path / name} is not a kind of data that trtq reads; give {ACCEPTED_DATA}"
    )


# Made-up numbers


def test_made_up_feeds_fit_the_model() -> None:
    inputs = [
        TensorSpec("image", "float16", ("N", 3, None)),
        TensorSpec("ids", "int64", ("N", 5)),
        TensorSpec("mask", "bool", (5,)),
        TensorSpec("gain", "float32", ()),
        TensorSpec("wide", "bfloat16", (2,)),
    ]
    batches = make_random_batches(inputs, {"ids": (4, 5)}, 3)
    feeds = list(batches)
    assert batches.is_random
    assert [feed.source for feed in feeds] == ["random feed 0", "random feed 1", "random feed 2"]
    for feed in feeds:
        assert {name: (array.dtype.name, array.shape) for name, array in feed.arrays.items()} == {
            "image": ("float16", (1, 3, 1)),
            "ids": ("int64", (4, 5)),
            "mask": ("bool", (5,)),
            "gain": ("float32", ()),
            "wide": ("bfloat16", (2,)),
        }
        assert set(np.unique(feed.arrays["ids"])) <= {0, 1}


def test_made_up_numbers_are_the_same_every_time_and_normal() -> None:
    first, second = (
        np.concatenate([feed.arrays["x"] for feed in make_random_batches(OPEN, {"x": (500, 2)}, 4)])
        for _ in range(2)
    )
    assert np.array_equal(first, second)
    assert abs(first.mean()) < 0.1
    assert first.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("inputs", "num_samples"),
    [
        (FIXED, 12),
        (OPEN, 3),
        ([TensorSpec("g", "float32", ())], 3),
        ([*FIXED, TensorSpec("y", "float32", ("N",))], 12),
    ],
)
def test_made_up_feeds_tell_their_samples(inputs: Sequence[TensorSpec], num_samples: int) -> None:
    batches = make_random_batches(inputs, {}, 3)
    assert sum(sizes_of(batches)) == batches.num_samples == num_samples


def test_made_up_feeds_of_other_shapes_have_another_digest() -> None:
    digests = {
        make_random_batches(OPEN, {"x": (size, 2)}, count).digest for size, count in ((1, 3), (2, 3), (1, 4))
    }
    assert len(digests) == 3
    assert make_random_batches(OPEN, {}, 3).digest == make_random_batches(OPEN, {"x": [1, 2]}, 3).digest
