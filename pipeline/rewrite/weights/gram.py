"""What GPTQ and AWQ need of the data: how the inputs of a product depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.cursor import FeedCursor
from trtq.calibrators.survey import map_values_made, measure_sizes
from trtq.errors import DataError
from trtq.models.packed import PackedModel, pack
from trtq.models.session import open_session, run
from trtq.models.tensors import read_values, require_finite
from trtq.pipeline.formats.codes import Codes
from trtq.pipeline.rewrite.weights.choose import ChosenWeight
from trtq.pipeline.rewrite.weights.gptq import Gram, quantize_gptq
from trtq.workers import Shared, Workers

R = TypeVar("R")
_MOST_BYTES = 1 << 29
"""Of activations and Gram matrices in memory at a time; a model with more is run over the data again."""


def quantize_by_gptq(
    model: ir.Model,
    chosen: Sequence[ChosenWeight],
    batches: Batches,
    dtypes: Mapping[str, str],
    workers: Workers | None = None,
) -> dict[str, Codes]:
    """Returns INT4 codes of the weights of products by GPTQ, by the weight's name; not of embeddings.

    The scales of each survive its dtype: "float32", "float16" or "bfloat16". Workers take some of the
    activations each, with the weights that are multiplied with them; None: this process does all.

    Raises:
        DataError: The data does not fit.
        ModelError: ONNX Runtime cannot run the model, or a weight is not finite.
    """
    found: dict[str, Codes] = {}
    for _, _, codes in map_inputs(model, chosen, batches, partial(_quantize, dtypes=dtypes), workers):
        found |= codes
    return found


def _quantize(
    model: ir.Model, _: str, weights: Sequence[ChosenWeight], gram: Gram, *, dtypes: Mapping[str, str]
) -> dict[str, Codes]:
    found: dict[str, Codes] = {}
    for weight in weights:
        is_first = weight.blocks.axis == 0
        values = read_weight(model, weight)
        dtype, rows = dtypes[weight.tensor], values if is_first else values.T
        codes, scales = quantize_gptq(rows, gram, weight.blocks.size, dtype)
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


def map_inputs(
    model: ir.Model,
    chosen: Sequence[ChosenWeight],
    batches: Batches,
    use: Callable[[ir.Model, str, Sequence[ChosenWeight], Gram], R],
    workers: Workers | None = None,
) -> Iterator[tuple[str, Sequence[ChosenWeight], R]]:
    """Yields each activation that chosen weights are multiplied with, these, and what comes of its matrix.

    The model is run over the data as often as so many activations of a feed, and their matrices, do not fit
    into memory, which therefore does not grow with the layers.

    Args:
        model: The float graph.
        chosen: Its weights.
        batches: The data.
        use: Makes something of the model, an activation, its weights and its Gram matrix; for workers a
            function that pickles.
        workers: Who take some of the activations each, and run the model over all the data for these, so that
            every sum is one in the order of the feeds; None: this process.

    Raises:
        DataError: The data does not fit, or is other data where a worker reads it.
        ModelError: ONNX Runtime cannot run the model.
    """
    readers: dict[str, list[ChosenWeight]] = {}
    for weight in chosen:
        if (source := _input_of(model, weight)) is not None:
            readers.setdefault(source, []).append(weight)
    sizes = _measure_inputs(model, [*readers], batches)
    groups = _groups({name: sizes[name] + _gram_bytes(weights[0]) for name, weights in readers.items()})
    if workers is None:
        for sources in groups:
            for source, gram in measure_grams(model, sources, batches):
                yield source, readers[source], use(model, source, readers[source], gram)
        return
    shared = workers.share((pack(model), readers, FeedCursor(batches), use))
    parts = [(group, part) for group in groups for part in _split(group, workers.count())]
    for (_, part), found in zip(parts, workers.map(partial(_use_on_worker, shared), parts), strict=True):
        for source, made in zip(part, found, strict=True):
            yield source, readers[source], made


def _use_on_worker(
    shared: Shared[tuple[PackedModel, Mapping[str, Sequence[ChosenWeight]], FeedCursor, Callable[..., R]]],
    part: tuple[Sequence[str], Sequence[str]],
) -> list[R]:
    """Returns what comes of some activations of a group."""
    packed, readers, cursor, use = shared()
    model, (group, wanted) = packed.unpack(), part
    grams = measure_grams(model, group, cursor.open(), wanted)
    return [use(model, source, readers[source], gram) for source, gram in grams]


def _split(group: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    """Yields the tensors of a group, in their order, in as many parts."""
    size = math.ceil(len(group) / count)
    yield from (group[start : start + size] for start in range(0, len(group), size))


def measure_grams(
    model: ir.Model, tensors: Sequence[str], batches: Batches, wanted: Sequence[str] | None = None
) -> Iterator[tuple[str, Gram]]:
    """Yields each tensor with X^T X, float32, over all the data, taken as rows of its last axis.

    Args:
        model: The graph; it is not changed.
        tensors: Those that the model is run for: ONNX Runtime fuses no node across them.
        batches: The data.
        wanted: Those of them that are measured; None: all.

    Raises:
        DataError: A product of two values is not finite.
    """
    tensors = list(dict.fromkeys(tensors))
    wanted = tensors if wanted is None else wanted
    tapped = model.clone()
    present = {value.name for value in (*tapped.graph.outputs, *tapped.graph.inputs)}
    made = map_values_made(tapped)
    tapped.graph.outputs.extend(made[name] for name in tensors if name not in present)
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
                    f"tensor {name!r} has values in {feed.source} that are not finite, or so large "
                    "that their products are not; GPTQ and AWQ need finite products: look at the "
                    "data, or use --weight-method mse"
                )
    for name in wanted:
        yield name, Gram(grams.pop(name), counts[name], magnitudes[name] / max(counts[name], 1))


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


def _measure_inputs(model: ir.Model, tensors: Sequence[str], batches: Batches) -> dict[str, int]:
    """Returns the bytes of tensors in the first feed; 0 for those that are given."""
    first, made = next(iter(batches), None), map_values_made(model)
    if first is None:
        return dict.fromkeys(tensors, 0)
    arrays = {str(item.name): first.arrays[str(item.name)] for item in model.graph.inputs}
    found = measure_sizes(model, [name for name in tensors if name in made], arrays)
    return {name: found.get(name, 0) for name in tensors}


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Yields the tensors in groups that fit into memory together."""
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
