"""Constants that are made and written some values at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.models.streamed import StreamedTensor, cast_tensor
from trtq.models.tensors import PIECE


class RecordingFile:
    """Remembers what is written to it, and how much at once."""

    def __init__(self) -> None:
        self.content, self.largest = b"", 0

    def write(self, content: bytes | memoryview, /) -> None:
        self.content += bytes(content)
        self.largest = max(self.largest, len(bytes(content)))


def _put_outside(folder: Path, array: NDArray[Any]) -> ir.ExternalTensor:
    (folder / "w.data").write_bytes(array.tobytes())
    dtype, shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    return ir.ExternalTensor("w.data", 0, array.nbytes, dtype, shape=shape, name="w", base_dir=folder)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_weight_in_another_file_is_cast_a_piece_at_a_time(tmp_path: Path, dtype: type) -> None:
    values: NDArray[Any] = np.linspace(-4, 4, 2 * PIECE + 6).reshape(2, -1).astype(dtype)
    found = cast_tensor(_put_outside(tmp_path, values), ir.DataType.FLOAT)
    file = RecordingFile()
    found.tofile(file)  # type: ignore[attr-defined]
    assert file.content == values.astype(np.float32).tobytes()
    assert file.largest == 4 * PIECE
    assert (found.name, found.dtype, tuple(found.shape.numpy())) == ("w", ir.DataType.FLOAT, values.shape)
    np.testing.assert_array_equal(found.numpy(), values.astype(np.float32))


def test_a_weight_in_memory_is_cast_at_once_with_a_change() -> None:
    found = cast_tensor(ir.tensor(np.array([[1, 2]], np.float32), name="w"), ir.DataType.FLOAT16, np.negative)
    assert isinstance(found, ir.Tensor)
    assert found.numpy().tolist() == [[-1, -2]]
    assert (found.name, found.numpy().dtype.name) == ("w", "float16")


def test_an_empty_weight_stays_empty(tmp_path: Path) -> None:
    found = cast_tensor(_put_outside(tmp_path, np.zeros((0, 3), np.float16)), ir.DataType.FLOAT)
    assert found.numpy().shape == (0, 3)


def test_codes_of_four_bits_come_packed() -> None:
    found = StreamedTensor(
        lambda: iter([np.array([0x21], np.uint8), np.array([0x03], np.uint8)]), ir.DataType.INT4, (3,)
    )
    assert found.numpy().tolist() == [1, 2, 3]
