"""What each output of a layer is made of: the rows that meet its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def gather_columns(
    array: NDArray[Any], node: ir.Node, weight: NDArray[Any], most: int
) -> NDArray[np.float32]:
    """Returns some of the rows that meet the weight: float32, shape (groups, rows, inputs of one output).

    They are at random places, the same every time.

    Args:
        array: The layer's activation.
        node: A Conv, or a Gemm or MatMul whose activation is not transposed.
        weight: Its weight.
        most: How many rows at most.
    """
    rng = np.random.default_rng(0)
    if node.op_type != "Conv":
        rows = array.reshape(-1, array.shape[-1])
        return rows[rng.permutation(len(rows))[:most]].astype(np.float32)[None]
    rank = weight.ndim - 2
    strides, dilations = _ints(node, "strides", rank, 1), _ints(node, "dilations", rank, 1)
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    spans = [(size - 1) * gap + 1 for size, gap in zip(weight.shape[2:], dilations, strict=True)]
    pads = _pads(node, array.shape[2:], spans, strides)
    padded = np.pad(array, [(0, 0), (0, 0), *pads])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + rank)))
    steps = tuple(slice(None, None, step) for step in (*strides, *dilations))
    windows = np.moveaxis(windows[(slice(None), slice(None), *steps)], 1, 1 + rank)
    where = windows.shape[: 1 + rank]
    places = rng.permutation(int(np.prod(where)))[:most]
    rows = windows[np.unravel_index(places, where)]
    return rows.reshape(len(places), groups, -1).transpose(1, 0, 2).astype(np.float32)


def _pads(
    node: ir.Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Returns the zeros before and behind each axis, as the operator's `auto_pad` defines them."""
    automatic = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if not automatic.startswith("SAME"):
        given = _ints(node, "pads", 2 * len(spans), 0)
        return list(zip(given[: len(spans)], given[len(spans) :], strict=True))
    found = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        fewer = total // 2
        found.append((total - fewer, fewer) if automatic == "SAME_LOWER" else (fewer, total - fewer))
    return found


def _ints(node: ir.Node, name: str, number: int, default: int) -> list[int]:
    return list(node.attributes[name].as_ints()) if name in node.attributes else [default] * number
