"""The requests before the first one."""

from __future__ import annotations

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.triton.config import TritonPort
from trtq.pipeline.deliver.triton.warmup import make_warmup

IMAGE, IDS = TritonPort("im/age:0", "TYPE_FP32", (3, -1)), TritonPort("ids", "TYPE_INT64", ())
PROFILES = {"im/age:0": InputSpec((1, 3, 2), (4, 3, 5), (8, 3, 9))}


def inputs_of(message: Any) -> dict[str, Any]:
    return {item["key"]: item["value"] for item in message["inputs"]}


def test_real_values_are_raw_bytes_in_files_that_are_named_by_them() -> None:
    image = np.arange(6, dtype=np.float32).reshape(3, 2)
    arrays: dict[str, Any] = {"im/age:0": image, "ids": np.array(7, np.int64)}
    found = make_warmup([IMAGE, IDS], arrays, PROFILES, (8, 4))
    assert [(item["name"], item["batch_size"]) for item in found.messages] == [
        ("batch of 1", 1), ("batch of 4", 4),
    ]  # fmt: skip
    values = inputs_of(found.messages[0])
    assert values["im/age:0"]["dims"] == (3, 2)
    assert values["ids"]["dims"] == (1,)
    name = values["im/age:0"]["input_data_file"]
    assert name == f"im_age_0.{hashlib.sha256(image.tobytes()).hexdigest()[:16]}"
    assert found.files[name] == image.tobytes()
    assert found.files[values["ids"]["input_data_file"]] == b"\x07" + bytes(7)


@pytest.mark.parametrize(
    ("kind", "dtype"), [("TYPE_BF16", ml_dtypes.bfloat16), ("TYPE_INT32", np.int32), ("TYPE_BOOL", np.bool_)]
)
def test_values_are_in_the_type_of_the_engine(kind: str, dtype: Any) -> None:
    found = make_warmup([TritonPort("x", kind, (2,))], {"x": np.array([1, 0])}, {}, (1, 1))
    (raw,) = found.files.values()
    assert np.frombuffer(raw, dtype).astype(int).tolist() == [1, 0]
    assert [item["batch_size"] for item in found.messages] == [1]


def test_without_values_floats_are_random_and_indices_zero() -> None:
    found = make_warmup([IMAGE, IDS, TritonPort("m", "TYPE_BF16", (-1,))], None, PROFILES, (8, 4))
    values = inputs_of(found.messages[1])
    assert {key: dict(item) for key, item in values.items()} == {
        "im/age:0": {"data_type": "TYPE_FP32", "dims": (3, 5), "random_data": True},
        "ids": {"data_type": "TYPE_INT64", "dims": (1,), "zero_data": True},
        "m": {"data_type": "TYPE_BF16", "dims": (1,), "random_data": True},
    }
    assert found.files == {}


def test_a_model_that_does_not_batch_has_one_request_with_whole_shapes() -> None:
    found = make_warmup([TritonPort("im/age:0", "TYPE_FP32", (-1, 3, -1))], None, PROFILES, (0, 0))
    (message,) = found.messages
    assert (message["name"], message["batch_size"]) == ("one request", 1)
    assert inputs_of(message)["im/age:0"]["dims"] == (4, 3, 5)
