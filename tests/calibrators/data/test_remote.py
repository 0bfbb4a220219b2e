"""Data of other machines: read as that of this one, or refused with its name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import npy, npz, png
from made_up import join, sizes_of
from web_site import Site

from trtq.calibrators.batches import Batches
from trtq.calibrators.data import remote
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError, MissingDependency
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec

INPUTS = [TensorSpec("x", "float32", ("N", 2))]
PICTURES = [TensorSpec("x", "float32", ("N", 3, 4, 4))]
X = np.arange(20, dtype=np.float32).reshape(10, 2)
PLAIN = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))


def put(s3: Any, place: str, files: Mapping[str, bytes]) -> str:
    for name, content in files.items():
        s3.pipe(f"data/{place}/{name}", content)
    return f"s3://data/{place}"


def read(source: str, inputs: list[TensorSpec] = INPUTS, size: int = 4) -> Batches:
    return open_batches(source, inputs, size, preprocess=PLAIN)


# S3


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_arrays_come_from_s3_as_from_this_machine(s3: Any, tmp_path: Path, name: str) -> None:
    content = npz(x=X) if name == "a.npz" else npy(X)
    (tmp_path / name).write_bytes(content)
    far, near = read(f"{put(s3, 'arrays', {name: content})}/{name}"), read(str(tmp_path / name))
    assert sizes_of(far) == sizes_of(near) == sizes_of(far) == [4, 4, 2]
    assert np.array_equal(join(far), X)
    assert (far.origin, far.num_samples) == (f"s3://data/arrays/{name}", 10)


def test_arrays_of_more_blocks_than_are_kept_come_whole(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(remote, "_BLOCKS_KEPT", 3)
    large = np.random.default_rng(0).standard_normal((40, 3 << 12)).astype(np.float32)  # 2 MB
    source = put(s3, "large", {"a.npz": npz(x=large, y=large[::-1])})
    inputs = [TensorSpec(name, "float32", ("N", 3 << 12)) for name in "xy"]
    feeds = [feed.arrays for feed in read(f"{source}/a.npz", inputs, 16)]
    assert np.array_equal(np.concatenate([feed["x"] for feed in feeds]), large)
    assert np.array_equal(np.concatenate([feed["y"] for feed in feeds]), large[::-1])


def test_a_folder_of_feeds_is_read_from_s3_and_a_part_of_it_alone(s3: Any) -> None:
    source = put(
        s3, "feeds", {f"{name}.npz": npz(x=X[:size]) for name, size in (("a", 3), ("b", 1), ("c", 2))}
    )
    batches = read(source)
    assert [feed.source for feed in batches] == [f"{source}/{name}.npz" for name in "abc"]
    assert [feed.source for feed in batches.shard(2, 2)] == [f"{source}/b.npz"]
    assert (batches.origin, batches.num_samples) == (f"{source} (3 feeds)", None)
    assert [feed.source for feed in read(f"{source}/[bc].npz")] == [f"{source}/{name}.npz" for name in "bc"]
    assert sizes_of(read(f"{source}/{{c,a}}.npz")) == [2, 3]
    assert sizes_of(read(f"{source}/{{c,[bc]}}.npz")) == [2, 1]
    assert sizes_of(read("s3://data/**/[bc].npz")) == [1, 2]


def test_a_folder_of_pictures_is_read_from_s3(s3: Any) -> None:
    files = {"b/one.png": png((1, 2, 3)), "a.PNG": png((4, 5, 6)), "notes.txt": b"no picture"}
    (feed,) = read(put(s3, "pictures", files), PICTURES)
    assert feed.arrays["x"][:, :, 0, 0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert feed.source == "s3://data/pictures/a.PNG to one.png"


def test_inputs_saved_by_polygraphy_are_read_from_s3(s3: Any) -> None:
    from polygraphy.json import to_json

    source = put(s3, "saved", {"inputs.json": to_json([{"x": X}]).encode()})
    assert np.array_equal(join(read(f"{source}/inputs.json")), X)


def test_the_digest_tells_the_content_without_a_download(s3: Any) -> None:
    source = f"{put(s3, 'digest', {'a.npz': npz(x=X)})}/a.npz"
    first, again = read(source).digest, read(source).digest
    put(s3, "digest", {"a.npz": npz(x=X + 1)})
    assert first == again
    assert first != read(source).digest


@pytest.mark.parametrize("changed", [npz(x=X + 1), npz(x=X[:3])])
def test_a_file_that_has_changed_since_it_was_found_is_refused(s3: Any, changed: bytes) -> None:
    source = f"{put(s3, 'changed', {'a.npz': npz(x=X)})}/a.npz"
    batches = read(source)
    put(s3, "changed", {"a.npz": changed})
    with pytest.raises(
        DataError,
        match=r"^s3://data/changed/a.npz has changed since it was found; run this again when nothing writes "
        r"to it, or give a copy$",
    ):
        list(batches)


def test_a_time_that_is_told_in_two_ways_is_no_change(s3: Any) -> None:
    put(s3, "times", {"a.npz": npz(x=X)})
    found = remote.open_remote("s3://data/times/a.npz")
    assert isinstance(found, remote.RemoteFile)
    with replace(found, info={**found.info, "LastModified": "2026-11-29T07:00:00.123Z"}).open() as stream:
        assert stream.read(2) == b"PK"


def test_a_file_that_is_not_on_s3_is_told(s3: Any) -> None:
    with pytest.raises(DataError, match=r"^there is no s3://data/gone.npz; check the address$"):
        read("s3://data/gone.npz")
    with pytest.raises(DataError, match=r"^there is no s3://data/gone/1.npz; check the address$"):
        read("s3://data/gone/{1..2}.npz")
    source = put(s3, "part", {"a1.npz": npz(x=X)})
    with pytest.raises(
        DataError,
        match=r"^there is no file s3://data/part/b\*.npz, which s3://data/part/\{a,b\}\*.npz names; make the",
    ):
        read(f"{source}/{{a,b}}*.npz")
    with pytest.raises(DataError, match=r"^there is nothing at s3://data/gone/\*.npz; make the pattern fit$"):
        read("s3://data/gone/*.npz")


def test_a_file_of_another_kind_is_told_with_its_address(s3: Any) -> None:
    source = put(s3, "kinds", {"a.npz": b"no array", "a.csv": b"1,2"})
    with pytest.raises(DataError, match=r"^s3://data/kinds/a.npz cannot be read as .npz: "):
        read(f"{source}/a.npz")
    with pytest.raises(DataError, match=r"^s3://data/kinds/a.csv is not a kind of data that trtq reads; "):
        read(f"{source}/a.csv")


# HTTP


def test_arrays_come_by_http_in_parts(site: Site) -> None:
    content = npz(x=np.zeros((10, 1 << 18), np.float32))
    site.files["/a.npz"] = content
    feeds = read(f"{site.address}/a.npz", [TensorSpec("x", "float32", ("N", 1 << 18))])
    assert sizes_of(feeds) == [4, 4, 2]
    assert all(wanted.startswith("bytes=") for method, _, wanted in site.requests if method == "GET")


@pytest.mark.parametrize("missing", ["gives_parts", "tells_size", "tells_etag"])
def test_what_a_server_cannot_give_in_parts_is_fetched_once(site: Site, missing: str) -> None:
    setattr(site, missing, False)
    large = np.arange(1 << 20, dtype=np.float32).reshape(16, -1)
    site.files["/a.npz"] = npz(x=large)
    batches = read(f"{site.address}/a.npz", [TensorSpec("x", "float32", ("N", 1 << 16))])
    assert np.array_equal(join(batches), large)
    assert batches.digest  # which is found beside other work, and may ask too
    asked = site.count("GET")
    for _ in range(2):
        assert np.array_equal(join(batches), large)
    assert site.count("GET") == asked


def test_the_digest_of_a_file_without_marks_is_that_of_its_bytes(site: Site) -> None:
    site.tells_etag = False
    site.files |= {"/a.npz": npz(x=X), "/b.npz": npz(x=X), "/c.npz": npz(x=X + 1)}
    first, same, other = (read(f"{site.address}/{name}.npz").digest for name in "abc")
    assert first == same != other


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_request_that_fails_is_tried_again(site: Site, status: int) -> None:
    site.files["/a.npz"] = npz(x=X)
    site.statuses = [status]
    assert np.array_equal(join(read(f"{site.address}/a.npz")), X)


def test_a_body_that_is_cut_is_asked_for_again(site: Site) -> None:
    site.files["/a.npz"] = npz(x=X)
    site.cuts = 1
    assert np.array_equal(join(read(f"{site.address}/a.npz")), X)


def test_a_file_that_is_always_cut_is_told(site: Site) -> None:
    site.files["/a.npz"] = npz(x=X)
    site.cuts = 1000
    with pytest.raises(
        DataError, match=rf"^cannot read {site.address}/a.npz, 4 times: .*; try again when the store answers$"
    ):
        read(f"{site.address}/a.npz")
    assert site.count("GET") == 4


def test_a_copy_that_is_cut_is_told(site: Site) -> None:
    site.files["/a.npz"] = npz(x=X)
    site.gives_parts, site.cuts = False, 1000
    with pytest.raises(DataError, match=rf"^cannot read {site.address}/a.npz, 4 times: "):
        read(f"{site.address}/a.npz")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, r"a.npz may not be read: .*403.*; give credentials where the package of the store takes them$"),
        (400, r"^cannot read http://127.0.0.1:\d+/a.npz: .*400.*; check the address$"),
        (404, r"^there is no http://127.0.0.1:\d+/a.npz; check the address$"),
    ],
)
def test_a_refusal_is_told_at_once(site: Site, status: int, message: str) -> None:
    site.files["/a.npz"] = npz(x=X)
    site.statuses = [status] * 9
    with pytest.raises(DataError, match=message):
        read(f"{site.address}/a.npz")
    assert site.count("GET") == 1


def test_a_file_that_changes_while_it_is_read_is_refused(site: Site) -> None:
    site.files["/a.npz"] = npz(x=X)
    batches = read(f"{site.address}/a.npz")
    site.replaced_by["/a.npz"] = npz(x=X + 1)
    with pytest.raises(DataError, match=rf"^{site.address}/a.npz has changed since it was found; "):
        list(batches)


def test_no_server_is_told(site: Site) -> None:
    with pytest.raises(
        DataError, match=r"^cannot read http://127.0.0.1:1/a.npz, 4 times: Connect call failed"
    ):
        read("http://127.0.0.1:1/a.npz")


@pytest.mark.parametrize("status", [403, 500])
def test_no_message_shows_credentials(site: Site, status: int) -> None:
    site.files["/a.npz"] = npz(x=X)
    source = f"{site.address.replace('//', '//me:hush@')}/a.npz?X-Signature=hush"
    assert read(source).origin == f"{site.address}/a.npz"
    site.statuses = [status] * 9
    with pytest.raises(DataError) as caught:
        list(read(source))
    assert "hush" not in str(caught.value)
    assert f"{site.address}/a.npz" in str(caught.value)


# Other addresses


def test_a_url_of_this_machine_is_a_path(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    assert read(f"file://{tmp_path / 'a.npz'}").origin == str(tmp_path / "a.npz")


def test_a_store_of_fsspec_that_tells_times_alone_is_read() -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/tests/a.npz", npz(x=X))
    assert np.array_equal(join(read("memory://tests/a.npz")), X)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(MissingDependency, match=r"^reading gs://b/a.npz needs a package .*: .*install gcsfs"):
        read("gs://b/a.npz")


def test_an_address_that_nobody_knows_is_told() -> None:
    with pytest.raises(
        DataError, match=r"^cannot read foo://b/a.npz: Protocol not known: foo; check the address$"
    ):
        read("foo://b/a.npz")


def test_a_file_in_an_archive_elsewhere_is_read(site: Site) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.npy", npy(X))
    site.files["/a.zip"] = packed.getvalue()
    batches = read(f"zip://a.npy::{site.address}/a.zip?X-Signature=hush")
    assert np.array_equal(join(batches), X)
    assert "hush" not in batches.origin


@pytest.mark.parametrize(
    "source", ["reference://a.npz::https://h/r.json", "filecache::reference::https://h/r", "Reference://a"]
)
def test_a_file_of_references_is_not_read(source: str) -> None:
    with pytest.raises(
        DataError, match=r" is not read: a file of references may hold code; give what it refers to$"
    ):
        read(source)


def test_a_script_is_not_run_from_elsewhere() -> None:
    with pytest.raises(
        DataError,
        match=r"^the script s3://b/s.py:feeds is not run from there; copy it to this machine$",
    ):
        read("s3://b/s.py:feeds")
