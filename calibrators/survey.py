"""A survey of a model's tensors: how large they are in memory, and how large their values get."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.session import SessionOptions, open_session, visit_tensors

_FLOAT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True, slots=True)
class Survey:
    """What one feed shows: bytes of the tensors asked for, and the magnitudes of all float32 tensors."""

    sizes: Mapping[str, int]
    magnitudes: Mapping[str, float]


def survey(model: ir.Model, tensors: Sequence[str], feed: Mapping[str, NDArray[Any]], device: str) -> Survey:
    """Returns the sizes of tensors that nodes make, and all magnitudes, on one feed.

    Only numbers leave the session, no tensors. The float graph is not changed.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    clone = model.clone()
    made = map_values_made(clone)
    clone.graph.outputs.clear()
    floats = [name for name, value in made.items() if _is_float32_tensor(value)]
    magnitudes = add_magnitudes(clone, floats, floats)
    sizes = {_append(clone, made[name], _count, f"trtq_size_{name}", _INT64): name for name in tensors}
    if not magnitudes and not sizes:
        return Survey({}, {})
    found: dict[str, float] = {}
    # Without optimizations the session opens sooner than it gains by them on one feed.
    engine = SessionOptions(device, keeps_memory=False, keeps_order=True)
    session = open_session(clone, optimize=False, engine=engine)
    visit_tensors(
        session, [*magnitudes, *sizes], feed, lambda name, array: found.update({name: array.item()})
    )
    return Survey(
        {name: int(found[output]) * _itemsize(made[name]) for output, name in sizes.items()},
        {name: read_magnitude(found[output]) for output, name in magnitudes.items()},
    )


def map_values_made(model: ir.Model) -> dict[str, ir.Value]:
    """Returns what the nodes of the graph make, by name."""
    return {str(value.name): value for node in model.graph for value in node.outputs if value.name}


def add_magnitudes(model: ir.Model, tensors: Sequence[str], doubtful: Collection[str]) -> dict[str, str]:
    """Makes the largest magnitude of each tensor an output; returns the tensors by output.

    It is reduced where the tensor is made, so that ONNX Runtime can let go of that as early as without. Its
    largest and its smallest value take no memory, as its magnitudes would.

    Args:
        model: It is changed.
        tensors: Float32 tensors that nodes make.
        doubtful: Those that may hold NaN, for which ONNX Runtime's maximum forgets what it saw before.
    """
    made = map_values_made(model)
    return {
        _append(
            model,
            made[name],
            _reduce_numbers if name in doubtful else _reduce,
            f"trtq_largest_{name}",
            _FLOAT32,
        ): name
        for name in tensors
    }


def read_magnitude(value: float) -> float:
    """Returns the magnitude: 0 of an empty tensor, infinity where nothing is known."""
    return math.inf if math.isnan(value) else max(value, 0.0)


def _count(value: ir.Value, name: str) -> list[ir.Node]:
    return [ir.node("Size", [value], name=f"{name}_Size")]


def _reduce(value: ir.Value, name: str) -> list[ir.Node]:
    """Returns the nodes that compute the largest magnitude, the last one last."""
    highest, lowest = (
        ir.node(op_type, [value], {"keepdims": 0}, name=f"{name}_{op_type}")
        for op_type in ("ReduceMax", "ReduceMin")
    )
    negated = ir.node("Neg", [lowest.outputs[0]], name=f"{name}_Neg")
    return [highest, lowest, negated, ir.node("Max", [highest.outputs[0], negated.outputs[0]], name=name)]


def _reduce_numbers(value: ir.Value, name: str) -> list[ir.Node]:
    """Returns the same as `_reduce`, with a zero in place of every NaN."""
    zero = ir.node("Constant", [], {"value_float": 0.0}, name=f"{name}_zero")
    is_nan = ir.node("IsNaN", [value], name=f"{name}_IsNaN")
    choices = [is_nan.outputs[0], zero.outputs[0], value]
    numbers = ir.node("Where", choices, name=f"{name}_numbers")
    return [zero, is_nan, numbers, *_reduce(numbers.outputs[0], name)]


def _append(
    model: ir.Model,
    value: ir.Value,
    make: Callable[[ir.Value, str], list[ir.Node]],
    name: str,
    dtype: ir.DataType,
) -> str:
    """Computes a scalar of a value right behind it, as an output of this name; returns the name."""
    producer = value.producer()
    assert producer is not None
    nodes = make(value, name)
    for node in nodes:
        node.outputs[0].name = f"{node.name}_of"
    model.graph.insert_after(producer, nodes)
    output = nodes[-1].outputs[0]
    output.name, output.type = name, ir.TensorType(dtype)
    model.graph.outputs.append(output)
    return name


def refuse_unknown(model: ir.Model, tensors: Sequence[str]) -> None:
    """Raises ModelError if the graph lacks one of the tensors."""
    present = {value.name for value in model.graph.inputs} | set(map_values_made(model))
    if missing := set(tensors) - present:
        raise ModelError(f"the model has no tensor {sorted(missing)[0]!r} to observe")


def _is_float32_tensor(value: ir.Value) -> bool:
    # A sequence of floats has a dtype as well, but no largest element.
    return value.dtype is _FLOAT32 and isinstance(value.type, ir.TensorType)


def _itemsize(value: ir.Value) -> int:
    return int(value.dtype.itemsize) if value.dtype is not None else np.dtype(np.float32).itemsize
