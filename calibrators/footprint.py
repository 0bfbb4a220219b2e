"""What ONNX Runtime takes for a model, beside the tensors that are observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.memory import find_free_bytes
from trtq.models.session import count_weight_bytes
from trtq.models.sizes import has_open_sizes, infer_sizes
from trtq.numbers import format_bytes

_PACKED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Layers whose weights ONNX Runtime holds twice: as they are, and as the kernels read them."""


def warn_of_footprint(
    model: ir.Model, arrays: Mapping[str, NDArray[Any]], limit: int | None, note: Callable[[str], None]
) -> None:
    """Says if the model alone takes more memory than it may, or than is free.

    Args:
        model: The float graph.
        arrays: The inputs of one run.
        limit: What the observed tensors may take; None: not given.
        note: Gets the sentence.
    """
    weights, free = count_open_bytes(model), find_free_bytes()
    if limit is None and weights <= free:
        return
    run = count_run_bytes(model, arrays)
    taken = (
        f"the model alone takes about {format_bytes(weights + run)} of memory: {format_bytes(weights)} for "
        f"its weights as ONNX Runtime holds them, {format_bytes(run)} for its largest layer"
    )
    if weights + run > free:
        note(f"{taken}; only {format_bytes(free)} are free, so the process may be killed")
    elif limit is not None and weights + run > limit:
        note(
            f"{taken}; the calibration memory of {format_bytes(limit)} is for the observed tensors beside it"
        )


def count_open_bytes(model: ir.Model) -> int:
    """Returns the bytes of all weights, those of layers with packed weights twice."""
    packed = {value for node in model.graph if node.op_type in _PACKED for value in node.inputs[1:2]}
    weights = (value.const_value for value in packed if value is not None)
    return count_weight_bytes(model) + sum(tensor.nbytes for tensor in weights if tensor is not None)


def count_run_bytes(model: ir.Model, arrays: Mapping[str, NDArray[Any]]) -> int:
    """Returns the bytes of the tensors of the node that has most of them, as far as their sizes are known.

    Args:
        model: The float graph.
        arrays: The inputs of the run.
    """
    if any(has_open_sizes(value) for node in model.graph for value in node.outputs):
        model = infer_sizes(model, {name: array.shape[1:] for name, array in arrays.items()})
    num_samples = max((len(array) for array in arrays.values() if array.ndim), default=1)
    return max((sum(_list_bytes(node, num_samples)) for node in model.graph), default=0)


def _list_bytes(node: ir.Node, num_samples: int) -> Iterator[int]:
    for value in {*node.inputs, *node.outputs}:
        if value is None or value.is_initializer() or value.shape is None or value.dtype is None:
            continue
        first, *rest = value.shape or (1,)
        known = [first if isinstance(first, int) else num_samples, *rest]
        sizes = [size for size in known if isinstance(size, int)]
        if len(sizes) == len(known):
            yield math.ceil(math.prod(sizes) * value.dtype.itemsize)
