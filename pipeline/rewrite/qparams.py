"""Scales, zero points and codes of Q/DQ, worked out in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.ranges import Ranges
from trtq.models.tensors import list_rows
from trtq.pipeline.formats import INT8, NVFP4
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.floats import choose_scales, convert_scales
from trtq.pipeline.formats.granularity import PerBlock, PerToken
from trtq.pipeline.formats.int8 import UINT8

_PLAIN, _UNSIGNED = Encoding(INT8), Encoding(UINT8)
_CLIPS = tuple(np.linspace(1.0, 0.5, 26).tolist())
"""Shares of the largest weight that are tried as the ends of the codes."""


@dataclass(frozen=True, slots=True)
class QParams:
    """How a tensor is quantized: symmetric, unless the ranges of activations say otherwise.

    Attributes:
        scale: Of the dtype that the dequantized values have, in the shape that the encoding wants.
        encoding: The format, and which values share a scale.
        zero: The code of 0.0; that of weights is 0.
        shared: What the scales are multiplied with, where they are E4M3 numbers themselves, in the dtype that
            the dequantized values have.
    """

    scale: NDArray[Any]
    encoding: Encoding = _PLAIN
    zero: int = 0
    shared: NDArray[Any] | None = None

    @property
    def steps(self) -> NDArray[np.float64]:
        """What a code of 1 stands for, in the shape of the scale."""
        shared = 1.0 if self.shared is None else self.shared.astype(np.float64)
        return np.asarray(self.scale.astype(np.float64) * shared)

    @property
    def zero_point(self) -> NDArray[Any]:
        """The code of 0.0, in the shape of the scale."""
        return np.full(self.scale.shape, self.zero, self.encoding.format.array_dtype)

    def decode(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Returns the values that symmetric codes stand for."""
        return self.encoding.format.decode(codes, self.steps, self.encoding.granularity)


def choose_activation_qparams(amax: float, dtype: str, encoding: Encoding = _PLAIN) -> QParams:
    """Returns one scale with which the largest code stands for `amax`, in the dtype of `choose_scales`.

    It is a 0-d array: with shape (1,) TensorRT runs a Conv in float.
    """
    return QParams(choose_scales(np.float64(amax) / encoding.format.largest, dtype), encoding)


def choose_asymmetric_qparams(ends: tuple[float, float], dtype: str) -> QParams:
    """Returns the scale and the zero point with which the codes 0 and 255 stand for the ends.

    ONNX and Jacob et al. (arXiv 1712.05877, section 2.1): the zero point is rounded, so that 0.0 is exact. It
    lies between the ends, which differ. Codes are unsigned, as the fast kernels of ONNX Runtime want them.
    """
    low, high = ends
    scale = choose_scales((np.float64(high) - np.float64(low)) / 255, dtype)
    zero = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return QParams(scale, _UNSIGNED, zero)


def choose_weight_qparams(weight: NDArray[Any], encoding: Encoding, dtype: str) -> QParams:
    """Returns scales that hold the largest magnitude of each channel, or of all, in the dtype."""
    axes, keeps = _shared_axes(weight, encoding), _keeps(encoding)
    highest, lowest = (
        np.asarray(find(axis=axes, keepdims=keeps, initial=0.0), np.float64)
        for find in (weight.max, weight.min)
    )
    amax = np.maximum(highest, -lowest)
    return QParams(choose_scales(amax / encoding.format.largest, dtype), encoding)


def choose_weight_qparams_mse(weight: NDArray[Any], encoding: Encoding, dtype: str) -> QParams:
    """Returns scales of the least squared error of each channel, of 26 clips down to half its largest weight.

    Clipping a few large weights leaves finer steps for all others (OMSE, arXiv 1902.06822, section 3.2). Of a
    large weight with scales for its rows some of these are looked at at a time, which stay in the cache.
    """
    widest = choose_weight_qparams(weight, encoding, dtype)
    found = widest.scale.copy()
    for rows in list_rows(weight) if encoding.channel_axis == 0 else (...,):
        found[rows] = _search_clips(weight[rows], widest.scale[rows], encoding, dtype)
    return QParams(found, encoding)


def _search_clips(weight: NDArray[Any], widest: NDArray[Any], encoding: Encoding, dtype: str) -> NDArray[Any]:
    best, least = widest, np.full(widest.shape, np.inf, np.float32)
    values, form = weight.astype(np.float32), encoding.format
    for share in _CLIPS:
        found = choose_scales(widest.astype(np.float64) * share, dtype)
        scale = encoding.granularity.spread(found.astype(np.float32), weight.shape)
        error = form.levels_of(form.codes_of(values, scale)) * scale - values
        loss = np.square(error).sum(axis=_shared_axes(weight, encoding), keepdims=_keeps(encoding))
        best, least = np.where(loss < least, found, best), np.minimum(loss, least)
    return np.asarray(best, widest.dtype)


def choose_block_qparams(weight: NDArray[Any], encoding: Encoding, dtype: str) -> QParams:
    """Returns E4M3 scales of the blocks of a weight, and what they share in the dtype."""
    assert isinstance(encoding.granularity, PerBlock)
    amax = np.abs(weight).max(initial=0.0).astype(np.float64)
    shared = convert_scales(amax / NVFP4.largest, dtype)  # the scales of the blocks make up for more
    scales = NVFP4.scales_of_blocks(weight, encoding.granularity, shared.astype(np.float32))
    return QParams(scales, encoding, shared=shared)


def find_qparams(weight: NDArray[Any], encoding: Encoding, ranges: Ranges, dtype: str = "float32") -> QParams:
    """Returns the scales of a weight as the ranges ask for them; those of blocks err least in any case."""
    if encoding.format is NVFP4:
        return choose_block_qparams(weight, encoding, dtype)
    find = choose_weight_qparams_mse if ranges.weight_scales == "mse" else choose_weight_qparams
    return find(weight, encoding, dtype)


def raise_scales(qparams: QParams, least: NDArray[np.float64]) -> QParams:
    """Returns scales of channels that are at least so large, (channels,); one scale of all stays as it is."""
    if qparams.scale.shape != least.shape:
        return qparams
    raised = np.maximum(qparams.scale.astype(np.float64), least)
    return replace(qparams, scale=convert_scales(raised, qparams.scale.dtype.name))


def divide_by_scale(values: NDArray[Any], qparams: QParams) -> NDArray[np.float64]:
    """Returns the values divided by their scales: codes before they are rounded."""
    steps = qparams.encoding.granularity.spread(qparams.steps, values.shape)
    return np.asarray(values.astype(np.float64) / steps)


def quantize_array(values: NDArray[Any], qparams: QParams) -> NDArray[Any]:
    """Returns the codes: round half to even, clipped, as ONNX and TensorRT define them.

    Of a large array some rows are divided at a time, as float64 takes twice the memory of weights.
    """
    form = qparams.encoding.format
    steps = qparams.encoding.granularity.spread(qparams.steps, values.shape)
    codes = np.empty(values.shape, form.array_dtype)
    for rows in list_rows(values):
        shared = steps[rows] if steps.shape[:1] == values.shape[:1] else steps
        codes[rows] = form.codes_of(values[rows].astype(np.float64), shared)
    return codes


def _keeps(encoding: Encoding) -> bool:
    return isinstance(encoding.granularity, PerToken)


def _shared_axes(weight: NDArray[Any], encoding: Encoding) -> tuple[int, ...]:
    if isinstance(encoding.granularity, PerToken):
        return (encoding.granularity.axis,)
    return tuple(axis for axis in range(weight.ndim) if axis != encoding.channel_axis)
