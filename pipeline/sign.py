"""The signature of a build folder."""

from __future__ import annotations

from pathlib import Path

from trtq.errors import ArtifactError
from trtq.files import write_atomically
from trtq.pipeline.deliver.integrity import examine_folder
from trtq.pipeline.deliver.manifest import SIGNATURE, read_content
from trtq.pipeline.deliver.signature import read_private_key


def sign(folder: Path | str, key: Path | str) -> Path:
    """Returns the signature that was written beside the manifest; what is not intact is not signed.

    Args:
        folder: Of a build.
        key: A private Ed25519 key in PEM, without a passphrase.

    Raises:
        ArtifactError: The folder is not a build, is not intact, or cannot be written.
        UsageError: The key cannot be used.
        MissingDependency: `cryptography` is not installed.
    """
    folder = Path(folder)
    private = read_private_key(Path(key))
    content = read_content(folder)
    found = examine_folder(folder, content, is_checked=False)
    if not found.is_intact:
        raise ArtifactError(f"{folder} is not what was built and is not signed: {found.problems}")
    write_atomically(folder / SIGNATURE, private.sign(content))
    return folder / SIGNATURE
