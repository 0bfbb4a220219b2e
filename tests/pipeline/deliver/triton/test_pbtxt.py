"""The text format, written and read by protobuf with descriptors of our own, beside Triton's."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.pbtxt import (
    _ENUMS,
    _MESSAGES,
    _PASSED_BY,
    Message,
    name_data_type,
    parse,
    to_text,
)

MESSAGE: Message = {
    "name": "net",
    "max_batch_size": 0,
    "version_policy": {"all": {}},
    "input": [{"name": "größe \"b\"\n", "data_type": "TYPE_FP32", "dims": (3, -1), "reshape": {}}, {}],
    "output": [],
    "instance_group": [{"kind": "KIND_GPU", "profile": ["0"]}],
    "model_warmup": ({"name": "one", "batch_size": 1},),
}  # fmt: skip


def test_a_message_is_written_as_people_write_it() -> None:
    assert to_text(MESSAGE).split("\n") == [
        'name: "net"',
        "max_batch_size: 0",
        "version_policy {", "  all {", "  }", "}",
        "input {", '  name: "größe \\"b\\"\\n"', "  data_type: TYPE_FP32", "  dims: [3, -1]",
        "  reshape {", "  }", "}",
        "input {", "}",
        "instance_group {", "  kind: KIND_GPU", '  profile: "0"', "}",
        "model_warmup {", '  name: "one"', "  batch_size: 1", "}",
        "",
    ]  # fmt: skip


def test_what_is_written_is_read() -> None:
    read = parse(to_text(MESSAGE), "config.pbtxt")
    assert (read.name, read.HasField("max_batch_size"), read.HasField("backend")) == ("net", True, False)
    (first, second) = read.input
    assert (first.name, name_data_type(first), list(first.dims)) == ('größe "b"\n', "TYPE_FP32", [3, -1])
    assert name_data_type(second) == ""
    assert read.version_policy.HasField("all")


@pytest.mark.parametrize(
    "text",
    [
        "name: 'x' unheard_of: 3 response_cache { enable: true } max_batch_size: 8",
        "sequence_batching < oldest { } control_input [ { name: 'a' }, { control [ { kind: NEW } ] } ] > "
        "name: 'x' max_batch_size: 8",
        "name: 'x' # for people\nmax_batch_size: 0x8 instance_group [ { kind: KIND_MODEL gpus: [ 0, 1 ] } ]",
        'default_model_filename: "a [ b" model_operations [ { op_library_filename: [ "[" ] } ]'
        "name: 'x' max_batch_size: 8 # a comment [",
        "name: \"\" 'x'; max_batch_size: 8, optimization { execution_accelerators { "
        "gpu_execution_accelerator : [ { name : 'tensorrt' parameters { key: 'mode' value: 'FP16' } } ] } }",
    ],
)
def test_what_we_do_not_know_in_an_edited_configuration_passes_by(text: str) -> None:
    read = parse(text, "config.pbtxt")
    assert (read.name, read.max_batch_size) == ("x", 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: 'x'\nbackend: ?", "2:10 : 'backend: [?]': Expected string"),
        ("name: 'x'\n\n}", "3:1 : '}': Expected identifier"),
        ("input { name: 'x'", "1:15 : Expected"),
        ("input { dims: [1 2] }", "1:18 : .* Expected"),
        ("name 'x'", "1:6 : "),
        ("name: 'x' name: 'y'", '1:17 : .* should not have multiple "name" fields'),
        ("input { data_type: TYPE_FP8 }", "has no value named TYPE_FP8"),
        (r'name: "\xZZ"', "1:7 : "),
        ("a {" * 5000, "it is nested too deeply"),
        ("name: 'x\n'", "String missing ending quote"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=f"^config.pbtxt is not a valid Triton configuration: .*{words}"):
        parse(text, "config.pbtxt")


def count_calls(num_inputs: int) -> int:
    """Returns how many calls of functions it takes to read a configuration with so many inputs."""
    text = to_text({"input": [{"name": f"{index:06}", "dims": [1, 2, 3]} for index in range(num_inputs)]})
    number = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal number
        number += 1

    sys.setprofile(count)
    try:
        parse(text, "config.pbtxt")
    finally:
        sys.setprofile(None)
    return number


def test_the_work_is_linear_in_the_length() -> None:
    parse("", "config.pbtxt")  # which describes the messages once
    assert len(to_text({"input": [{"name": "000000", "dims": [1, 2, 3]}] * 2700})) > 120_000
    assert count_calls(2700) < 1.05 * 9 * count_calls(300)


@given(st.text(st.characters(codec="utf-8")))
def test_tritons_protobuf_reads_our_strings(text: str) -> None:
    schema = importlib.import_module("tritonclient.grpc.model_config_pb2")
    text_format = importlib.import_module("google.protobuf.text_format")
    assert text_format.Parse(to_text({"name": text}), schema.ModelConfig()).name == text
    assert parse(to_text({"name": text}), "x").name == text


def test_the_numbers_of_types_and_kinds_are_tritons() -> None:
    schema = importlib.import_module("tritonclient.grpc.model_config_pb2")
    assert list(_ENUMS["DataType"]) == schema.DataType.keys()
    assert list(_ENUMS["Kind"]) == schema.ModelInstanceGroup.Kind.keys()


def test_every_message_of_tritons_is_known_and_no_scalar_is_taken_for_one() -> None:
    schema = importlib.import_module("tritonclient.grpc.model_config_pb2")
    messages, scalars = split_fields(schema.ModelConfig.DESCRIPTOR, set())
    ours = {field.partition(":")[0] for fields in _MESSAGES.values() for field in fields.split()}
    assert messages <= {*_PASSED_BY.split(), *ours}
    assert not scalars & set(_PASSED_BY.split())


def split_fields(message: Any, seen: set[str]) -> tuple[set[str], set[str]]:
    """Returns the names of the fields that are messages, at any depth, and those of all others."""
    seen.add(message.full_name)
    messages = {field.name for field in message.fields if field.message_type is not None}
    scalars = {field.name for field in message.fields} - messages
    for field in message.fields:
        if field.message_type is not None and field.message_type.full_name not in seen:
            deeper = split_fields(field.message_type, seen)
            messages, scalars = messages | deeper[0], scalars | deeper[1]
    return messages, scalars
