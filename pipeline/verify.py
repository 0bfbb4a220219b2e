"""Whether a build folder is what was built: every byte of it, and who signed it."""

from __future__ import annotations

from pathlib import Path

from trtq.pipeline.deliver.index import IndexIntegrity, examine_index
from trtq.pipeline.deliver.integrity import Integrity, examine_folder, read_signed_content


def verify(folder: Path | str, *, key: Path | str | None = None) -> Integrity:
    """Returns how a build folder compares with its manifest; every file is read and hashed again.

    Args:
        folder: Of a build.
        key: A public Ed25519 key in PEM that must have signed it; None: signatures are not checked.

    Raises:
        ArtifactError: The folder is not a build, its manifest cannot be read or is of another schema, a file
            cannot be read, or the key is given and has not signed it.
        UsageError: The key cannot be used.
        MissingDependency: A key is given and `cryptography` is not installed.
    """
    folder = Path(folder)
    content = read_signed_content(folder, key)
    return examine_folder(folder, content, is_checked=key is not None)


def verify_index(index: Path | str, *, key: Path | str | None = None) -> IndexIntegrity:
    """Returns how the folders of an index compare with it; every file of them is read and hashed again.

    Args:
        index: That `trtq build-all` wrote.
        key: A public Ed25519 key in PEM that must have signed the index, which vouches for its folders; None:
            signatures are not checked.

    Raises:
        ArtifactError: The index cannot be read, or the key is given and has not signed it.
        UsageError: The key cannot be used.
        MissingDependency: A key is given and `cryptography` is not installed.
    """
    return examine_index(Path(index), key)
