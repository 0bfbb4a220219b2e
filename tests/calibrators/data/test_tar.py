"""Tar shards of samples, as WebDataset writes them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import npy, npz, png
from made_up import join, sizes_of
from numpy.typing import NDArray

from trtq.calibrators import batches as batches_module
from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec

OPEN = [TensorSpec("x", "float32", ("N", 2))]
FIXED = [TensorSpec("x", "float32", (4, 2))]
PICTURE = TensorSpec("image", "float32", ("N", 3, 4, 4))
PLAIN = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))
X = np.arange(20, dtype=np.float32).reshape(10, 2)


def tar(members: Mapping[str, bytes], mode: Any = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def shards(folder: Path, *counts: int) -> str:
    """Writes shards with so many samples, and returns the pattern that names them."""
    start = 0
    for index, count in enumerate(counts):
        samples = {f"{number:04}.x.npy": npy(X[number]) for number in range(start, start + count)}
        (folder / f"shard-{index:03}.tar").write_bytes(tar(samples))
        start += count
    return f"{folder}/shard-{{000..{len(counts) - 1:03}}}.tar"


def read(
    source: object, inputs: Sequence[TensorSpec] = OPEN, size: int = 4, extra: Sequence[str] = ()
) -> Batches:
    return open_batches(str(source), inputs, size, preprocess=PLAIN, extra=extra)


def read_one(folder: Path, members: Mapping[str, bytes], *more: Any) -> Mapping[str, NDArray[Any]]:
    (folder / "a.tar").write_bytes(tar(members))
    (feed,) = read(folder / "a.tar", *more)
    return feed.arrays


def test_shards_are_one_stream_in_batches_of_each_file(tmp_path: Path) -> None:
    batches = read(shards(tmp_path, 5, 1, 4))
    assert sizes_of(batches) == sizes_of(batches) == [4, 1, 1, 4]
    assert np.array_equal(join(batches), X)
    assert (batches.num_samples, batches.origin) == (None, f"{tmp_path}/shard-{{000..002}}.tar (3 files)")
    first = next(iter(batches))
    assert first.source == f"{tmp_path}/shard-000.tar, 0000 to {tmp_path}/shard-000.tar, 0003"


@pytest.mark.parametrize(
    "pattern",
    ["shard-*.tar", "", "shard-{000,001,002}.tar", "**/*.tar", "{shard-000,shard-*,shard-001}.tar"],
)
def test_shards_are_named_by_patterns_and_by_their_folder(tmp_path: Path, pattern: str) -> None:
    shards(tmp_path, 5, 1, 4)
    (tmp_path / "round").symlink_to(tmp_path)
    assert np.array_equal(join(read(tmp_path / pattern)), X)


def test_a_fixed_batch_size_takes_all_files_as_one(tmp_path: Path) -> None:
    batches = read(shards(tmp_path, 5, 1, 4), FIXED)
    assert sizes_of(batches) == [4, 4]
    assert np.array_equal(join(batches), X[:8])


@pytest.mark.parametrize(("inputs", "count"), [(OPEN, 2), (OPEN, 3), (OPEN, 7), (FIXED, 2)])
def test_the_parts_make_up_the_whole(tmp_path: Path, inputs: Sequence[TensorSpec], count: int) -> None:
    batches = read(shards(tmp_path, 5, 1, 4), inputs)
    whole = sorted(feed.source for feed in batches)
    parts = [feed.source for part in range(count) for feed in batches.shard(part + 1, count)]
    assert sorted(parts) == whole


def test_a_part_opens_its_own_files_alone(tmp_path: Path) -> None:
    batches = read(shards(tmp_path, 5, 1, 4))
    (tmp_path / "shard-001.tar").unlink()
    assert [feed.num_samples for feed in batches.shard(1, 2)] == [4, 1, 4]
    assert [feed.num_samples for feed in batches.shard(1, 2, 1)] == [1, 4]


def test_the_first_samples_of_a_part_are_counted_over_all_files(tmp_path: Path) -> None:
    batches = read(shards(tmp_path, 5, 1, 4)).first(6)
    assert sizes_of(batches) == [4, 1, 1]
    assert sum(feed.num_samples for part in (1, 2) for feed in batches.shard(part, 2)) == 6


def test_shards_come_from_s3(s3: Any, tmp_path: Path) -> None:
    shards(tmp_path, 5, 1, 4)
    for path in tmp_path.iterdir():
        s3.put(str(path), f"data/shards/{path.name}")
    for source in ("s3://data/shards", "s3://data/shards/shard-{000..002}.tar", "s3://data/shards/*.tar"):
        assert np.array_equal(join(read(source)), X)


@pytest.mark.parametrize(("suffix", "mode"), [(".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar", "w")])
def test_compressed_shards_are_read(tmp_path: Path, suffix: str, mode: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(tar({"1.npy": npy(X[1])}, mode))
    assert np.array_equal(join(read(tmp_path / f"a{suffix}")), X[1:2])


def test_a_sample_is_what_follows_with_the_same_key(tmp_path: Path) -> None:
    pair = [TensorSpec("x", "float32", ("N", 2)), TensorSpec("ids", "int64", ("N",))]
    members = {
        f"train/{key}.{name}": content
        for key in "ab"
        for name, content in {"ids.npy": npy(np.array(ord(key))), "x.npy": npy(X[1]), "txt": b"?"}.items()
    }
    found = read_one(tmp_path, {**members, "README": b"no sample"}, pair)
    assert found["ids"].tolist() == [97, 98]
    assert found["x"].shape == (2, 2)


def test_labels_come_from_cls_if_they_are_asked_for(tmp_path: Path) -> None:
    members = {"1.png": png((1, 2, 3)), "1.cls": b"7", "2.png": png((4, 5, 6)), "2.cls": b"9\n"}
    found = read_one(tmp_path, members, [PICTURE], 4, ["cls"])
    assert found["cls"].tolist() == [7, 9]
    assert found["image"][:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert read_one(tmp_path, members, [PICTURE]).keys() == {"image"}
    assert read_one(tmp_path, {"1.png": png((1, 2, 3))}, [PICTURE], 4, ["cls"]).keys() == {"image"}


def test_arrays_of_npz_and_numbers_of_json_are_inputs_and_labels(tmp_path: Path) -> None:
    values = {"x": [1, 2.5], "label": 3, "caption": "a cat"}
    found = read_one(tmp_path, {"1.json": json.dumps(values).encode()}, OPEN, 4, ["label"])
    assert (found["x"].tolist(), found["x"].dtype.name) == ([[1, 2.5]], "float32")
    assert found["label"].tolist() == [3]
    found = read_one(tmp_path, {"1.npz": npz(x=X[0], other=X[1])})
    assert found.keys() == {"x"}


def test_whether_there_are_pictures_is_seen_in_the_first_sample(tmp_path: Path) -> None:
    for members, steps in (({"1.png": png((1, 2, 3))}, PLAIN), ({"1.x.npy": npy(X[0]), "2.png": b""}, None)):
        (tmp_path / "a.tar").write_bytes(tar(members))
        assert read(tmp_path / "a.tar", [PICTURE]).preprocess == steps


def test_too_few_samples_for_a_fixed_batch_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"\(2 files\) holds 3 samples, the model takes batches of exactly 4$"
    ):
        list(read(shards(tmp_path, 2, 1), FIXED))


def test_a_picture_may_name_its_input(tmp_path: Path) -> None:
    pair = [PICTURE, TensorSpec("mask", "float32", ("N", 3, 4, 4))]
    members = {"1.image.png": png((1, 2, 3)), "1.mask.png": png((4, 5, 6))}
    found = read_one(tmp_path, members, pair)
    assert [found[name][0, :, 0, 0].tolist() for name in ("image", "mask")] == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"1.y.npy": npy(X[0]), "1.cls": b"2"},
            r"a.tar, 1 has no array 'x'; it has .y.npy, .cls; name members <key>.<input>.npy, or put all "
            r"inputs into <key>.npz$",
        ),
        ({"1.x.npy": b"nothing"}, r"^.*a.tar, 1.x.npy cannot be read: "),
        ({"1.x.npy": npy(np.array([None]))}, r"a.tar, 1.x.npy cannot be read: "),
        ({"1.x.npy": npy(X[0]), "1.json": b"{"}, r"a.tar, 1.json cannot be read: "),
        ({"1.x.npy": npy(X[0]), "1.cls": b"cat"}, r"a.tar, 1.cls cannot be read: "),
        (
            {"1.x.npy": npy(X[0]), "2.x.npy": npy(X[0, :1])},
            r"^array 'x' of .*a.tar, 2 has shape \(1\), others in its batch have \(2\); give samples of one "
            r"shape, or use a batch size of 1$",
        ),
        (
            {"1.x.npy": npy(X[0]), "2.x.npy": npy(X[0].astype(np.uint8))},
            r"^array 'x' of .*a.tar, 2 is uint8, that of .*a.tar, 1 is float32; give all samples the same$",
        ),
        (
            {"1.x.npy": npy(X[0]) * 2},
            r"a.tar, 1.x.npy cannot be read: there is more data after the array; save",
        ),
        ({"README": b"no sample"}, r"a.tar yields no samples; "),
    ],
)
def test_samples_that_do_not_fit_are_told(tmp_path: Path, members: Mapping[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_one(tmp_path, members)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("kept", [-512, -1024, -5000, 700, 0])
def test_an_archive_that_is_cut_short_is_told(tmp_path: Path, kept: int, suffix: str) -> None:
    content = tar({f"{index}.x.npy": npy(X[index]) for index in range(10)}).rstrip(b"\0")
    content += bytes(-len(content) % 512)
    cut = content[: kept or None]
    (tmp_path / f"a{suffix}").write_bytes(cut if suffix == ".tar" else gzip.compress(cut))
    with pytest.raises(
        DataError,
        match=rf"a{suffix} cannot be read as a tar archive: (.*cut short|unexpected end of data)$",
    ):
        list(read(tmp_path / f"a{suffix}"))


@pytest.mark.parametrize("kept", [-1, -8, -20, -400, 300])
def test_a_compressed_archive_that_is_cut_short_is_told(tmp_path: Path, kept: int) -> None:
    content = gzip.compress(tar({f"{index}.x.npy": npy(X[index]) for index in range(10)}))
    (tmp_path / "a.tgz").write_bytes(content[:kept])
    with pytest.raises(
        DataError, match=r"a.tgz cannot be read as a tar archive: (Comp.* ended before|.*cut short$)"
    ):
        list(read(tmp_path / "a.tgz"))


def test_a_compressed_archive_of_another_checksum_is_told(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(tar({"1.x.npy": npy(X[1])}), 0))
    content[content.index(npy(X[1])) + len(npy(X[1])) - 1] ^= 1
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar.gz cannot be read as a tar archive: CRC check failed"):
        list(read(tmp_path / "a.tar.gz"))


def test_a_header_that_is_damaged_is_no_end(tmp_path: Path) -> None:
    content = bytearray(tar({f"{index}.x.npy": npy(X[index]) for index in range(3)}))
    content[content.index(b"1.x.npy")] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a.tar cannot be read as a tar archive: a member's header is damaged: bad checksum$"
    ):
        list(read(tmp_path / "a.tar"))


def test_archives_that_are_joined_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"1.x.npy": npy(X[1])}) + tar({"2.x.npy": npy(X[2])}))
    with pytest.raises(
        DataError, match=r"a.tar has more data after the end of the archive; give each archive alone$"
    ):
        list(read(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"1.x.npy": npy(X[0]), "1.npy": npy(X[1])}, r"'x' twice, in \.x\.npy and in \.npy"),
        ({"1.npz": npz(x=X[0]), "1.json": b'{"x": [1, 2]}'}, r"'x' twice, in \.npz and in \.json"),
    ],
)
def test_an_array_that_a_sample_has_twice_is_told(
    tmp_path: Path, members: Mapping[str, bytes], words: str
) -> None:
    with pytest.raises(DataError, match=rf"a\.tar, 1 has array {words}; leave one out$"):
        read_one(tmp_path, members)


@pytest.mark.parametrize("content", [b"no archive" * 200 + bytes(2000), b"", bytes(100)])
def test_what_is_no_archive_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar (cannot be read as a tar archive: |yields no samples)"):
        list(read(tmp_path / "a.tar"))


def test_a_member_that_says_that_it_is_huge_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.x.npy")
    info.size = (1 << 30) + 1
    (tmp_path / "a.tar").write_bytes(info.tobuf() + bytes(2048))
    with pytest.raises(
        DataError, match=r"a.tar, 1.x.npy has 1,073,741,825 bytes; a member may have 1,073,741,824$"
    ):
        list(read(tmp_path / "a.tar"))


def test_a_path_that_leads_away_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").write_bytes(tar({"../../1.x.npy": npy(X[1])}))
    assert np.array_equal(join(read(tmp_path / "in" / "a.tar")), X[1:2])
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"M"])
def test_a_sample_that_is_no_file_is_told(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("0.x.npy")
    link.type, link.linkname = kind, "/etc/passwd"
    (tmp_path / "a.tar").write_bytes(link.tobuf() + tar({"1.x.npy": npy(X[1])}))
    with pytest.raises(
        DataError,
        match=r"a.tar, 0.x.npy is a link or no file; pack what a link leads to, with tar --deref",
    ):
        list(read(tmp_path / "a.tar"))


def test_a_pattern_that_names_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    shards(tmp_path, 5, 5)
    with pytest.raises(
        DataError,
        match=r"^there is no file .*shard-002.tar, which .*shard-\{000..002\}.tar names; make the "
        r"pattern fit$",
    ):
        read(tmp_path / "shard-{000..002}.tar")
    with pytest.raises(
        DataError, match=r"^there is no file .*/other-\*.tar, which .*/\{shard,other\}-\*.tar n"
    ):
        read(tmp_path / "{shard,other}-*.tar")
    with pytest.raises(DataError, match=r"^there is no data .*/other-\*.tar; give "):
        read(tmp_path / "other-*.tar")


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    shards(tmp_path, 5, 5)
    (tmp_path / "shard-002.tar").symlink_to("gone")
    with pytest.raises(
        DataError, match=r"^there is no file .*/shard-002.tar, which .*/shard-\*.tar names; mak"
    ):
        read(tmp_path / "shard-*.tar")


def test_a_pattern_may_be_longer_than_a_name(tmp_path: Path) -> None:
    shards(tmp_path, *[1] * 10)
    words = ",".join(f"{number % 10:03}" for number in range(200))
    assert sizes_of(read(tmp_path / f"shard-{{{words}}}.tar")) == [1] * 10


def test_a_pattern_of_too_many_names_is_told() -> None:
    with pytest.raises(
        DataError, match=r"^a\{0..9999999\}.tar stands for more than 100,000 names; use fewer at a time$"
    ):
        read("a{0..9999999}.tar")


def test_files_of_several_kinds_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar({"1.x.npy": npy(X[0])}))
    np.savez(tmp_path / "b.npz", x=X)
    with pytest.raises(DataError, match=r"/\* holds feeds and tar archives; give files of one kind only$"):
        read(tmp_path / "*")
    with pytest.raises(DataError, match=r" holds feeds and tar archives; give files of one kind only$"):
        read(tmp_path)
    (tmp_path / "README").touch()
    with pytest.raises(DataError, match=r"/\[aR\]\* holds other files and tar archives; give files of"):
        read(tmp_path / "[aR]*")


def test_the_digest_tells_content_batch_size_and_preparation(tmp_path: Path) -> None:
    source = shards(tmp_path, 5, 1)
    digest = read(source).digest
    assert digest == read(source).digest != read(source, OPEN, 5).digest
    shards(tmp_path, 4, 2)
    assert digest != read(source).digest


def test_more_feeds_than_a_script_may_yield_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "_MOST_FEEDS", 1)
    assert sum(sizes_of(read(shards(tmp_path, 5)).first(None))) == 5
