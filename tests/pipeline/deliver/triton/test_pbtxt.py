"""The text format: our own reader and writer beside Triton's own protobuf."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.pbtxt import Message, Word, parse, to_text


def test_a_message_is_written_as_people_write_it() -> None:
    message: Message = {
        "name": "a \"b\"\n",
        "max_batch_size": 8,
        "passive": False,
        "kind": Word("KIND_GPU"),
        "dims": [3, -1],
        "input": [{"name": "x"}, {}],
        "none": [],
        "all": {},
        "latest": {"num_versions": 2},
    }  # fmt: skip
    assert to_text(message) == (
        'name: "a \\"b\\"\\n"\n'
        "max_batch_size: 8\n"
        "passive: false\n"
        "kind: KIND_GPU\n"
        "dims: [3, -1]\n"
        'input {\n  name: "x"\n}\n'
        "input {}\n"
        "all {}\n"
        "latest {\n  num_versions: 2\n}\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", {}),
        ("# nothing", {}),
        ("a: 1, b: 2; c: 3", {"a": [1], "b": [2], "c": [3]}),
        ("a: 1 a: 2", {"a": [1, 2]}),
        ("a: [1, -2]", {"a": [1, -2]}),
        ("a: []", {"a": []}),
        ("a: 'x' \"y\" # joined\n 'z'", {"a": ["xyz"]}),
        ("a: { b: 1 } a < b: 2 > a [ { b: 3 }, { b: 4 } ]", {"a": [{"b": [n]} for n in (1, 2, 3, 4)]}),
        ("a: 0x10 b: 1.5 c: -2e-1 d: 2f", {"a": [16], "b": [1.5], "c": [-0.2], "d": [2.0]}),
        ("a: true b: false c: KIND_CPU", {"a": [True], "b": [False], "c": ["KIND_CPU"]}),
    ],
)
def test_a_text_is_read(text: str, message: dict[str, Any]) -> None:
    assert parse(text, "config.pbtxt") == message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: ?", "config.pbtxt, line 2: '[?]' is no pbtxt"),
        ("a: 1\n\n}", "line 3: '}' closes nothing"),
        ("a { b: 1", "line 1: expected '}', found the end"),
        ("a: [1 2]", "line 1: expected ',', found '2'"),
        ("a 1", "line 1: '1' cannot stand here"),
        ("a: ]", "line 1: '\\]' cannot stand here"),
        (r'a: "\xZZ"', "line 1: .* cannot stand here"),
        ("a {" * 1000, "line 1: 'a' cannot stand here"),
        ("a: 'x\n'", "line 1: .* is no pbtxt"),
    ],
)
def test_what_is_no_text_format_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        parse(text, "config.pbtxt")


_NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
_SCALARS = st.one_of(st.integers(-(2**63), 2**63), st.booleans(), st.text(st.characters(codec="utf-8")))
_MESSAGES: Any = st.recursive(
    st.dictionaries(_NAMES, _SCALARS, max_size=3),
    lambda inner: st.dictionaries(
        _NAMES, st.one_of(_SCALARS, inner, st.lists(inner, min_size=1)), max_size=3
    ),
    max_leaves=8,
)


def _as_read(value: Any) -> Any:
    """Returns a message with every field as a list."""
    if isinstance(value, dict):
        return {
            name: [_as_read(item) for item in field] if isinstance(field, list) else [_as_read(field)]
            for name, field in value.items()
        }
    return value


@given(_MESSAGES)
def test_what_is_written_is_read_back(message: dict[str, Any]) -> None:
    assert parse(to_text(message), "x") == _as_read(message)


@given(st.text(st.characters(codec="utf-8")))
def test_tritons_protobuf_reads_our_strings(text: str) -> None:
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    assert text_format.Parse(to_text({"name": text}), schema.ModelConfig()).name == text
