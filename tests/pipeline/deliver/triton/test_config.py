"""The configuration of a model, beside Triton's own protobuf."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trtq.errors import ArtifactError, UsageError
from trtq.models.signature import TensorSpec
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.triton.config import (
    ModelConfig,
    Serving,
    TritonPort,
    find_largest_batch,
    is_edited,
    list_differences,
    list_ports,
    validate,
)
from trtq.pipeline.deliver.triton.pbtxt import DATA_TYPES, parse

IMAGE = TensorSpec("image", "float32", ("N", 3, "H", 8))
FIXED = TensorSpec("y", "float32", (1, 2))
LABEL = TensorSpec("label", "int64", ("N",))
PROFILES = {"image": InputSpec((1, 3, 8, 8), (4, 3, 8, 8), (16, 3, 32, 8))}
CONFIG = ModelConfig(
    "net",
    "tensorrt",
    16,
    list_ports([IMAGE], batches=True),
    list_ports([LABEL], batches=True),
    preferred_batch=4,
    serving=Serving(instances=2, num_versions=3),
    warmup=({"name": "one", "batch_size": 1, "inputs": []},),
    parameters={"a": "b"},
    comments=("for people",),
)


def parsed(config: ModelConfig) -> Any:
    """Returns what Triton reads."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as schema

    return text_format.Parse(config.text(), schema.ModelConfig())


def test_triton_reads_every_field_as_it_is_meant() -> None:
    read = parsed(CONFIG)
    assert (read.name, read.platform, read.backend, read.max_batch_size) == (
        "net", "tensorrt_plan", "tensorrt", 16,
    )  # fmt: skip
    assert [list(item.dims) for item in read.input] == [[3, -1, 8]]
    assert [(list(item.dims), list(item.reshape.shape)) for item in read.output] == [([1], [])]
    assert read.output[0].HasField("reshape")
    assert not read.input[0].HasField("reshape")
    assert read.version_policy.latest.num_versions == 3
    (group,) = read.instance_group
    assert (group.count, group.kind, list(group.profile)) == (2, group.KIND_GPU, ["0"])
    assert list(read.dynamic_batching.preferred_batch_size) == [4]
    assert read.dynamic_batching.max_queue_delay_microseconds == 100
    assert read.parameters["a"].string_value == "b"
    assert read.model_warmup[0].batch_size == 1


def test_a_model_that_does_not_batch_has_no_batcher_and_all_its_dims() -> None:
    read = parsed(
        replace(CONFIG, backend="onnxruntime", max_batch=0, inputs=list_ports([IMAGE], batches=False))
    )
    assert not read.HasField("dynamic_batching")
    assert list(read.input[0].dims) == [-1, 3, -1, 8]
    assert read.platform == "onnxruntime_onnx"
    assert read.instance_group[0].kind == read.instance_group[0].KIND_AUTO


def test_onnx_runtime_can_be_told_to_keep_each_node() -> None:
    plain = replace(CONFIG, backend="onnxruntime")
    assert not parsed(plain).HasField("optimization")
    assert parsed(replace(plain, is_exact=True)).optimization.graph.level == -1


def test_all_versions_may_be_served_and_a_batch_of_one_is_preferred_by_nobody() -> None:
    read = parsed(replace(CONFIG, backend="python", preferred_batch=1, serving=Serving(num_versions=None)))
    assert read.version_policy.HasField("all")
    assert list(read.dynamic_batching.preferred_batch_size) == []
    assert (read.platform, read.instance_group[0].kind) == ("", read.instance_group[0].KIND_CPU)


@pytest.mark.parametrize("word", DATA_TYPES.values())
def test_triton_has_every_type(word: str) -> None:
    port = TritonPort("x", word, (1,))
    assert parsed(replace(CONFIG, inputs=(port,))).input[0].data_type > 0


@pytest.mark.parametrize(
    ("spec", "batches", "words"),
    [
        (
            TensorSpec("x", "float8_e4m3fn", ("N", 2)),
            True,
            "'x' is float8_e4m3fn, which Triton does not have",
        ),
        (TensorSpec("x", "float32", ("N", 0)), True, r"'x' has shape \(N, 0\)"),
        (TensorSpec("x", "float32", ()), False, r"'x' has shape \(\); Triton takes neither empty tensors"),
    ],
)
def test_what_triton_cannot_take_is_refused(spec: TensorSpec, batches: bool, words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        list_ports([spec], batches=batches)


@pytest.mark.parametrize(
    ("inputs", "outputs", "asked", "batch", "why"),
    [
        ([IMAGE], [LABEL], None, 16, ""),
        ([IMAGE], [LABEL], 5, 5, ""),
        ([IMAGE], [LABEL], 0, 0, "--max-batch 0"),
        ([IMAGE], [FIXED], None, 0, "'y' is (1, 2): its first axis is not a dynamic batch"),
        ([IMAGE], [TensorSpec("y", "float32", ())], None, 0,
         "'y' is (): its first axis is not a dynamic batch"),
        ([IMAGE], [TensorSpec("y", "float32", ("M", 2))], None, 0,
         "the first axes are M, N: not one batch; --max-batch says that they are"),
        ([IMAGE], [TensorSpec("y", "float32", ("M", 2))], 16, 16, ""),
        ([TensorSpec("x", "float32", ("T", 2))], [TensorSpec("y", "float32", ("T", 2))], None, 0,
         "the first axes are T: not one batch; --max-batch says that they are"),
        ([IMAGE], [TensorSpec("y", "float32", ("N", "N"))], None, 0,
         "the first axes are N: not one batch; --max-batch says that they are"),
    ],
)  # fmt: skip
def test_requests_are_joined_along_a_batch_that_is_open_everywhere(
    inputs: list[TensorSpec], outputs: list[TensorSpec], asked: int | None, batch: int, why: str
) -> None:
    assert find_largest_batch(inputs, outputs, PROFILES, asked) == (batch, why)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([LABEL], "--max-batch 17 cannot be: the profile ends at 16"),
        ([FIXED], "--max-batch 17 cannot be: 'y' is"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(outputs: list[TensorSpec], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_largest_batch([IMAGE], outputs, PROFILES, 17)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_batch": -1}, "--max-batch must be at least 0, got -1"),
        ({"max_queue_delay_us": -1}, "--max-queue-delay must be at least 0"),
        ({"instances": 0}, "--instances must be at least 1"),
        ({"num_versions": 0}, "--serve-versions must be at least 1"),
        ({"instances": 2**31}, "--instances must be at most 2147483647, got 2147483648"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(given: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Serving(**given)


def test_an_edit_is_seen() -> None:
    text = CONFIG.text()
    assert not is_edited(text)
    assert is_edited(text.replace("count: 2", "count: 3"))
    assert is_edited('name: "by hand"\n')


def test_the_same_model_differs_in_nothing_whatever_its_batch_and_serving() -> None:
    theirs = parse(CONFIG.text(), "there")
    assert theirs.max_batch_size == 16
    assert list_differences(theirs, replace(CONFIG, max_batch=4, serving=Serving(), comments=())) == []
    assert list_differences(parse('backend: "tensorrt" max_batch_size: 1', "there"), CONFIG) == []


def test_another_model_is_told_by_all_that_differs() -> None:
    theirs = parse(CONFIG.text(), "there")
    other = replace(
        CONFIG,
        backend="onnxruntime",
        max_batch=0,
        inputs=(TritonPort("image", "TYPE_FP16", (3, -1, 8)), TritonPort("size", "TYPE_INT32", (2,))),
        outputs=(TritonPort("boxes", "TYPE_FP32", (4,)),),
    )
    assert list_differences(theirs, other) == [
        "backend is tensorrt, not onnxruntime",
        "platform is tensorrt_plan, not onnxruntime_onnx",
        "max_batch_size is 16, not 0",
        "input 'size' is missing there",
        "input 'image' is TYPE_FP32 [3, -1, 8], not TYPE_FP16 [3, -1, 8]",
        "output 'boxes' is missing there",
        "output 'label' is not of this model",
    ]


def test_tritons_own_words_are_kept_where_it_would_refuse() -> None:
    assert validate(CONFIG.text())
    with pytest.raises(ArtifactError, match=r"Triton would refuse this configuration:.*no field named .nane"):
        validate('nane: "x"')


def test_without_tritonclient_nothing_is_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not validate("no pbtxt")
