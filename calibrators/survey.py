"""A survey of a model's tensors: how large they are in memory, and how large their values get."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtq.calibrators.finite import list_doubtful
from trtq.errors import ModelError
from trtq.models.session import SessionOptions, open_session, visit_tensors

_FLOAT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64
_HIGHEST, _LOWEST = "trtq_highest_", "trtq_lowest_"


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
    made = map_values_made(model)
    floats = [name for name, value in made.items() if _is_float32_tensor(value)]
    known = measure_inputs(feed)
    doubtful = list_doubtful(model, (), known)
    found = _survey(model, tensors, floats, doubtful, feed, device)
    if list_doubtful(model, (), {**known, **found.magnitudes}) <= doubtful:
        return found
    return _survey(model, tensors, floats, floats, feed, device)


def survey_observed(
    model: ir.Model, tensors: Sequence[str], feed: Mapping[str, NDArray[Any]], device: str
) -> Survey:
    """Returns the sizes and the magnitudes of tensors that nodes make, and of no others, as `survey` does."""
    made = map_values_made(model)
    return _survey(
        model, tensors, [name for name in tensors if _is_float32_tensor(made[name])], (), feed, device
    )


def measure_sizes(
    model: ir.Model, tensors: Sequence[str], feed: Mapping[str, NDArray[Any]], device: str = "cpu"
) -> Mapping[str, int]:
    """Returns the bytes of tensors that nodes make, by name, on one feed; no tensor leaves the session.

    Raises:
        ModelError: ONNX Runtime cannot run the model.
    """
    return _survey(model, tensors, (), (), feed, device).sizes


def _survey(
    model: ir.Model,
    tensors: Sequence[str],
    floats: Sequence[str],
    doubtful: Collection[str],
    feed: Mapping[str, NDArray[Any]],
    device: str,
) -> Survey:
    clone = model.clone()
    made = map_values_made(clone)
    clone.graph.outputs.clear()
    magnitudes = add_magnitudes(clone, floats, doubtful)
    sizes = {_append(clone, made[name], _count, f"trtq_size_{name}", _INT64): name for name in tensors}
    if not magnitudes and not sizes:
        return Survey({}, {})
    RemoveUnusedNodesPass()(clone)
    seen: dict[str, float] = {}
    # Without optimizations the session opens sooner than it gains by them on one feed.
    engine = SessionOptions(
        device, num_threads=1, keeps_memory=False, keeps_order=True
    )  # as every machine can
    session = open_session(clone, optimize=False, engine=engine)
    visit_tensors(session, [*magnitudes, *sizes], feed, lambda name, array: seen.update({name: array.item()}))
    largest = dict.fromkeys(magnitudes.values(), 0.0)
    for output, name in magnitudes.items():
        largest[name] = max(largest[name], read_magnitude(output, seen[output]))
    return Survey(
        {name: int(seen[output]) * _itemsize(made[name]) for output, name in sizes.items()}, largest
    )


def map_values_made(model: ir.Model) -> dict[str, ir.Value]:
    """Returns what the nodes of the graph make, by name."""
    return {str(value.name): value for node in model.graph for value in node.outputs if value.name}


def add_magnitudes(model: ir.Model, tensors: Sequence[str], doubtful: Collection[str]) -> dict[str, str]:
    """Makes the largest and the smallest value of each tensor an output; returns the tensors by output.

    They are reduced where the tensor is made, so that ONNX Runtime can let go of that as early as without,
    and take no memory, as the magnitudes would. `read_magnitude` reads the outputs.

    Args:
        model: It is changed.
        tensors: Float32 tensors that nodes make.
        doubtful: Those that may hold NaN, which is taken for a zero.
    """
    made, outputs = map_values_made(model), {}
    for name in tensors:
        value = _replace_nan(model, made[name]) if name in doubtful else made[name]
        for prefix, op_type in ((_HIGHEST, "ReduceMax"), (_LOWEST, "ReduceMin")):
            make = partial(_reduce, op_type)
            outputs[_append(model, value, make, f"{prefix}{name}", _FLOAT32)] = name
    return outputs


def read_magnitude(output: str, value: float) -> float:
    """Returns how far a tensor reaches from zero to one side: 0 if it is empty, infinity for NaN."""
    return to_magnitude(value if output.startswith(_HIGHEST) else -value)


def to_magnitude(value: float) -> float:
    """Returns a number as a magnitude: 0 of one below zero, infinity where nothing is known."""
    return math.inf if math.isnan(value) else max(value, 0.0)


def measure_inputs(arrays: Mapping[str, NDArray[Any]]) -> dict[str, float]:
    """Returns how far each input of numbers reaches from zero, and below it; infinity where one is NaN."""
    found = {}
    for name, array in arrays.items():
        if array.dtype.kind in "iuf" and array.size:
            low, high = float(array.min()), float(array.max())
            found[name] = to_magnitude(max(high, -low))
            found[name_negative(name)] = to_magnitude(-low)
    return found


def name_negative(name: str) -> str:
    """Returns the name under which is known how far an input reaches below zero."""
    return f"below zero: {name}"


def _count(value: ir.Value, name: str) -> ir.Node:
    return ir.node("Size", [value], name=name)


def _reduce(op_type: str, value: ir.Value, name: str) -> ir.Node:
    return ir.node(op_type, [value], {"keepdims": 0}, name=name)


def _replace_nan(model: ir.Model, value: ir.Value) -> ir.Value:
    """Puts zeros in place of NaN right behind a value; returns the result."""
    stem = f"trtq_numbers_{value.name}"
    zero = ir.node("Constant", [], {"value_float": 0.0}, name=f"{stem}_zero")
    is_nan = ir.node("IsNaN", [value], name=f"{stem}_IsNaN")
    numbers = ir.node("Where", [is_nan.outputs[0], zero.outputs[0], value], name=stem)
    for node in (zero, is_nan, numbers):
        node.outputs[0].name = f"{node.name}_of"
    _insert_behind(model, value, [zero, is_nan, numbers])
    return numbers.outputs[0]


def _append(
    model: ir.Model,
    value: ir.Value,
    make: Callable[[ir.Value, str], ir.Node],
    name: str,
    dtype: ir.DataType,
) -> str:
    """Computes a scalar of a value right behind it, as an output of this name; returns the name."""
    node = make(value, name)
    _insert_behind(model, value, [node])
    output = node.outputs[0]
    output.name, output.type = name, ir.TensorType(dtype)
    model.graph.outputs.append(output)
    return name


def _insert_behind(model: ir.Model, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, nodes)


def refuse_unknown(model: ir.Model, tensors: Sequence[str]) -> None:
    """Raises ModelError if the graph lacks one of the tensors."""
    present = {value.name for value in model.graph.inputs} | set(map_values_made(model))
    if missing := set(tensors) - present:
        raise ModelError(f"the model has no tensor {sorted(missing)[0]!r} to observe")


def _is_float32_tensor(value: ir.Value) -> bool:
    # A sequence of floats has a dtype as well, but no largest element.
    return value.dtype is _FLOAT32 and isinstance(value.type, ir.TensorType)


def _itemsize(value: ir.Value) -> int:
    return int((value.dtype or _FLOAT32).itemsize)
