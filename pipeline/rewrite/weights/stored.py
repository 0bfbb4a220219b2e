"""Weights that are stored in one format and computed with in another: W4A8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import pack_nibbles
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.floats import convert_scales
from trtq.pipeline.graph.edit import GraphEditor

_FIRST_IR_VERSION = 10  # with INT4


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight as it is stored.

    Attributes:
        encoding: INT4 in blocks.
        codes: int8, the shape of the weight.
        scales: float32, that of the blocks.
    """

    encoding: Encoding
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    @property
    def values(self) -> NDArray[np.float32]:
        """What is computed with: float32, the shape of the weight."""
        return self.encoding.format.decode(self.codes, self.scales, self.encoding.granularity)


def store(values: NDArray[Any], encoding: Encoding, dtype: str) -> Stored:
    """Returns a weight in the encoding, with the clips of least error and scales that survive the dtype."""
    return Stored(encoding, *encoding.format.encode(values, encoding.granularity, dtype, "mse"))


def add_stored(edit: GraphEditor, source: ir.Value, stored: Stored) -> ir.Value:
    """Returns the floats of a stored weight, behind DequantizeLinear, in the dtype of the old weight.

    The node stands in front of all others.
    """
    assert source.dtype is not None
    shape = stored.codes.shape
    edit.model.ir_version = max(edit.model.ir_version, _FIRST_IR_VERSION)
    codes = ir.PackedTensor(pack_nibbles(stored.codes), stored.encoding.format.dtype, shape=shape)
    inputs = [
        edit.add_constant(f"{source.name}_stored", codes),
        edit.add_constant(
            f"{source.name}_stored_scale",
            convert_scales(stored.scales.astype(np.float64), source.dtype.numpy().name),
        ),
    ]
    attributes = stored.encoding.granularity.attributes(shape)
    output = f"{source.name}_stored_float"
    return edit.insert(
        "DequantizeLinear", inputs, attributes, like=source, output=output, before=edit.graph[0]
    )
