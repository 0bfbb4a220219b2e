"""Tests of models whose weights lie in other files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.onnx_file import read_proto


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _external(path_of: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """Returns the same model twice: whole, and with its weights in `weights.bin`."""
    text = """g (float[N,4,8,8] x) => (float[N,5,6,6] y) {
        c = Conv(x, w)
        k = Constant<value = float[1] {2.0}>()
        y = Mul(c, k)
    }"""
    whole = path_of(text, w=_random(5, 4, 3, 3))
    proto = onnx.load(whole)
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save_model(
        proto,
        folder / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=True,
    )
    return whole, folder / "m.onnx"


def test_external_data_is_read(
    path_of: Callable[..., Path], tmp_path: Path, assert_equal_outputs: Callable[..., None]
) -> None:
    whole, split = _external(path_of, tmp_path)
    assert_equal_outputs(whole, load(split, min_opset=13).model)


def test_a_large_model_is_hashed_when_it_is_asked_for_and_must_be_as_it_was(
    path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = _external(path_of, tmp_path)
    known = load(path, min_opset=13).sha256
    monkeypatch.setattr("trtq.pipeline.graph.load._MOST_IN_MEMORY", 0)
    assert load(path, min_opset=13).sha256 == known
    graph = load(path, min_opset=13)
    data = path.with_name("weights.bin")
    data.write_bytes(data.read_bytes() + bytes(1))
    with pytest.raises(ModelError, match=r"weights\.bin has changed since the model was loaded; begin again"):
        _ = graph.sha256


def test_external_data_that_is_missing(path_of: Callable[..., Path], tmp_path: Path) -> None:
    _, path = _external(path_of, tmp_path)
    (path.parent / "weights.bin").unlink()
    match = r"of 'w' lie in 'weights.bin', which is not next to the model; copy that file to .*external"
    with pytest.raises(ModelError, match=match):
        load(path, min_opset=13)


def test_external_data_that_is_too_short(path_of: Callable[..., Path], tmp_path: Path) -> None:
    _, path = _external(path_of, tmp_path)
    data = path.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:100])
    match = (
        r"external data 'weights.bin' has 100 bytes, the weights of 'w' end at byte \d+; copy the whole file"
    )
    with pytest.raises(ModelError, match=match):
        load(path, min_opset=13)


def test_external_data_without_a_length_that_is_too_short(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    _, path = _external(path_of, tmp_path)
    proto = onnx.load(path, load_external_data=False)
    entries = proto.graph.initializer[0].external_data
    kept = [(entry.key, entry.value) for entry in entries if entry.key == "location"]
    del entries[:]
    for key, value in kept:
        entries.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    (path.parent / "weights.bin").write_bytes(bytes(100))
    with pytest.raises(
        ModelError, match=r"has 100 bytes, the weights of 'w' end at byte 720; copy the whole file"
    ):
        load(path, min_opset=13)


@pytest.mark.parametrize("key", ["offset", "length"])
def test_external_data_at_a_place_that_is_no_number(
    path_of: Callable[..., Path], tmp_path: Path, key: str
) -> None:
    _, path = _external(path_of, tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = "many" if entry.key == key else entry.value
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(
        ModelError, match=r"the weights of 'w' lie in .*'many'.*, which are no numbers; export"
    ):
        load(path, min_opset=13)


def test_external_data_that_is_shorter_than_its_shape(path_of: Callable[..., Path], tmp_path: Path) -> None:
    _, path = _external(path_of, tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = "3"
    onnx.save(proto, path)
    match = (
        r"'w' lie in 'weights.bin' with length 3, but their shape takes \d+ bytes; export the model again$"
    )
    with pytest.raises(ModelError, match=match):
        load(path, min_opset=13)


def test_external_data_outside_the_folder_is_refused(path_of: Callable[..., Path], tmp_path: Path) -> None:
    _, path = _external(path_of, tmp_path)
    (path.parent / "weights.bin").rename(tmp_path / "weights.bin")
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        entry.value = "../weights.bin" if entry.key == "location" else entry.value
    del proto.graph.node[1:]
    proto.graph.output[0].name = "c"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"lie in '\.\./weights\.bin', outside of the model's folder; save"):
        load(path, min_opset=13)


def test_the_digest_is_of_the_file_and_its_external_data(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    whole, split = _external(path_of, tmp_path)
    assert load(whole, min_opset=13).sha256 == hashlib.sha256(whole.read_bytes()).hexdigest()
    data = split.parent / "weights.bin"
    before = load(split, min_opset=13).sha256
    assert before == hashlib.sha256(split.read_bytes() + data.read_bytes()).hexdigest()
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    assert load(split, min_opset=13).sha256 != before


def test_the_protobuf_comes_without_its_external_data(path_of: Callable[..., Path], tmp_path: Path) -> None:
    _, split = _external(path_of, tmp_path)
    assert not read_proto(split).graph.initializer[0].raw_data


@pytest.mark.parametrize("location", ["/dev/zero", "link"])
def test_a_device_is_refused_and_not_read_in_the_background(
    path_of: Callable[..., Path], tmp_path: Path, location: str
) -> None:
    _, path = _external(path_of, tmp_path)
    (path.parent / "link").symlink_to("/dev/zero")
    proto = read_proto(path)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    before = {*threading.enumerate()}
    with pytest.raises(ModelError, match=r"outside of the model's folder|is not next to the model"):
        load(path, min_opset=13)
    left = {*threading.enumerate()} - before
    for thread in left:
        thread.join(timeout=20)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_file_that_changes_while_its_model_is_loaded_has_no_digest(
    path_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = _external(path_of, tmp_path)
    monkeypatch.setattr("trtq.pipeline.graph.load.start_in_background", lambda call: call)
    changed, removed = load(path, min_opset=13), load(path, min_opset=13)
    path.write_bytes(path.read_bytes() + bytes(2))
    with pytest.raises(ModelError, match=r"\.onnx has changed since the model was loaded; begin again"):
        _ = changed.sha256
    path.unlink()
    with pytest.raises(ModelError, match=r"cannot read the model .*\.onnx: No such file"):
        _ = removed.sha256
