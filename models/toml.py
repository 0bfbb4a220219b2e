"""Settings as the text of a `model.toml`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from trtq.models.spec import ModelSpec


def format_spec(spec: ModelSpec) -> str:
    """Returns the text that `read_spec` reads as these settings; what is the default is left out."""
    blocks = ["\n".join((f"[inputs.{_key(name)}]", *_lines(item, {}))) for name, item in spec.inputs.items()]
    for section in fields(spec):
        if section.name != "inputs":
            value = getattr(spec, section.name)
            lines = list(_lines(value, _defaults(value)))
            blocks += ["\n".join((f"[{section.name}]", *lines))] if lines else []
    return "\n\n".join(blocks) + "\n" if blocks else ""


def _lines(settings: Any, defaults: Mapping[str, Any]) -> Iterator[str]:
    for item in fields(settings):
        value = getattr(settings, item.name)
        if item.name not in defaults or value != defaults[item.name]:
            yield f"{item.name} = {json.dumps(value, ensure_ascii=False)}"  # TOML writes these as JSON does


def _defaults(settings: Any) -> dict[str, Any]:
    plain = type(settings)()
    return {item.name: getattr(plain, item.name) for item in fields(settings)}


def _key(name: str) -> str:
    bare = name and all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in name)
    return name if bare else json.dumps(name, ensure_ascii=False)
