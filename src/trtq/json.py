r"""One codec for every JSON file: dataclasses are written as they are, and checked as they are read.

The text itself is read and written by Python's own `json`: paths may hold bytes that are no UTF-8, which it
keeps as lone surrogates (`\udcff`). The values are checked and built by msgspec, imported by the first read.
"""

from __future__ import annotations

import json
import math
import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from trtq.errors import ArtifactError, TrtqError
from trtq.files import read_file

T = TypeVar("T")

if TYPE_CHECKING:
    Measured = float
else:

    class Measured(float):
        """A number that may be NaN or infinite, for which a file has null; it is read as NaN."""

        __slots__ = ()


@dataclass(frozen=True, slots=True)
class FileKind(Generic[T]):
    """One kind of JSON file.

    Attributes:
        shape: The dataclass that it holds. A key that a file lacks takes its default; others pass by.
        noun: What a person calls it, such as "report".
        writer: The command that writes it.
        name: What it says under "kind"; empty: it has no such key.
        version: Its schema number, raised when a key changes its meaning; files with lower ones are read too.
        has_null: Whether numbers that are not finite are written as null; otherwise they are refused.
        upgrade: Makes the content of an older file, with its schema number, one of today.
    """

    shape: type[T]
    noun: str
    writer: str
    name: str = ""
    version: int = 1
    has_null: bool = False
    upgrade: Callable[[dict[str, Any], int], dict[str, Any]] | None = None

    def encode(self, value: object, *, compact: bool = False) -> bytes:
        """Returns the file for a value of this shape, or for a mapping with its keys.

        Raises:
            ValueError: A number is not finite and `has_null` is not set.
        """
        body = to_plain(value) if self.has_null else _to_keys(value)
        head = {"schema_version": self.version, **({"kind": self.name} if self.name else {})}
        document = head | body | head  # first, and whatever the value itself says
        text = json.dumps(
            document,
            default=_to_keys,
            allow_nan=False,
            indent=None if compact else 1,
            separators=(",", ":") if compact else None,
        )
        return text.encode() + b"\n"

    def read(self, path: Path | str) -> T:
        """Returns what a file holds.

        Raises:
            ArtifactError: It cannot be read, or as `decode`.
        """
        try:
            content = read_file(Path(path))
        except OSError as error:
            raise ArtifactError(f"cannot read the {self.noun} {path}: {error.strerror}") from error
        return self.decode(content, path)

    def decode(self, content: bytes, path: Path | str) -> T:
        """Returns what the bytes of a file hold; `path` is for messages.

        Raises:
            ArtifactError: They are broken, of another kind, of a newer schema, or incomplete.
        """
        document = self._parse(content, path)
        import msgspec

        try:
            return msgspec.convert(document, self.shape, dec_hook=_read_measured)
        except (ValueError, OverflowError, TrtqError) as error:
            raise ArtifactError(
                f"{path} is not a complete {self.noun}: {error}; run `{self.writer}` again"
            ) from error

    def _parse(self, content: bytes, path: Path | str) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is not a {self.noun}: {error}") from error
        if not isinstance(document, dict) or document.get("kind", "") != self.name:
            raise ArtifactError(f"{path} is not a {self.noun}; `{self.writer}` writes one")
        version = document.get("schema_version")
        if type(version) is not int or not 1 <= version <= self.version:
            raise ArtifactError(
                f"{path} has schema version {version}, this trtq reads {self.version}; "
                f"use the trtq that wrote it, or run `{self.writer}` again"
            )
        return document if self.upgrade is None else self.upgrade(document, version)


def to_plain(value: object) -> Any:
    """Returns values as JSON has them, dataclasses as mappings; numbers that are not finite become None."""
    return json.loads(json.dumps(value, default=_to_keys), parse_constant=lambda _: None)


def from_plain(value: object, shape: type[T]) -> T:
    """Returns a dataclass of what `to_plain` made of it. A key that is missing takes its default.

    Raises:
        ValueError: The values do not fit.
    """
    import msgspec

    try:
        return msgspec.convert(value, shape, dec_hook=_read_field)
    except (ValueError, OverflowError, TrtqError) as error:
        raise ValueError(str(error)) from error


def to_text(value: object) -> str:
    """Returns values as the text of JSON, dataclasses as objects; numbers that are not finite become null."""
    return json.dumps(to_plain(value), indent=1)


def _to_keys(value: Any) -> Any:
    """Returns as JSON has it what `json` does not know; a class may say so itself by `to_plain`."""
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return b64encode(value).decode()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


def _read_field(kind: type, value: Any) -> Any:
    return Path(value) if kind is Path and isinstance(value, str) else _read_measured(kind, value)


def _read_measured(kind: type, value: Any) -> Any:
    if value is not None and type(value) not in (int, float):
        raise ValueError(f"Expected `float | null`, got `{type(value).__name__}`")
    return kind(math.nan if value is None else value)
