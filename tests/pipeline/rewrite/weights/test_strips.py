"""Weights that are encoded some rows at a time get the bytes that they get as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.pipeline.formats import FP8, INT4, INT8, NF4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerBlock, PerChannel, PerTensor
from trtq.pipeline.rewrite.weights import strips
from trtq.pipeline.rewrite.weights.strips import can_strip, iterate_codes

ENCODINGS = [
    Encoding(INT8, PerChannel(0)),
    Encoding(INT8, PerChannel(1)),
    Encoding(INT8, PerTensor()),
    Encoding(FP8, PerChannel(1)),
    Encoding(INT4, PerBlock(0, 32)),
    Encoding(INT4, PerBlock(1, 16)),
    Encoding(NF4, PerBlock(0, 32)),
    Encoding(NF4, PerBlock(1, 16)),
]


@pytest.fixture
def tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ir.ExternalTensor:
    """Returns a weight of (160, 48) in another file, which takes several strips."""
    monkeypatch.setattr(strips, "_STRIP", 1600)
    values = np.random.default_rng(0).standard_t(3, (160, 48)).astype(np.float16)
    (tmp_path / "w.data").write_bytes(bytes(64) + values.tobytes())
    return ir.ExternalTensor(
        "w.data",
        64,
        values.nbytes,
        ir.DataType.FLOAT16,
        shape=ir.Shape((160, 48)),
        name="w",
        base_dir=tmp_path,
    )


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda item: f"{item.format}-{item.granularity}")
@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_strips_are_as_the_whole(tensor: ir.ExternalTensor, encoding: Encoding, method: str) -> None:
    assert can_strip(tensor)
    codes, scales = _encode(tensor, encoding, method)
    whole, wanted = encoding.format.encode(tensor.numpy(), encoding.granularity, "float16", method)
    assert len(codes) > 2
    assert b"".join(piece.tobytes() for piece in codes) == whole.tobytes()
    np.testing.assert_array_equal(scales, wanted)


def _encode(
    tensor: ir.ExternalTensor, encoding: Encoding, method: str = "rtn", name: str = "w"
) -> tuple[list[NDArray[Any]], NDArray[np.float32]]:
    scales = np.empty(encoding.granularity.scales_shape((160, 48)), np.float32)
    pieces = iterate_codes(tensor, encoding, "float16", method, name, scales)
    return [piece.copy() for piece in pieces], scales


@pytest.mark.parametrize("encoding", ENCODINGS[:5], ids=lambda item: f"{item.format}-{item.granularity}")
def test_a_weight_that_is_not_finite_is_refused_by_its_name(
    tensor: ir.ExternalTensor, encoding: Encoding
) -> None:
    with Path(tensor.path).open("r+b") as file:
        file.seek(64 + 2 * 7000)
        file.write(np.float16(np.nan).tobytes())
    with pytest.raises(
        ModelError, match="weight 'it' has 1 values that are infinite or not a number, such as"
    ):
        _encode(tensor, encoding, name="it")


def test_a_file_that_was_cut_meanwhile_is_refused(tensor: ir.ExternalTensor) -> None:
    with Path(tensor.path).open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(ModelError, match=r"the weights of 'w' end early in .*w\.data; it has been changed"):
        _encode(tensor, ENCODINGS[0])
