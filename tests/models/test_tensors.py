"""Weights in other files: read once, forgotten, and told when they are gone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.tensors import PIECE, iterate_values, open_values, read_values, require_finite


def external(folder: Path, array: NDArray[Any], *, offset: int) -> ir.ExternalTensor:
    (folder / "w.data").write_bytes(b"\0" * offset + array.tobytes())
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.ExternalTensor(
        "w.data", offset, array.nbytes, dtype, shape=ir.Shape(array.shape), name="w", base_dir=folder
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_values_lie_where_the_tensor_says(tmp_path: Path, dtype: type) -> None:
    array: NDArray[Any] = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = external(tmp_path, array, offset=16)
    for found in (read_values(tensor), open_values(tensor)):
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype
    assert tensor.raw is None  # the file is not mapped


@pytest.mark.parametrize("read", [read_values, open_values])
def test_a_tensor_in_memory_is_itself(read: Callable[[ir.TensorProtocol], NDArray[Any]]) -> None:
    array = np.arange(3, dtype=np.float32)
    assert np.shares_memory(read(ir.tensor(array)), array)


@pytest.mark.parametrize("read", [read_values, open_values])
def test_a_file_that_has_gone_or_shrunk_is_told(
    tmp_path: Path, read: Callable[[ir.TensorProtocol], NDArray[Any]]
) -> None:
    tensor = external(tmp_path, np.zeros(4, np.float32), offset=0)
    (tmp_path / "w.data").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"the weights of 'w' end early in .*w\.data; it has been changed"):
        read(tensor)
    (tmp_path / "w.data").unlink()
    message = f"cannot read the weights of 'w' from {tmp_path / 'w.data'}: No such file or directory"
    with pytest.raises(ModelError, match=re.escape(message)):
        read(tensor)


def test_a_value_that_is_not_finite_is_found_behind_the_first_piece() -> None:
    values = np.zeros((2, PIECE), np.float32)
    require_finite(values, "w")
    require_finite(values.T, "w")
    values[1, 5] = np.inf
    with pytest.raises(
        ModelError, match=r"^weight 'w' has 1 values that are infinite or not a number, such as"
    ):
        require_finite(values, "w")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_half_that_is_not_finite_is_found(value: float) -> None:
    halves = np.full((600, 600), 65504, np.float16)
    require_finite(halves.T, "w")
    require_finite(halves[:0], "w")
    halves[599, 598] = value
    with pytest.raises(ModelError, match="has 1 values that are infinite or not a number"):
        require_finite(halves, "w")


@pytest.mark.parametrize("size", [0, 5, 2 * PIECE + 1])
def test_pieces_are_the_values_in_their_order(tmp_path: Path, size: int) -> None:
    array = np.arange(size, dtype=np.float32)
    for tensor in (ir.tensor(array), external(tmp_path, array, offset=16)):
        pieces = [piece.copy() for piece in iterate_values(tensor)]
        assert all(0 < len(piece) <= PIECE for piece in pieces)
        np.testing.assert_array_equal(np.concatenate([array[:0], *pieces]), array)


def test_a_file_that_ends_in_a_later_piece_is_told(tmp_path: Path) -> None:
    tensor = external(tmp_path, np.zeros(PIECE + 1, np.float32), offset=0)
    (tmp_path / "w.data").write_bytes(bytes(4 * PIECE + 3))
    with pytest.raises(ModelError, match=r"the weights of 'w' end early in .*w\.data; it has been changed"):
        list(iterate_values(tensor))
