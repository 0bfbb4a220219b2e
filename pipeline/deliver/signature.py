"""Who made a build folder: an Ed25519 signature of its manifest, which holds the digest of everything else.

An index of builds, which holds the digests of their manifests, is signed likewise. The signature (RFC 8032)
is the 64 bytes alone, so that OpenSSL can check it without trtq:
`openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in manifest.json -sigfile manifest.sig`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trtq import lazy
from trtq.errors import ArtifactError, UsageError
from trtq.files import read_file
from trtq.pipeline.deliver.manifest import NAME, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_MAKE = "make one with: openssl genpkey -algorithm ed25519 -out private.pem"
_DERIVE = "derive it with: openssl pkey -in private.pem -pubout -out public.pem"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Returns the key to sign with, from a PEM file.

    Raises:
        UsageError: The file cannot be read, holds no such key, or asks for a passphrase.
        MissingDependency: `cryptography` is not installed.
    """
    private: Ed25519PrivateKey = _parse_key(path, _read(path), "private", _MAKE)
    return private


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Returns the key to check signatures with, from a PEM file.

    Raises:
        UsageError: The file cannot be read, or holds no such key.
        MissingDependency: `cryptography` is not installed.
    """
    content = _read(path)
    if b"PRIVATE KEY-----" in content:
        raise UsageError(f"{path} is a private key, which should not be here; {_DERIVE}")
    public: Ed25519PublicKey = _parse_key(path, content, "public", _DERIVE)
    return public


def _parse_key(path: Path, content: bytes, kind: Literal["private", "public"], remedy: str) -> Any:
    pem = lazy.require("cryptography.hazmat.primitives.serialization", "sign", "signing")
    try:
        key = (
            pem.load_pem_private_key(content, None) if kind == "private" else pem.load_pem_public_key(content)
        )
    except TypeError as error:  # the library's word for a key that is encrypted
        raise UsageError(f"the key {path} asks for a passphrase; give one without") from error
    except (ValueError, _exceptions().UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a {kind} key in PEM; {remedy}") from error
    if not isinstance(key, getattr(importlib.import_module(_ED25519), f"Ed25519{kind.title()}Key")):
        raise UsageError(f"the key {path} is not an Ed25519 key; {_MAKE}")
    return key


def check_signature(folder: Path, content: bytes, key: Path) -> None:
    """Refuses a build folder whose manifest, with this content, the owner of a public key has not signed.

    Raises:
        ArtifactError: There is no signature, or it is of another key or another manifest.
        UsageError: The key cannot be used.
        MissingDependency: `cryptography` is not installed.
    """
    if not _is_good(folder, content, read_public_key(key), folder / SIGNATURE):
        raise ArtifactError(
            f"the signature of {folder} is not that of {key}: {NAME} was changed since, or another key signed"
        )


def check_file_signature(path: Path, content: bytes, key: Path) -> None:
    """Refuses a file that stands alone and whose content the owner of a public key has not signed.

    The signature lies beside it, with the suffix `.sig`.

    Raises:
        ArtifactError, UsageError, MissingDependency: As of `check_signature`.
    """
    signature, maker = path.with_suffix(".sig"), "trtq build-all --sign-key"
    if not _is_good(path, content, read_public_key(key), signature, maker):
        raise ArtifactError(
            f"the signature of {path} is not that of {key}: it was changed since, or another key signed"
        )


def is_signed(folder: Path, content: bytes, private: Ed25519PrivateKey) -> bool:
    """Returns whether a build folder, whose manifest has this content, is signed with a key."""
    try:
        return _is_good(folder, content, private.public_key(), folder / SIGNATURE)
    except ArtifactError:
        return False


def _is_good(
    signed: Path, content: bytes, public: Ed25519PublicKey, signature: Path, maker: str = "trtq sign"
) -> bool:
    try:
        public.verify(read_file(signature), content)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{signed} is not signed: it has no {signature.name}; {maker} makes one"
        ) from error
    except OSError as error:
        raise ArtifactError(f"cannot read {signature}: {error.strerror}") from error
    except _exceptions().InvalidSignature:
        return False
    return True


def _exceptions() -> Any:
    return lazy.require("cryptography.exceptions", "sign", "signing")


def _read(path: Path) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise UsageError(f"cannot read the key {path}: {error.strerror}") from error
