"""Tests of reading .npy and .npz piece by piece."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import sizes_of
from numpy.typing import NDArray

from trtq.calibrators.arrays import open_array_file, open_feed_files
from trtq.calibrators.batches import Batches
from trtq.calibrators.data.files import LocalFile, LocalFolder, hash_files
from trtq.errors import DataError

X = np.arange(60, dtype=np.float32).reshape(10, 2, 3)


def _npz(arrays: dict[str, NDArray[Any]], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    save(buffer, **arrays)
    return buffer.getvalue()


def open_feed_folder(folder: Path) -> Batches:
    found = [file for file in LocalFolder(folder).list() if file.path.suffix == ".npz"]
    return open_feed_files(found, str(folder))


def _npy(array: NDArray[Any], version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version)
    return buffer.getvalue()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 10, 99])
def test_an_npz_comes_in_batches_of_all_its_arrays(
    tmp_path: Path, *, compressed: bool, batch_size: int
) -> None:
    path = tmp_path / "calib.npz"
    labels = np.arange(10)
    path.write_bytes(_npz({"x": X, "labels": labels}, compressed=compressed))
    batches = open_array_file(LocalFile(path), ["x"], batch_size)
    for _ in range(2):
        feeds = list(batches)
        assert np.array_equal(np.concatenate([feed.arrays["x"] for feed in feeds]), X)
        assert np.array_equal(np.concatenate([feed.arrays["labels"] for feed in feeds]), labels)
        assert [feed.num_samples for feed in feeds] == [len(feed.arrays["x"]) for feed in feeds]
    assert (batches.origin, batches.num_samples, batches.is_random) == (str(path), 10, False)


def test_a_batch_tells_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": X}))
    assert [feed.source for feed in open_array_file(LocalFile(path), ["x"], 4)] == [
        f"{path} (samples 0 to 3)",
        f"{path} (samples 4 to 7)",
        f"{path} (samples 8 to 9)",
    ]


def test_an_npy_is_the_only_input(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    path.write_bytes(_npy(X))
    feeds = list(open_array_file(LocalFile(path), ["image"], 8))
    assert np.array_equal(np.concatenate([feed.arrays["image"] for feed in feeds]), X)


def test_an_npy_with_a_long_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    path.write_bytes(_npy(X, (2, 0)))
    assert sizes_of(open_array_file(LocalFile(path), ["image"], 8)) == [8, 2]


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8", "int64", "bool", ">f4"])
def test_dtypes_are_kept(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": X.astype(dtype)}, compressed=True))
    (feed,) = open_array_file(LocalFile(path), ["x"], 10)
    assert feed.arrays["x"].dtype == np.dtype(dtype)
    assert np.array_equal(feed.arrays["x"], X.astype(dtype))


def test_reading_holds_one_batch(tmp_path: Path) -> None:
    path = tmp_path / "big.npz"
    path.write_bytes(_npz({"x": np.zeros((4096, 1024), np.float32)}, compressed=True))  # 16 MiB unpacked
    batches = open_array_file(LocalFile(path), ["x"], 16)  # 64 KiB
    tracemalloc.start()
    try:
        assert sum(sizes_of(batches)) == 4096
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_rows_without_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": np.zeros((3, 0), np.float32)}))
    (feed,) = open_array_file(LocalFile(path), ["x"], 8)
    assert feed.arrays["x"].shape == (3, 0)


def test_an_npy_for_several_inputs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    path.write_bytes(_npy(X))
    with pytest.raises(
        DataError,
        match=r"calib.npy holds one array without a name and the model has 2 inputs \(a, b\); "
        r"save an .npz with these names$",
    ):
        open_array_file(LocalFile(path), ["a", "b"], 8)


def test_an_array_without_samples_axis_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": X, "gain": np.array(2.0, np.float32)}))
    with pytest.raises(
        DataError,
        match=r"^array 'gain' of .*calib.npz has no sample axis; for inputs without an axis of "
        r"samples give a folder of .npz files, one batch each$",
    ):
        open_array_file(LocalFile(path), ["x", "gain"], 8)


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": X, "mask": X[:7]}))
    with pytest.raises(
        DataError,
        match=r"^the arrays of .*calib.npz have different numbers of samples: {'x': 10, 'mask': 7}; for "
        r"inputs without an axis of samples give a folder of .npz files, one batch each$",
    ):
        open_array_file(LocalFile(path), ["x", "mask"], 8)


@pytest.mark.parametrize("arrays", [{}, {"x": X[:0]}])
def test_no_samples_are_refused(tmp_path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz(arrays))
    with pytest.raises(DataError, match=r"calib.npz holds no samples; give at least one$"):
        open_array_file(LocalFile(path), ["x"], 8)


def test_python_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": np.array([X, None], object)}))
    with pytest.raises(
        DataError, match=r"calib.npz:x.npy holds Python objects, not numbers; save plain arrays$"
    ):
        open_array_file(LocalFile(path), ["x"], 8)


def test_arrays_in_fortran_order_are_read_by_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "calib.npz"
    path.write_bytes(_npz({"x": X, "w": np.asfortranarray(X[:, 0])}))
    batches = open_array_file(LocalFile(path), ["x", "w"], 3)
    for _ in range(2):
        feeds = list(batches)
        assert [len(feed.arrays["w"]) for feed in feeds][:2] == [3, 3]
        assert np.array_equal(np.concatenate([feed.arrays["w"] for feed in feeds]), X[:, 0])
        assert np.array_equal(np.concatenate([feed.arrays["x"] for feed in feeds]), X)
    (feed,) = open_feed_folder(tmp_path)
    assert np.array_equal(feed.arrays["w"], X[:, 0])


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    for name in ("calib.npz", "calib.npy"):
        (tmp_path / name).write_bytes(b"not an array")
        with pytest.raises(DataError, match=rf"{name} cannot be read as {name[-4:]}: "):
            open_array_file(LocalFile(tmp_path / name), ["x"], 8)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.npz cannot be read as .npz: .*No such file"):
        open_array_file(LocalFile(tmp_path / "gone.npz"), ["x"], 8)


def test_a_newer_npy_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    path.write_bytes(_npy(X, (3, 0)))
    with pytest.raises(DataError, match=r"calib.npy cannot be read as .npy: unknown .npy version \(3, 0\)$"):
        open_array_file(LocalFile(path), ["x"], 8)


def test_a_file_cut_short_is_told_with_the_sample(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    path.write_bytes(_npy(X)[:-30])  # a sample has 24 bytes
    stream = iter(open_array_file(LocalFile(path), ["x"], 4))
    assert [next(stream).num_samples, next(stream).num_samples] == [4, 4]
    with pytest.raises(DataError, match=r"calib.npy is damaged near sample 8: cut short: 18 of 48 bytes$"):
        next(stream)


def test_a_header_that_promises_too_much_is_told(tmp_path: Path) -> None:
    path = tmp_path / "calib.npy"
    header = _npy(X).replace(b"(10, 2, 3), }" + b" " * 30, b"(10, 999999999999, 999999999999), }".ljust(43))
    assert header != _npy(X)
    path.write_bytes(header)
    with pytest.raises(DataError, match=r"calib.npy is damaged near sample 0: "):
        list(open_array_file(LocalFile(path), ["x"], 4))


def test_damaged_compressed_data_is_told(tmp_path: Path) -> None:
    content = bytearray(_npz({"x": np.random.default_rng(0).normal(size=(64, 64))}, compressed=True))
    content[5000:5100] = bytes(100)
    (tmp_path / "calib.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"calib.npz is damaged near sample \d+: "):
        list(open_array_file(LocalFile(tmp_path / "calib.npz"), ["x"], 4))
    with pytest.raises(DataError, match=r"calib.npz cannot be read as .npz: "):
        list(open_feed_folder(tmp_path))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["npy", "npz", "compressed"]))
@pytest.mark.filterwarnings("ignore")  # numpy's, about headers that look like those of Python 2
def test_no_damage_escapes_as_a_foreign_error(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    content = bytearray(_npy(X) if kind == "npy" else _npz({"x": X}, compressed=kind == "compressed"))
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        content[place] = value
    path = tmp_path / f"damaged.{kind[:3] if kind == 'npy' else 'npz'}"
    path.write_bytes(content[: data.draw(places)] if data.draw(st.booleans()) else content)
    with suppress(DataError):
        for feed in open_array_file(LocalFile(path), ["x"], 4):
            assert feed.num_samples > 0


def test_a_folder_of_feeds_keeps_their_batch_axis_and_the_order_of_names(tmp_path: Path) -> None:
    for name, size in (("b", 1), ("a", 3), ("c", 2)):
        (tmp_path / f"{name}.npz").write_bytes(_npz({"x": X[:size], "gain": np.array(2.0, np.float32)}))
    (tmp_path / "notes.txt").write_text("not a feed")
    batches = open_feed_folder(tmp_path)
    assert [feed.source for feed in batches] == [str(tmp_path / f"{name}.npz") for name in "abc"]
    assert sizes_of(batches) == sizes_of(batches) == [3, 1, 2]
    assert (batches.origin, batches.num_samples) == (f"{tmp_path} (3 feeds)", 6)
    assert next(iter(batches)).arrays["gain"].shape == ()


def test_a_feed_of_scalars_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(_npz({"gain": np.array(2.0, np.float32)}))
    batches = open_feed_folder(tmp_path)
    assert (batches.num_samples, sizes_of(batches)) == (1, [1])


def test_a_feed_whose_leading_axes_differ_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(_npz({"state": X[:2], "x": X[:4]}))
    batches = open_feed_folder(tmp_path)
    assert (batches.num_samples, sizes_of(batches)) == (1, [1])


def test_a_feed_that_was_damaged_since_is_named(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.npz").write_bytes(_npz({"x": X}))
    batches = open_feed_folder(tmp_path)
    (tmp_path / "b.npz").write_bytes(b"PK")
    stream = iter(batches)
    next(stream)
    with pytest.raises(DataError, match=r"b.npz cannot be read as .npz: "):
        next(stream)


def test_an_encrypted_archive_is_told(tmp_path: Path) -> None:
    content = _npz({"x": X})
    central = content.index(b"PK\x01\x02")
    encrypted = bytearray(content)
    encrypted[6] |= 1
    encrypted[central + 8] |= 1
    (tmp_path / "calib.npz").write_bytes(encrypted)
    with pytest.raises(DataError, match=r"cannot be read as .npz: File 'x.npy' is encrypted"):
        open_array_file(LocalFile(tmp_path / "calib.npz"), ["x"], 4)


def test_an_archive_with_something_else_in_it_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "calib.npz", "w") as archive:
        archive.writestr("README", "hello")
    with pytest.raises(DataError, match=r"calib.npz cannot be read as .npz: "):
        open_array_file(LocalFile(tmp_path / "calib.npz"), ["x"], 4)


def test_what_stands_behind_an_array_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(_npy(X) + _npy(X))
    with pytest.raises(
        DataError, match=r"a\.npy is damaged at its end: there is more data after the array; save eac"
    ):
        list(open_array_file(LocalFile(tmp_path / "a.npy"), ["x"], 4))


def test_an_array_that_is_there_twice_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", _npy(X))
        archive.writestr("x", _npy(X))
    words = r"a\.npz cannot be read as \.npz: it has the array 'x' twice; leave one out$"
    with pytest.raises(DataError, match=words):
        open_array_file(LocalFile(tmp_path / "a.npz"), ["x"], 4)
    with pytest.raises(DataError, match=words):
        list(open_feed_folder(tmp_path))


def test_archives_that_are_joined_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(_npz({"x": X}) * 2)
    words = r"a\.npz cannot be read as \.npz: there is more before the archive; give each archive alone$"
    with pytest.raises(DataError, match=words):
        open_array_file(LocalFile(tmp_path / "a.npz"), ["x"], 4)


def test_digests_tell_content_names_and_batch_size(tmp_path: Path) -> None:
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    first.write_bytes(_npz({"x": X}))
    second.write_bytes(_npz({"x": X}))
    digest = open_array_file(LocalFile(first), ["x"], 4).digest
    assert digest == open_array_file(LocalFile(second), ["x"], 4).digest
    assert digest != open_array_file(LocalFile(first), ["x"], 5).digest
    folder = open_feed_folder(tmp_path).digest
    second.write_bytes(_npz({"x": X + 1}))
    assert digest != open_array_file(LocalFile(second), ["x"], 4).digest
    assert folder != open_feed_folder(tmp_path).digest
    renamed = second.rename(tmp_path / "c.npz")
    assert hash_files(map(LocalFile, [first, renamed])) != hash_files(map(LocalFile, [renamed, first]))


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert LocalFile(tmp_path / "abc").hash() == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_a_file_without_digest_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^cannot read .*gone: No such file or directory; make it readable or leave it out$"
    ):
        LocalFile(tmp_path / "gone").hash()
