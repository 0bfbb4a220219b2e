"""The URLs of data, as they may be shown."""

from __future__ import annotations

import re
from pathlib import Path

_SCHEME = re.compile(r"^([a-z][a-z0-9+.-]*)(?:://|::.*://)", re.IGNORECASE | re.DOTALL)
_LOCAL = re.compile(r"^(?:file|local)://(?:localhost)?(?=/)", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s'\"]*@")
_QUERY = re.compile(r"(?P<address>https?://[^\s?#'\"]*)[?#][^\s'\")>]*", re.IGNORECASE)


def find_scheme(source: str) -> str:
    """Returns how a URL begins, such as `s3`, in lower case; empty for a path of this machine."""
    found = _SCHEME.match(source)
    return found[1].lower() if found else ""


def strip_local(source: str) -> str:
    """Returns the path that a `file://` URL names; anything else as it is."""
    return _LOCAL.sub("", source)


def is_address(source: str) -> bool:
    """Returns whether this is a URL, and no path of this machine."""
    return find_scheme(strip_local(source)) != ""


def resolve_address(source: str, folder: Path) -> str:
    """Returns a URL as it is, and a path as that of a file when `folder` is the current one."""
    return source if is_address(source) else str(folder / strip_local(source))


def show_address(source: str) -> str:
    """Returns a URL without what is secret: name and password, and the query, which may be a signature."""
    return "::".join(map(_show_part, source.split("::"))) if is_address(source) else source


def _show_part(part: str) -> str:
    """Returns one URL of a chain without what is secret, whatever letters that has."""
    shown = re.sub(r"(?<=://)[^/]*@", "", part)
    return re.split("[?#]", shown, maxsplit=1)[0] if shown.lower().startswith("http") else shown


def hide_secrets(text: str) -> str:
    """Returns a text in which no URL has a name, a password or a query."""
    return _QUERY.sub(r"\g<address>", _LOGIN.sub("", text))
