"""What GPTQ and AWQ need of the data: how the inputs of a product depend on each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.survey import map_values_made
from trtq.errors import DataError
from trtq.models.session import open_session, run
from trtq.models.tensors import read_values, require_finite
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.gptq import Gram, quantize_gptq

_MOST_BYTES = 1 << 30
"""Of Gram matrices in memory at a time; a model with more of them is run over the data again."""


def quantize_by_gptq(
    model: ir.Model, chosen: Sequence[ChosenWeight], batches: Batches, dtype: str
) -> dict[str, Codes]:
    """Returns INT4 codes of the weights of products by GPTQ, by the weight's name; not of embeddings.

    The scales survive the dtype "float32", "float16" or "bfloat16".

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model, or a weight is not finite.
    """
    found: dict[str, Codes] = {}
    for _, weights, gram in iterate_inputs(model, chosen, batches):
        for weight in weights:
            is_first = weight.blocks.axis == 0
            values = read_weight(model, weight)
            codes, scales = quantize_gptq(values if is_first else values.T, gram, weight.blocks.size, dtype)
            found[weight.tensor] = (codes, scales) if is_first else (codes.T, scales.T)
    return found


def read_weight(model: ir.Model, weight: ChosenWeight) -> NDArray[Any]:
    """Returns the values of a weight.

    Raises:
        ModelError: It is not finite.
    """
    tensor = model.graph.initializers[weight.tensor].const_value
    assert tensor is not None
    values = read_values(tensor)
    require_finite(values, weight.tensor)
    return values


def iterate_inputs(
    model: ir.Model, chosen: Sequence[ChosenWeight], batches: Batches
) -> Iterator[tuple[str, list[ChosenWeight], Gram]]:
    """Yields each activation that chosen weights are multiplied with, with these and its Gram matrix.

    The model is run over the data as often as the matrices of so many activations fit into memory.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model.
    """
    readers: dict[str, list[ChosenWeight]] = {}
    for weight in chosen:
        if (source := _input_of(model, weight)) is not None:
            readers.setdefault(source, []).append(weight)
    for sources in _groups({name: _gram_bytes(weights[0]) for name, weights in readers.items()}):
        grams = dict(measure_grams(model, sources, batches))
        for source in sources:
            yield source, readers[source], grams.pop(source)


def measure_grams(model: ir.Model, tensors: Sequence[str], batches: Batches) -> Mapping[str, Gram]:
    """Returns X^T X, float32, of each tensor over all the data, taken as rows of its last axis.

    Raises:
        DataError: A product of two values is not finite.
    """
    wanted = list(dict.fromkeys(tensors))
    tapped = model.clone()
    present = {value.name for value in (*tapped.graph.outputs, *tapped.graph.inputs)}
    made = map_values_made(tapped)
    tapped.graph.outputs.extend(made[name] for name in wanted if name not in present)
    session = open_session(tapped, optimize=True)
    names = [str(value.name) for value in model.graph.inputs]
    grams: dict[str, NDArray[Any]] = {}
    magnitudes: dict[str, NDArray[Any]] = {}
    counts = dict.fromkeys(wanted, 0)
    for feed in batches:
        arrays = {name: feed.arrays[name] for name in names}
        computed = [name for name in wanted if name not in arrays]
        found = run(session, computed, arrays) if computed else []  # none named would be all
        values = arrays | dict(zip(computed, found, strict=True))
        for name in wanted:
            rows = values[name].reshape(-1, values[name].shape[-1]).astype(np.float32, copy=False)
            with np.errstate(over="ignore", invalid="ignore"):
                grams[name] = grams.get(name, np.float32(0)) + rows.T @ rows
                magnitudes[name] = magnitudes.get(name, 0.0) + np.abs(rows).sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
            if not np.isfinite(grams[name]).all():
                raise DataError(
                    f"tensor {name!r} has values in {feed.source} that are not finite, or so large that "
                    f"their products are not; GPTQ and AWQ need finite products: look at the data, or take "
                    f"--weight-method mse"
                )
    return {
        name: Gram(products, counts[name], magnitudes[name] / max(counts[name], 1))
        for name, products in grams.items()
    }


def _input_of(model: ir.Model, weight: ChosenWeight) -> str | None:
    """Returns the activation that the weight is multiplied with from the right, if it is one."""
    by_name = {str(node.name): node for node in model.graph}
    sources: set[str | None] = set()
    for reader in weight.readers:
        node = by_name[reader.name]
        flipped = node.attributes.get_int("transA", 0) == 1
        source = node.inputs[0]
        usable = reader.op_type in ("MatMul", "Gemm") and reader.weight == (1, weight.tensor) and not flipped
        sources.add(str(source.name) if usable and source is not None else None)
    return next(iter(sources)) if len(sources) == 1 else None


def _gram_bytes(weight: ChosenWeight) -> int:
    return 4 * int(weight.shape[weight.blocks.axis]) ** 2


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yields the tensors in groups whose Gram matrices fit into memory together."""
    group: list[str] = []
    total = 0
    for name, size in sizes.items():
        if group and total + size > _MOST_BYTES:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group
