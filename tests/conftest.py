"""What tests of every room share."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a PEM file by its name: private and public are a pair, other is another's public."""
    ed25519 = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    pem = importlib.import_module("cryptography.hazmat.primitives.serialization")
    as_private = (pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
    as_public = (pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    folder = tmp_path_factory.mktemp("keys")
    for private, public in (("private", "public"), ("other-private", "other")):
        key = ed25519.Ed25519PrivateKey.generate()
        (folder / private).write_bytes(key.private_bytes(*as_private))
        (folder / public).write_bytes(key.public_key().public_bytes(*as_public))
    return folder.joinpath
