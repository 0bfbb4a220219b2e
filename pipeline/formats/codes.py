"""Formats of codes that stand for multiples of a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.formats.blocks import iterate_parts
from trtq.pipeline.formats.floats import find_most, round_scales_up
from trtq.pipeline.formats.format import Format
from trtq.pipeline.formats.granularity import Granularity, PerBlock, PerChannel
from trtq.pipeline.formats.rounding import Extremes, find_extremes, round_blocks

Codes = tuple[NDArray[Any], NDArray[np.float32]]
"""Codes of a tensor's shape, and scales of its granularity's."""
DATA_METHODS = ("gptq", "awq")
"""The methods that look at what the weights are multiplied with."""
_GAINS = {
    "tensorrt": "TensorRT keeps {} weights and dequantizes them inside the matrix multiplication: less "
    "memory, and faster where reading the weights takes the time (small batches)",
    "onnxruntime": "ONNX Runtime dequantizes {} weights in each run: a smaller file, but not faster",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class CodeFormat(Format):
    """A format of few bits. Here codes are integers, rounded half to even, as ONNX and TensorRT define them.

    Attributes:
        lowest: The lowest code.
        min_opset: The first opset that holds it for TensorRT, beside FP16 scales.
        first_opset: The first opset that holds it, with a scale for each channel.
        block_sizes: How many weights may share a scale; empty: those of a whole channel do.
        methods: How weights can be encoded: "rtn" rounds to nearest, "mse" searches the clip of every block,
            "gptq" makes up for each rounding in what is not rounded yet, "awq" enlarges what large inputs
            are multiplied with; both need data. Empty: it is for layers whose activations are in it too.
        compute_capability: The first that runs it.
        is_linear: Whether a code times its scale is the number, as DequantizeLinear has it.
        kernel_bytes: What an engine's kernel for such a weight takes: see `trtq.pipeline.plan`.
        gains: What weights in it are good for, by who runs them, where that is not the usual.
        clips: Whether its steps are finer where the range does not hold the largest values.
        otherwise: What layers get that it is not for; None: it is for all.
    """

    lowest: float
    min_opset: int
    first_opset: int
    block_sizes: tuple[int, ...] = ()
    methods: tuple[str, ...] = ("rtn",)
    compute_capability: tuple[int, int] = (7, 5)
    is_linear: bool = True
    kernel_bytes: int
    gains: Mapping[str, str] = field(default_factory=dict)
    clips: bool = True
    otherwise: CodeFormat | None = None

    def describe_gain(self, runtime: str) -> str:
        """Returns what weights in it are good for on "tensorrt" or "onnxruntime"."""
        return self.gains.get(runtime, _GAINS[runtime]).format(self.name.upper())

    def encode(
        self,
        values: NDArray[Any],
        granularity: Granularity,
        dtype: str = "float32",
        method: str = "rtn",
    ) -> Codes:
        """Returns codes and scales of a weight.

        Args:
            values: Any float dtype; whole blocks along the axis of a `PerBlock`.
            granularity: Which of them share a scale.
            dtype: Which the scales must survive: "float32", "float16" or "bfloat16".
            method: One of `methods`; those that take data are "mse" here.
        """
        if values.dtype == np.float64:
            values = values.astype(np.float32)
        if isinstance(granularity, PerBlock):
            view = granularity.split(values)
            scales = spread = self.block_scales(view, dtype, method)
        else:
            view = split_channels(values, granularity)
            scales = self.scales_of(find_largest(values, granularity), dtype)
            spread = np.resize(scales, (view.shape[0], view.shape[2]))  # repeated as often as channels come
        codes = self.codes_of_blocks(view, spread)
        return codes.reshape(values.shape), scales.reshape(granularity.scales_shape(values.shape))

    def decode(self, codes: NDArray[Any], scales: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
        """Returns the numbers that the codes stand for, in the dtype of the scales."""
        return np.asarray(self.levels_of(codes) * granularity.spread(scales, codes.shape))

    def scales_of(self, amax: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
        """Returns the scales with which the largest magnitudes get the largest code, rounded up."""
        return round_scales_up(amax / np.float32(self.largest), dtype, find_most(dtype, self.largest))

    def block_scales(
        self, blocks: NDArray[Any], dtype: str, method: str, extremes: Extremes | None = None
    ) -> NDArray[np.float32]:
        """Returns the scales (outer, inner) of blocks (outer, block, inner), whose extremes may be known."""
        return self.scales_of((extremes or find_extremes(blocks))[1], dtype)

    def codes_of_blocks(self, blocks: NDArray[Any], scales: NDArray[np.float32]) -> NDArray[Any]:
        """Returns the nearest codes of blocks (outer, block, inner), by their scales (outer, inner)."""
        if self.array_dtype == np.int8:
            return round_blocks(blocks, scales, self.lowest, self.largest)
        codes = np.empty(blocks.shape, self.array_dtype)
        for part in iterate_parts(blocks.shape):
            values = blocks[part].astype(np.float32, copy=False)
            codes[part] = self.codes_of(values, scales[part[0], None, part[2]])
        return codes

    def codes_of(self, values: NDArray[Any], scales: NDArray[Any]) -> NDArray[Any]:
        """Returns the nearest codes of values, by scales in a shape that divides them."""
        steps = np.asarray(values / scales)
        np.rint(steps, out=steps)
        return np.clip(steps, self.lowest, self.largest, out=steps).astype(self.array_dtype)

    def levels_of(self, codes: NDArray[Any]) -> NDArray[Any]:
        """Returns the numbers that the codes are where the scale is 1."""
        return codes

    @property
    def magnitudes(self) -> NDArray[np.float64]:
        """The levels from 0 on, ascending: see `calibrators.levels`."""
        return np.arange(self.largest + 1, dtype=np.float64)

    def round_steps(self, steps: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the nearest levels of values divided by their scale, half to even, clipped."""
        return np.asarray(np.clip(np.rint(steps), self.lowest, self.largest))

    def round_away(self, steps: NDArray[np.float64], nearest: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the levels on the other side of the values; the nearest where there is none."""
        return np.asarray(np.clip(nearest + np.sign(steps - nearest), self.lowest, self.largest))


def find_largest(values: NDArray[Any], granularity: Granularity) -> NDArray[np.float32]:
    """Returns the largest magnitude of each channel, or of all values: float32, shape (channels,)."""
    found = find_extremes(split_channels(values, granularity))[1]
    channels = values.shape[granularity.axis] if isinstance(granularity, PerChannel) else 1
    return np.asarray(found.reshape(-1, channels).max(axis=0, initial=0.0), np.float32)


def split_channels(values: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    """Returns a view of shape (outer, block, inner); (outer, inner), multiplied out, are channels in turn."""
    if not isinstance(granularity, PerChannel):
        return values.reshape(1, -1, 1)
    channels, after = values.shape[granularity.axis], math.prod(values.shape[granularity.axis + 1 :])
    return values.reshape(1, -1, channels) if after == 1 else values.reshape(-1, after, 1)
