"""What the page shows of each quantized layer: what it reads, and how near its quantized weight is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trtq.pipeline.deliver.html.page_data import LayerSummary
from trtq.pipeline.formats.granularity import PerBlock, PerChannel, PerToken
from trtq.pipeline.rewrite.qparams import (
    QParams,
    choose_block_qparams,
    choose_weight_qparams,
    quantize_array,
)
from trtq.pipeline.rewrite.weights.stored import store

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    from trtq.pipeline.formats.encoding import Encoding
    from trtq.pipeline.graph.placement import Placement, QuantizedWeight

_ELEMENTS_AT_ONCE = 1 << 22


def summarize_layers(model: ir.Model, placement: Placement) -> tuple[LayerSummary, ...]:
    """Returns the layers of the float graph that get Q/DQ, in graph order, the Adds included."""
    sqnrs: dict[QuantizedWeight | None, float | None] = {None: None}
    found = []
    for node in placement.quantized:
        if not node.activations:
            continue
        weight = node.held_weight
        if weight is not None and weight not in sqnrs:
            tensor = model.graph.initializers[weight.tensor].const_value
            assert tensor is not None  # else it would not have been placed
            sqnrs[weight] = weight_sqnr_db(tensor.numpy(), weight.encoding)
        tensors = tuple(dict.fromkeys(tensor for _, tensor in node.activations))
        found.append(LayerSummary(node.name, node.op_type, node.scheme.rule, tensors, sqnrs[weight]))
    return tuple(found)


def weight_sqnr_db(weight: NDArray[Any], encoding: Encoding) -> float | None:
    """Returns 10 log10(sum w^2 / sum (w - q(w))^2) of a weight with FP32 scales; None if it is exact."""
    held = weight if encoding.stored is None else store(weight, encoding.stored, "float32").values
    if isinstance(encoding.granularity, PerBlock):
        return _sqnr_db(*_measure(weight, held, choose_block_qparams(held, encoding, "float32")))
    rows, held = _in_rows(weight, encoding), _in_rows(held, encoding)
    by_row = replace(encoding, granularity=PerChannel(0), stored=None)
    step = max(1, _ELEMENTS_AT_ONCE // max(rows.shape[1], 1))
    signal = noise = 0.0
    for start in range(0, rows.shape[0], step):
        part = held[start : start + step]
        qparams = choose_weight_qparams(part, by_row, "float32")
        power, lost = _measure(rows[start : start + step], part, qparams)
        signal, noise = signal + power, noise + lost
    return _sqnr_db(signal, noise)


def _measure(weight: NDArray[Any], held: NDArray[Any], qparams: QParams) -> tuple[float, float]:
    """Returns the sums of the squares of a weight and of its error, if what is held of it is quantized."""
    values = weight.astype(np.float64)
    error = values - qparams.decode(quantize_array(held, qparams))
    return float((values**2).sum()), float((error**2).sum())


def _sqnr_db(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def _in_rows(weight: NDArray[Any], encoding: Encoding) -> NDArray[Any]:
    """Returns the values that share a scale as rows."""
    axis, granularity = encoding.channel_axis, encoding.granularity
    if isinstance(granularity, PerToken):
        return np.moveaxis(weight, granularity.axis, -1).reshape(-1, weight.shape[granularity.axis])
    rows = weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0)
    return rows.reshape(rows.shape[0], -1)
