"""The contract of a build folder: what went in, what came out, how it was made."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from trtq.errors import ArtifactError
from trtq.files import read_file
from trtq.json import FileKind

NAME = "manifest.json"
SIGNATURE = "manifest.sig"
"""Of the manifest, made by `trtq sign`; the one file beside it that it does not list."""
_OWN_DIGEST = re.compile(rb'\{\n "sha256": "([0-9a-f]{64})",\n')
_LIBRARIES = ("trtq", "numpy", "onnx", "onnx-ir", "onnxruntime", "polygraphy")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a build folder.

    Attributes:
        inputs: SHA-256 of the model, the data and, for `trtq migrate`, the cache, by path or description;
            "unknown" for data that a script makes.
        outputs: SHA-256 of every other file of the folder but the signature, by name.
        versions: Of trtq and the libraries that took part.
        settings: The model's settings and the target.
        layers: What each layer with weights runs as, by node name, where the backend tells.
        commands: How to build the same: "trtq", and for TensorRT "engine", which is that of `trtexec`, to be
            run in this folder.
        keys: A digest of everything that each stage depends on, to know unchanged work again.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    layers: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def find_setting(self, *keys: str) -> Any:
        """Returns the setting at this place, such as ("target", "options"); None if there is none."""
        found: Any = self.settings
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


FILE = FileKind(Manifest, "manifest of trtq", "trtq build", "trtq build", has_null=True)


def to_json(manifest: Manifest) -> bytes:
    """Returns the manifest as JSON; its first line is the SHA-256 of all the others."""
    content = FILE.encode(manifest)
    own = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b"{\n", b'{\n "sha256": "%s",\n' % own, 1)


def is_whole(content: bytes) -> bool:
    """Returns whether the bytes of a manifest are those that were written, by the digest in them.

    That finds damage. Who changes a manifest on purpose can make its digest again: a signature finds that.
    """
    own = _OWN_DIGEST.match(content)
    return own is not None and hashlib.sha256(b"{\n" + content[own.end() :]).hexdigest().encode() == own[1]


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a build folder as it is; `integrity` tells whether it was changed.

    Raises:
        ArtifactError: The file cannot be read, or as `parse_manifest`.
    """
    return parse_manifest(read_content(folder), folder / NAME)


def read_content(folder: Path) -> bytes:
    """Returns the bytes of the manifest of a build folder.

    Raises:
        ArtifactError: The file cannot be read.
    """
    try:
        return read_file(folder / NAME)
    except OSError as error:
        raise ArtifactError(
            f"{folder} is not a build folder: cannot read {folder / NAME}: {error.strerror}"
        ) from error


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Returns a manifest from its bytes; `path` is for messages.

    Raises:
        ArtifactError: They are broken, of another kind or schema, or name a file outside of the folder.
    """
    manifest = FILE.decode(content, path)
    if foreign := [name for name in manifest.outputs if not _is_inside(name)]:
        raise ArtifactError(f"{path} names {foreign[0]!r}, which is not a file of its folder; build again")
    return manifest


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in name


def collect_versions() -> dict[str, str]:
    """Returns the versions of Python, of trtq and of the libraries that its results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def make_key(*parts: object) -> str:
    """Returns a digest of plain values: numbers, strings, mappings, sequences, dataclasses."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
