"""Weight-only quantization as a part of a build: which weights, in which model, and what it is good for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from trtq.errors import ModelError, UsageError
from trtq.models.spec import ModelSpec
from trtq.pipeline.deliver.report import WeightsReport
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.axes import explain_other
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, QuantizedNode, find_unmatched
from trtq.pipeline.rewrite.weights.apply import Runtime
from trtq.pipeline.rewrite.weights.choose import (
    ChosenWeight,
    choose_stored,
    choose_weights,
    group_stored,
)
from trtq.pipeline.rewrite.weights.layout import count_stored_bytes
from trtq.progress import Watcher

_BIG = 1 << 18
"""Elements of a MatMul's weight from which INT8 activations pay in a mixed build: 512 x 512."""
_MOST_KEPT = 3
"""That are named where nothing is stored."""
_W4A8_GAIN = (
    "each run turns INT4 weights into 8 bits, and multiplies these: a smaller file and engine, and not less "
    "time than weights of 8 bits"
)
_OLDEST = (8, 0)
"""The compute capability from which TensorRT-RTX builds where none is named."""


def place_weights(
    graph: Graph,
    spec: ModelSpec,
    target: Target,
    placement: Placement,
    watcher: Watcher,
    *,
    by_matrix: bool = True,
) -> Placement:
    """Returns the placement with weights that are stored in fewer bits beside Q/DQ.

    Beside Q/DQ (a mixed build) the weights of convolutions and of big products stay with Q/DQ; those of small
    products, of embeddings and of what is not quantized otherwise are chosen here. A small product whose
    weight cannot be stored in fewer bits stays with Q/DQ too.

    With W4A8 the weights of all products are stored in fewer bits and stay with Q/DQ.

    The placement is empty where no layer has Q/DQ. The watcher is told of patterns that match nothing or
    store no weight, and of weights with smaller blocks. For `by_matrix` see `choose_weights`.
    """
    assert target.weights is not None
    patterns = (*spec.layers.skip, *spec.layers.keep_fp32)
    named = (*patterns, *(pattern for pattern, _ in target.weights.others))
    unmatched = dict(find_unmatched(graph.model, named, in_weights=True))
    for pattern, nearest in unmatched.items():
        near = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        watcher.warn(f"{pattern!r} matches no node or weight{near}")
    if target.weights.in_products:
        placement = _store_products(graph, target.weights, placement, patterns, watcher)
    small = {
        node.name
        for node in placement.quantized
        if not target.weights.in_products and _is_small(graph.model, node)
    }
    taken = {node.weight[1] for node in placement.quantized if node.weight and node.name not in small}
    found = choose_weights(graph.model, target.weights, patterns, taken, by_matrix=by_matrix)
    moved = {node.name for node in found.quantized}
    quantized = (*(node for node in placement.quantized if node.name not in small & moved), *found.quantized)
    done = {node.name for node in quantized}
    kept = {node.name: node for node in (*placement.kept, *found.kept, *graph.unseen)}
    order = {node.name: index for index, node in enumerate(graph.model.graph)}
    result = replace(
        placement,
        quantized=tuple(sorted(quantized, key=lambda node: order[node.name])),
        kept=tuple(node for node in kept.values() if node.name not in done),
    )
    stored = group_stored(graph.model, result)
    if smaller := describe_smaller_blocks(stored, target.weights.block_size):
        watcher.warn(smaller)
    used = {
        target.weights.find_other((weight.tensor, *(node.name for node in weight.readers)))
        for weight in stored
    }
    for pattern, form in target.weights.others:
        if pattern not in unmatched and (pattern, form) not in used:
            reasons = [f"{node.name}: {node.reason}" for node in found.kept if re.search(pattern, node.name)]
            shown = f" ({'; '.join(reasons[:_MOST_KEPT])})" if reasons else ""
            watcher.warn(f"{pattern!r} stores no weight as {form.upper()}{shown}")
    return result


def _store_products(
    graph: Graph, scheme: WeightScheme, placement: Placement, patterns: Sequence[str], watcher: Watcher
) -> Placement:
    """Returns the placement with W4A8; the watcher is told of what keeps its weight in 8 bits."""
    found = choose_stored(graph.model, placement, scheme, patterns)
    if found.kept and found.has_few_bits:
        watcher.warn(f"{len(found.kept)} products keep their weight in 8 bits ({_name_kept(found)})")
    return replace(placement, quantized=found.quantized)


def refuse_nothing_in_products(graph: Graph, spec: ModelSpec, target: Target, placement: Placement) -> None:
    """Refuses a model of which no product can store its weight for W4A8.

    Raises:
        ModelError: So it is; some reasons are named.
    """
    scheme = target.weights
    if scheme is None or not scheme.in_products or placement.has_stored:
        return
    found = choose_stored(graph.model, placement, scheme, (*spec.layers.skip, *spec.layers.keep_fp32))
    shown = f" ({_name_kept(found)})" if found.kept else ""
    raise ModelError(
        f"{graph.path} has no quantized MatMul or Gemm whose weight can be stored as "
        f"{scheme.format.upper()}{shown}; leave --w4a8 out"
    )


def _name_kept(placement: Placement) -> str:
    return "; ".join(f"{node.name}: {node.reason}" for node in placement.kept[:_MOST_KEPT])


def refuse_nothing_stored(graph: Graph, target: Target, placement: Placement) -> None:
    """Refuses a model of which no weight is stored in the format that was asked for.

    Raises:
        ModelError: So it is; some reasons are named.
    """
    if target.weights is None or placement.has_few_bits:
        return
    kept = _name_kept(placement)
    raise ModelError(
        f"{graph.path} has no weight that can be stored as {target.weights.format.upper()}"
        + (f" ({kept})" if kept else "")
        + "; leave --weights out, or --skip and --keep-fp32"
    )


def refuse_other_formats(graph: Graph, target: Target, placement: Placement) -> None:
    """Refuses a model without a layer that gets the format which was asked for, instead of another one.

    Raises:
        ModelError: So it is; the reasons of some layers are named.
    """
    form = target.form
    if form is None or form.otherwise is None:
        return
    if any(form in node.scheme.formats for node in placement.layers):
        return
    others = {node.name for node in placement.layers}
    reasons = [f"{node.name}: {explain_other(node)}" for node in graph.model.graph if node.name in others]
    reasons += [f"{node.name}: {node.reason}" for node in placement.kept]
    shown = f" ({'; '.join(reasons[:_MOST_KEPT])})" if reasons else ""
    raise ModelError(
        f"{graph.path} has no layer that can be {form.name.upper()}{shown}; take --{form.otherwise}"
    )


def refuse_weights(target: Target, backend: Backend, strategy: Strategy) -> None:
    """Refuses weight-only quantization where the graph cannot say it.

    Raises:
        UsageError: The builder picks precisions itself, or a target has no FP8.
    """
    if target.high_precision == "bf16" and backend.name == "onnxruntime":
        raise UsageError("backend onnxruntime has no BF16 on the CPU; take --compute-dtype fp32")
    if target.weights is not None and not strategy.is_typed and backend.name != "onnxruntime":
        raise UsageError(
            f"--weights {target.weights.format} needs a builder that takes its precisions from the graph; "
            f"backend {backend.name} of version {backend.version()} picks them itself"
        )
    if target.weights is not None and backend.name == "tensorrt-rtx":
        for form in target.weights.number_formats:
            refuse_older_gpus(form, target.compute_capabilities, f"--weights {form}", "--weights int8")


def find_runtime(backend: str) -> Runtime:
    """Returns who runs what a backend builds."""
    return "onnxruntime" if backend == "onnxruntime" else "tensorrt"


def report_weights(
    chosen: Sequence[ChosenWeight], target: Target, *, backend: str, rest: FloatFormat
) -> WeightsReport:
    """Returns what the report says of weights that are quantized alone, with scales in the format `rest`."""
    scheme = target.weights
    assert scheme is not None
    size = sum(
        count_stored_bytes(weight, rest.dtype) + _count_channel_bytes(weight, rest) for weight in chosen
    )
    count = sum(weight.num_elements for weight in chosen)
    held = {weight.encoding.format for weight in chosen}
    main, *others = [form for form in scheme.number_formats if form in held] or [scheme.number_format]
    blocks = _list_block_sizes(chosen) or ([scheme.block_size] if main.block_sizes else [])
    return WeightsReport(
        format=main.name,
        method=scheme.method if main is scheme.number_format else "rtn",
        block_size=max(blocks, default=None),
        num_weights=len(chosen),
        bytes_float=4 * count,
        bytes_quantized=size,
        bits_per_weight=round(8 * size / count, 3) if count else 0.0,
        gain=_W4A8_GAIN if scheme.in_products else main.describe_gain(find_runtime(backend)),
        smallest_block=min(blocks, default=None),
        also=tuple(form.name for form in others),
    )


def _count_channel_bytes(weight: ChosenWeight, rest: FloatFormat) -> int:
    """Returns the size of the scales of the codes that a stored weight is turned into; 0 where it is not."""
    codes = next((reader.scheme.weight for reader in weight.readers), None)
    if codes is None or codes.stored is None:
        return 0
    return math.prod(codes.granularity.scales_shape(weight.shape)) * rest.dtype.bitwidth // 8


def _list_block_sizes(chosen: Sequence[ChosenWeight]) -> list[int]:
    found = (weight.encoding.granularity for weight in chosen if weight.encoding.format.block_sizes)
    return [granularity.size for granularity in found if isinstance(granularity, PerBlock)]


def describe_smaller_blocks(chosen: Sequence[ChosenWeight], wanted: int) -> str:
    """Returns what to say of weights whose blocks are not of the wanted size; empty if there are none."""
    sizes = {weight.tensor: size for weight in chosen for size in _list_block_sizes([weight])}
    found = {name: size for name, size in sizes.items() if size != wanted}
    if not found:
        return ""
    shown = ", ".join(f"{name!r} ({size})" for name, size in list(found.items())[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"{len(found)} of {len(chosen)} weights have smaller blocks, since {wanted} does not divide their "
        f"inputs: {shown}{more}"
    )


def _is_small(model: ir.Model, node: QuantizedNode) -> bool:
    """Whether a product is so small that turning its activations into codes costs more than it saves."""
    if node.weight is None or node.op_type == "Conv":
        return False
    tensor = model.graph.initializers[node.weight[1]].const_value
    assert tensor is not None
    return tensor.size < _BIG


def refuse_older_gpus(form: CodeFormat, given: Sequence[str], asked: str, instead: str) -> None:
    """Refuses target GPUs that do not have a number format.

    Args:
        form: The format.
        given: The compute capabilities of the GPUs; empty: the builder's own, from 8.0 on.
        asked: The option that asks for the format.
        instead: The option that runs on all.

    Raises:
        UsageError: A GPU lacks it.
    """
    first = ".".join(map(str, form.compute_capability))
    without = [item for item in given if tuple(map(int, item.split("."))) < form.compute_capability]
    if without or (not given and form.compute_capability > _OLDEST):
        raise UsageError(
            f"{asked} needs GPUs of compute capability {first} or newer, and the engine is for "
            f"{', '.join(without) or '8.0 and newer'}; give --compute-capability {first}, or take "
            f"{instead}"
        )
