"""The codec of all JSON files: what is written comes back, and whatever else a file holds is told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.errors import ArtifactError
from trtq.json import FileKind, Measured, to_plain, to_text
from trtq.models.spec import InputSpec


@dataclass(frozen=True, slots=True)
class Thing:
    """Something of every type that files hold."""

    name: str
    count: int
    loss: Measured
    shapes: Mapping[str, InputSpec] = field(default_factory=dict)
    parts: tuple[Thing, ...] = ()
    weights: Mapping[str, bytes] = field(default_factory=dict)
    share: float | None = None
    mode: Literal["fast", "slow"] = "fast"
    settings: Mapping[str, Any] = field(default_factory=dict)


KIND = FileKind(Thing, "thing", "trtq make", "things", version=2, has_null=True)
STRICT = FileKind(Thing, "thing", "trtq make")
WHOLE = Thing(
    "größe", 3, 0.25, {"x": InputSpec((1,), (2,), (9,))}, (Thing("b", -1, 1e-300),), {"w": b"\0\xff"}, 0.5,
    "slow", {"deep": {"list": [1, 2.5, None, True]}},
)  # fmt: skip


def document(**changes: Any) -> bytes:
    """Returns the file of the smallest thing with other keys; None leaves a key out."""
    keys: dict[str, Any] = {
        "schema_version": 2, "kind": "things", "name": "a", "count": 1, "loss": 1.0, **changes,
    }  # fmt: skip
    return json.dumps({key: value for key, value in keys.items() if value is not None}).encode()


def test_what_is_written_is_readable_and_comes_back(tmp_path: Path) -> None:
    content = KIND.encode(WHOLE)
    assert content.startswith(b'{\n "schema_version": 2,\n "kind": "things",\n "name": "gr\\u00f6\\u00dfe"')
    assert content.endswith(b"}\n")
    (tmp_path / "t.json").write_bytes(content)
    assert KIND.read(tmp_path / "t.json") == WHOLE == KIND.read(str(tmp_path / "t.json"))
    assert KIND.decode(KIND.encode(WHOLE, compact=True), "t") == WHOLE
    assert b" " not in KIND.encode(WHOLE, compact=True)
    assert b"kind" not in STRICT.encode(WHOLE)


@given(st.text(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_comes_back(name: str, count: int, loss: float) -> None:
    assert KIND.decode(KIND.encode(Thing(name, count, loss)), "t") == Thing(name, count, loss)


def test_a_name_that_is_no_utf8_comes_back() -> None:
    thing = Thing("m\udcff.onnx", 1, 1.0, settings={"a\udcff": Path("b\udcff")})
    assert KIND.decode(KIND.encode(thing), "t").name == "m\udcff.onnx"
    assert KIND.decode(KIND.encode(thing), "t").settings == {"a\udcff": "b\udcff"}


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_and_comes_back_as_nan(loss: float) -> None:
    content = KIND.encode(Thing("a", 1, loss))
    assert json.loads(content)["loss"] is None
    assert math.isnan(KIND.decode(content, "t").loss)
    with pytest.raises(ValueError, match="not JSON compliant"):
        STRICT.encode(Thing("a", 1, loss))


def test_values_for_other_programs_are_those_that_json_has() -> None:
    found = to_plain({"thing": Thing("a", 1, math.inf), "path": Path("b"), "mapping": [(1, math.nan)]})
    assert (found["thing"]["loss"], found["path"], found["mapping"]) == (None, "b", [[1, None]])
    assert json.loads(to_text(WHOLE)) == to_plain(WHOLE)
    with pytest.raises(TypeError, match=r"^\{1\} cannot be written as JSON$"):
        to_plain({1})


def test_an_older_file_gets_defaults_and_what_is_unknown_is_passed_by() -> None:
    assert KIND.decode(document(schema_version=1, colour="red"), "t") == Thing("a", 1, 1.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "t is not a thing: Expecting value"),
        (b"{", "t is not a thing: Expecting property name"),
        (b"\xff\xfe\x00", "t is not a thing: .*can't decode"),
        (b"[" * 200_000, "t is not a thing: maximum recursion depth exceeded"),
        (b"9" * 5000, "t is not a thing: Exceeds the limit"),
        (b"[]", "t is not a thing; `trtq make` writes one$"),
        (b"null", "t is not a thing; `trtq make` writes one$"),
        (document(kind="ranges"), "t is not a thing; `trtq make` writes one$"),
        (document(kind=None), "t is not a thing; `trtq make` writes one$"),
        (
            document(schema_version=3),
            "t has schema version 3, this trtq reads 2; use the trtq that wrote it, or run `trtq make`",
        ),
        (document(schema_version=None), "t has schema version None"),
        (document(schema_version=0), "t has schema version 0"),
        (document(schema_version=True), "t has schema version True"),
        (document(schema_version="1"), "t has schema version 1"),
        (document(name=None), "t is not a complete thing: .*missing required field `name`; run `trtq make`"),
        (document(name=3), r"complete thing: Expected `str`, got `int` - at `\$.name`; run"),
        (document(count=2.5), r"Expected `int`, got `float` - at `\$.count`"),
        (document(count=True), r"Expected `int`, got `bool`"),
        (document(loss="1"), r"Expected `float \| null`, got `str` - at `\$.loss`"),
        (document(loss=True), r"Expected `float \| null`, got `bool`"),
        (document(loss=10**400), "int too large to convert to float"),
        (document(share=10**400), r"Number out of range - at `\$.share`"),
        (document(mode="idle"), r"Invalid enum value 'idle' - at `\$.mode`"),
        (document(weights={"w": "?"}), r"Invalid base64"),
        (document(parts=[{"name": "b"}]), r"missing required field `count` - at `\$.parts\[0\]`"),
        (document(shapes=[]), r"Expected `object`, got `array` - at `\$.shapes`"),
        (document(shapes={"x": {"min": [3], "opt": [2], "max": [1]}}), "complete thing: profile shapes must"),
    ],
)  # fmt: skip
def test_what_is_no_such_file_is_told(content: bytes, told: str) -> None:
    with pytest.raises(ArtifactError, match=told):
        KIND.decode(content, "t")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"^cannot read the thing {tmp_path / 't'}: No such file"):
        KIND.read(tmp_path / "t")
    with pytest.raises(ArtifactError, match=rf"^cannot read the thing {tmp_path}: Is a directory"):
        KIND.read(str(tmp_path))
