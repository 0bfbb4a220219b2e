"""Tests of signing a build folder, and of checking who did."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.errors import ArtifactError, MissingDependency, UsageError
from trtq.pipeline.deliver.integrity import read_intact_manifest, read_whole_manifest
from trtq.pipeline.deliver.manifest import NAME, SIGNATURE, Manifest, to_json
from trtq.pipeline.sign import sign
from trtq.pipeline.verify import verify

Keys = Callable[[str], Path]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Keys) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    (folder / "model.engine").write_bytes(b"plan")
    digest = hashlib.sha256(b"plan").hexdigest()
    (folder / NAME).write_bytes(to_json(Manifest({}, {"model.engine": digest}, {}, {})))
    assert verify(folder).signature == "none"
    assert sign(folder, keys("private")) == folder / SIGNATURE
    return folder


def test_a_signed_folder_is_good_by_its_key(signed: Path, keys: Keys) -> None:
    found = verify(signed, key=keys("public"))
    assert (found.signature, found.is_intact) == ("good", True)
    assert verify(signed).signature == "unchecked"


def test_the_signature_is_that_of_the_manifest_alone(signed: Path, keys: Keys) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    command = [
        openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(keys("public")), "-rawin",
        "-in", str(signed / NAME), "-sigfile", str(signed / SIGNATURE),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "Signature Verified Successfully\n")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_found(signed: Path, keys: Keys, data: st.DataObject) -> None:
    path = signed / data.draw(st.sampled_from(["model.engine", NAME, SIGNATURE]))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        if path.name == "model.engine":
            assert verify(signed, key=keys("public")).changed == ("model.engine",)
        else:
            with pytest.raises(ArtifactError, match=r"the signature of .* is not that of"):
                verify(signed, key=keys("public"))
    finally:
        path.write_bytes(content)
    assert verify(signed, key=keys("public")).is_intact


def test_a_manifest_made_anew_for_another_engine_is_refused_by_the_key_alone(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "forged")
    (folder / "model.engine").write_bytes(b"evil")
    forged = Manifest({}, {"model.engine": hashlib.sha256(b"evil").hexdigest()}, {}, {})
    (folder / NAME).write_bytes(to_json(forged))
    assert verify(folder).is_intact
    with pytest.raises(
        ArtifactError,
        match=r"is not that of .*public: manifest\.json was changed since, or another key signed$",
    ):
        verify(folder, key=keys("public"))


def test_a_manifest_is_taken_from_the_owner_of_the_key_alone(signed: Path, keys: Keys) -> None:
    assert read_intact_manifest(signed, key=keys("public")) == read_whole_manifest(signed, key=keys("public"))
    for read in (read_intact_manifest, read_whole_manifest):
        with pytest.raises(ArtifactError, match=r"^the signature of .* is not that of .*other: "):
            read(signed, key=keys("other"))


def test_another_key_is_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(ArtifactError, match=r"^the signature of .* is not that of .*other: "):
        verify(signed, key=keys("other"))


def test_an_unsigned_folder_is_refused_where_a_key_is_given(signed: Path, keys: Keys, tmp_path: Path) -> None:
    folder = shutil.copytree(signed, tmp_path / "copy")
    (folder / SIGNATURE).unlink()
    with pytest.raises(ArtifactError, match=r"is not signed: it has no manifest\.sig; trtq sign makes one$"):
        verify(folder, key=keys("public"))
    (folder / SIGNATURE).mkdir()
    with pytest.raises(ArtifactError, match=r"^cannot read .*manifest\.sig: Is a directory$"):
        verify(folder, key=keys("public"))
    assert verify(folder).unknown == (SIGNATURE,)


def test_what_is_not_intact_is_not_signed(signed: Path, keys: Keys, tmp_path: Path) -> None:
    folder = shutil.copytree(signed, tmp_path / "copy")
    (folder / SIGNATURE).unlink()
    (folder / "model.engine").write_bytes(b"evil")
    with pytest.raises(
        ArtifactError, match=r"is not what was built and is not signed: changed: model\.engine$"
    ):
        sign(folder, keys("private"))
    assert not (folder / SIGNATURE).exists()


def test_signing_again_with_another_key_replaces_the_signature(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    folder = shutil.copytree(signed, tmp_path / "copy")
    sign(folder, keys("other-private"))
    assert verify(folder, key=keys("other")).signature == "good"


def _pem(key: object, path: Path, *, password: bytes | None = None) -> Path:
    cipher = BestAvailableEncryption(password) if password else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, cipher))  # type: ignore[attr-defined]
    return path


def test_a_bad_private_key_is_one_clear_line(signed: Path, keys: Keys, tmp_path: Path) -> None:
    advice = "openssl genpkey -algorithm ed25519"
    with pytest.raises(UsageError, match=r"^cannot read the key .*absent: No such file or directory$"):
        sign(signed, tmp_path / "absent")
    with pytest.raises(
        UsageError, match=rf"manifest\.json is not a private key in PEM; make one with: {advice}"
    ):
        sign(signed, signed / NAME)
    with pytest.raises(UsageError, match=r"public is not a private key in PEM; make one"):
        sign(signed, keys("public"))
    encrypted = _pem(Ed25519PrivateKey.generate(), tmp_path / "e", password=b"secret")
    with pytest.raises(UsageError, match=r"^the key .*e asks for a passphrase; give one without$"):
        sign(signed, encrypted)
    with pytest.raises(UsageError, match=rf"^the key .*p256 is not an Ed25519 key; make one with: {advice}"):
        sign(signed, _pem(generate_private_key(SECP256R1()), tmp_path / "p256"))


def test_a_bad_public_key_is_one_clear_line(signed: Path, keys: Keys, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^cannot read the key .*: Is a directory$"):
        verify(signed, key=tmp_path)
    with pytest.raises(
        UsageError, match=r"private is a private key, which should not be here; derive it with"
    ):
        verify(signed, key=keys("private"))
    with pytest.raises(
        UsageError, match=r"manifest\.json is not a public key in PEM; derive it with: openssl"
    ):
        verify(signed, key=signed / NAME)
    public = generate_private_key(SECP256R1()).public_key()
    (tmp_path / "p256").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(UsageError, match=r"^the key .*p256 is not an Ed25519 key; make one"):
        verify(signed, key=tmp_path / "p256")


def test_without_the_library_the_extra_is_named(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    with pytest.raises(
        MissingDependency, match=r"^signing needs cryptography, .* pip install 'trtq\[sign\]'$"
    ):
        verify(signed, key=keys("public"))
    assert verify(signed).is_intact  # needs none
