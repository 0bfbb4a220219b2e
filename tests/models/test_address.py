"""URLs of data: what is one, and what of it may be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.models.address import hide_secrets, is_address, resolve_address, show_address


@pytest.mark.parametrize(
    "source",
    ["s3://bucket/a.npz", "https://host/a.npz", "hf://datasets/me/a", "filecache::s3://b/a.npz", "S3://b"],
)
def test_a_url_is_no_path_and_stays_as_it_is(source: str) -> None:
    assert is_address(source)
    assert resolve_address(source, Path("/folder")) == source


@pytest.mark.parametrize(
    "source",
    ["a.npz", "/data/a.npz", "make.py:feeds", "a::b.npz", "file:///data/a.npz", "local:///data/a.npz"],
)
def test_a_path_is_no_url(source: str) -> None:
    assert not is_address(source)
    assert show_address(source) == source


def test_a_path_is_taken_from_its_folder() -> None:
    assert resolve_address("a.npz", Path("/folder")) == "/folder/a.npz"
    assert resolve_address("file:///data/a.npz", Path("/folder")) == "/data/a.npz"
    assert resolve_address("make.py:feeds", Path("/folder")) == "/folder/make.py:feeds"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://me:hush@host/a.npz?X-Amz-Signature=hush#hush", "https://host/a.npz"),
        ("filecache::https://me:hush@host/a.npz?sig=hush", "filecache::https://host/a.npz"),
        ("s3://key:hush@bucket/a.npz", "s3://bucket/a.npz"),
        ("s3://bucket/a?.npz", "s3://bucket/a?.npz"),
    ],
)
def test_a_url_is_shown_without_what_is_secret(source: str, shown: str) -> None:
    assert show_address(source) == shown
    assert hide_secrets(f"403, url='{source}', again") == f"403, url='{shown}', again"


@pytest.mark.parametrize("secret", ["pa ss", "'", '"', ")>"])
def test_secrets_of_odd_letters_are_not_shown(secret: str) -> None:
    assert show_address(f"https://me:{secret}@host/a.npz?sig={secret}") == "https://host/a.npz"
