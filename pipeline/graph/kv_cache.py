"""The caches of a decoder that codes can take the place of: what is joined to them, and what goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.errors import ModelError, UsageError
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.operands import DEQUANTIZE, QUANTIZE, find_constant, read_points
from trtq.pipeline.graph.placed import HeldCache, Placement
from trtq.pipeline.graph.state import is_cache, pair_states

KV_CACHES = {form.name: form for form in (INT8, FP8)}
"""The formats of codes that a cache can be held in."""
OF_SHAPES = ("Shape", "Size")
"""They read no value, so that codes are the same to them."""


@dataclass(frozen=True, slots=True)
class CodedCache:
    """A cache of codes: a code times the scale is the number.

    Attributes:
        past: The input.
        present: The output that continues it.
        form: Of the codes.
        scale: Of all of them.
    """

    past: str
    present: str
    form: CodeFormat
    scale: float

    def encode(self, values: NDArray[np.floating]) -> NDArray[np.generic]:
        """Returns the codes of numbers, as a session takes them: int8, or the numbers of FP8 as float32.

        They are those that QuantizeLinear makes.
        """
        steps = values.astype(np.float32) / np.float32(self.scale)
        if self.form.name == INT8.name:  # another object in another process
            return np.asarray(np.clip(np.rint(steps), -128, 127), np.int8)
        return np.asarray(self.form.round_steps(steps.astype(np.float64)), np.float32)

    def decode(self, codes: NDArray[np.generic]) -> NDArray[np.floating]:
        """Returns the numbers of codes that a session gives, in float32."""
        return np.asarray(codes.astype(np.float32) * np.float32(self.scale))


def place_caches(graph: Graph, form: str | None, placement: Placement) -> Placement:
    """Returns the placement with the caches of a model in a format of codes, if one is named.

    Raises:
        UsageError: The model has no cache.
        ModelError: A cache does not grow by a Concat.
    """
    if form is None:
        return placement
    return replace(placement, caches=find_caches(graph.model, KV_CACHES[form], graph.path))


def find_caches(model: ir.Model, form: CodeFormat, path: Path) -> tuple[HeldCache, ...]:
    """Returns the caches of a float model, to be held in a format.

    Args:
        model: The model.
        form: INT8 or FP8.
        path: The file, for messages.

    Raises:
        UsageError: The model has no cache.
        ModelError: A cache does not grow by a Concat.
    """
    inputs = {str(value.name): value for value in model.graph.inputs if value.dtype in FLOAT_TYPES}
    outputs = {str(value.name): value for value in model.graph.outputs}
    pasts = [name for name, value in inputs.items() if is_cache(name, [None] * len(value.shape or ()))]
    pairs = pair_states(pasts, outputs)
    if not pairs:
        raise UsageError(
            f"--kv-cache is for a model with a cache, and no output of {path} continues one of the inputs "
            f"{', '.join(str(value.name) for value in model.graph.inputs)}"
        )
    caches = [inputs[past] for past in pairs]
    return tuple(
        HeldCache(past, present, _find_concat(inputs[past], outputs[present], caches, path), form)
        for past, present in pairs.items()
    )


def _find_concat(past: ir.Value, present: ir.Value, caches: Sequence[ir.Value], path: Path) -> str:
    readers = [node for node, _ in past.uses() if node.op_type not in OF_SHAPES]
    other = next((node for node in readers if node is not present.producer()), None)
    node = other or present.producer()
    joined = node.inputs if other is None and node is not None and node.op_type == "Concat" else ()
    if [value for value in joined if value in caches] == [past] and not past.is_graph_output():
        assert node is not None
        return str(node.name)
    reader = "nothing" if node is None else f"{node.op_type} {node.name!r}"
    raise ModelError(
        f"{path}: the cache {past.name!r} goes to {reader}; --kv-cache takes one Concat of the cache and "
        f"what is new, which makes {present.name!r}"
    )


def find_coded_caches(model: ir.Model) -> tuple[CodedCache, ...]:
    """Returns the caches of codes that a model has, with one scale each and no zero point but 0."""
    forms: dict[ir.DataType | None, CodeFormat] = {form.dtype: form for form in KV_CACHES.values()}
    inputs = {str(value.name): value for value in model.graph.inputs if value.dtype in forms}
    pasts = [name for name, value in inputs.items() if is_cache(name, [None] * len(value.shape or ()))]
    found = []
    outputs = [str(value.name) for value in model.graph.outputs if value.dtype in forms]
    for past, present in pair_states(pasts, outputs).items():
        node = _find_scaled(inputs[past])
        scale, zero = (None, None) if node is None else (find_constant(node, 1), read_points(node))
        if scale is not None and scale.size == 1 and zero is not None and not zero.any():
            found.append(CodedCache(past, present, forms[inputs[past].dtype], float(scale.item())))
    return tuple(found)


def _find_scaled(past: ir.Value) -> ir.Node | None:
    """Returns what makes numbers of a cache, or of the Concat of it and what is new, or codes of that."""
    readers = [node for node, _ in past.uses()]
    joins = [node for node in readers if node.op_type == "Concat"]
    readers += [node for join in joins for node, _ in join.outputs[0].uses()]
    makers = [value.producer() for join in joins for value in join.inputs if value is not None]
    pairs = (*((node, DEQUANTIZE) for node in readers), *((node, QUANTIZE) for node in makers))
    return next((node for node, op_type in pairs if node is not None and node.op_type == op_type), None)
