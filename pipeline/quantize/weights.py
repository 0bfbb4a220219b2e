"""Weight-only quantization as a part of a build: which weights, in which model, and what it is good for."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trtq.calibrators.batches import Batches
from trtq.errors import UsageError
from trtq.models.spec import ModelSpec
from trtq.pipeline.deliver.report import WeightsReport
from trtq.pipeline.engine.backend import Backend
from trtq.pipeline.engine.strategy import Strategy
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement, QuantizedNode
from trtq.pipeline.rewrite.mixed import MixedModel
from trtq.pipeline.rewrite.precision import to_bf16
from trtq.pipeline.rewrite.weights.apply import Runtime, quantize_weights
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, choose_weights, find_unmatched_names
from trtq.pipeline.rewrite.weights.gram import quantize_by_gptq
from trtq.pipeline.rewrite.weights.layout import choose_form, plan_parts
from trtq.progress import Watcher

_BIG = 1 << 18
"""Elements of a MatMul's weight from which INT8 activations pay in a mixed build: 512 x 512."""
_FIRST_WITH_FP8 = (8, 9)
_GAINS = {
    ("tensorrt", "int8"): "TensorRT keeps INT8 weights and dequantizes them inside the product: less memory, "
    "and faster where reading the weights takes the time (small batches)",
    ("tensorrt", "fp8"): "TensorRT keeps FP8 weights at a byte: less memory, where the GPU has FP8 (compute "
    "capability 8.9)",
    ("tensorrt", "int4"): "TensorRT keeps INT4 weights and dequantizes them inside the product: less memory, "
    "and faster where reading the weights takes the time (small batches)",
    (
        "tensorrt",
        "nf4",
    ): "TensorRT keeps NF4 codes at half a byte and looks every weight up in each run: less "
    "memory, not less time; INT4 is the faster format",
    (
        "onnxruntime",
        "int8",
    ): "ONNX Runtime dequantizes INT8 weights in each run: a smaller file, not less time",
    ("onnxruntime", "fp8"): "ONNX Runtime dequantizes FP8 weights in each run: a smaller file, not less time",
    ("onnxruntime", "int4"): "ONNX Runtime fuses INT4 weights into MatMulNBits",
    ("onnxruntime", "nf4"): "ONNX Runtime computes MatMulBnb4 from the codes",
}


def place_weights(
    graph: Graph, spec: ModelSpec, target: Target, placement: Placement, watcher: Watcher
) -> tuple[Placement, tuple[ChosenWeight, ...]]:
    """Returns what is left to Q/DQ, and the weights that are stored in fewer bits.

    Beside INT8 (a mixed build) the weights of convolutions and of big products stay with Q/DQ; those of small
    products, of embeddings and of what is not quantized otherwise are chosen here. A small product whose
    weight cannot be stored in fewer bits stays with Q/DQ too.

    Args:
        graph: The float model.
        spec: With the patterns of what keeps its precision.
        target: With a weight scheme.
        placement: Where Q/DQ pairs would go; empty without INT8.
        watcher: Is told of patterns that match nothing, and of weights with smaller blocks.
    """
    assert target.weights is not None
    patterns = (*spec.layers.skip, *spec.layers.keep_fp32)
    for pattern, nearest in find_unmatched_names(graph.model, patterns):
        near = f"; the nearest names are {', '.join(nearest)}" if nearest else ""
        watcher.warn(f"{pattern!r} matches no node or weight{near}")
    small = {node.name for node in placement.quantized if _is_small(graph.model, node)}
    taken = {
        node.weight[1].tensor
        for node in placement.quantized
        if node.weight is not None and node.name not in small
    }
    found = choose_weights(graph.model, target.weights, patterns, taken)
    if not found.chosen:
        watcher.warn("no weight can be stored in fewer bits; the report tells why")
    if smaller := describe_smaller_blocks(found.chosen, target.weights.block_size):
        watcher.warn(smaller)
    moved = {reader.node for weight in found.chosen for reader in weight.readers}
    quantized = tuple(node for node in placement.quantized if node.name not in small & moved)
    done = {node.name for node in quantized} | moved
    by_name = {node.name: node for node in (*placement.kept, *found.kept, *graph.unseen)}
    return Placement(
        quantized, tuple(node for node in by_name.values() if node.name not in done)
    ), found.chosen


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
    if target.weights is not None and target.weights.format == "fp8" and backend.name == "tensorrt-rtx":
        _refuse_without_fp8(target.compute_capabilities)


def convert_to_float(graph: Graph, target: Target, keep_fp32: tuple[str, ...]) -> MixedModel:
    """Returns the model in BF16 if the target says so, else as it is."""
    if target.high_precision == "bf16":
        return MixedModel(*to_bf16(graph.model, keep_fp32=keep_fp32))
    return MixedModel(graph.model)


def quantize_chosen_weights(
    mixed: MixedModel,
    graph: Graph,
    chosen: Sequence[ChosenWeight],
    target: Target,
    *,
    backend: str,
    batches: Batches | None = None,
) -> MixedModel:
    """Returns the model with the chosen weights in few bits.

    Args:
        mixed: What the other weights and the activations have become.
        graph: The float model.
        chosen: What `place_weights` returned.
        target: With a weight scheme.
        backend: Who runs the result.
        batches: The data; GPTQ needs it.
    """
    assert target.weights is not None
    known = {}
    if target.weights.method == "gptq":
        assert batches is not None
        dtypes = {value.dtype for value in mixed.model.graph.initializers.values()}
        halves = {ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16"}
        dtype = next((name for half, name in halves.items() if half in dtypes), "float32")
        known = quantize_by_gptq(graph.model, chosen, target.weights, batches, dtype)
    model = quantize_weights(
        mixed.model, graph.model, chosen, target.weights, runtime=_runtime(backend), known=known
    )
    return MixedModel(model, mixed.kept_fp32)


def report_weights(
    chosen: Sequence[ChosenWeight], target: Target, *, backend: str, half: bool
) -> WeightsReport:
    """Returns what the report says of the weights.

    Args:
        chosen: What `place_weights` returned.
        target: With a weight scheme.
        backend: Who runs the result.
        half: Whether it computes in FP16; in BF16 it does if the target says so.
    """
    scheme = target.weights
    assert scheme is not None
    is_half = half or target.high_precision == "bf16"
    dtype = ir.DataType.FLOAT16 if is_half else ir.DataType.FLOAT  # BF16 has the same size
    form = choose_form(scheme)
    size = sum(part.nbytes for weight in chosen for part in plan_parts(weight, scheme, dtype, form))
    count = sum(weight.num_elements for weight in chosen)
    blocks = [weight.block_size for weight in chosen]
    return WeightsReport(
        format=scheme.format,
        method=scheme.method,
        block_size=None if scheme.is_per_channel else max(blocks, default=scheme.block_size),
        num_weights=len(chosen),
        bytes_float=4 * count,
        bytes_quantized=size,
        bits_per_weight=round(8 * size / count, 3) if count else 0.0,
        gain=_GAINS[_runtime(backend), scheme.format],
        smallest_block=None if scheme.is_per_channel else min(blocks, default=scheme.block_size),
    )


def _runtime(backend: str) -> Runtime:
    return "onnxruntime" if backend == "onnxruntime" else "tensorrt"


def describe_smaller_blocks(chosen: Sequence[ChosenWeight], wanted: int) -> str:
    """Returns what to say of weights whose blocks are not of the wanted size; empty if there are none."""
    found = [weight for weight in chosen if weight.block_size not in (0, wanted)]
    if not found:
        return ""
    shown = ", ".join(f"{weight.tensor!r} ({weight.block_size})" for weight in found[:3])
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return (
        f"{len(found)} of {len(chosen)} weights have smaller blocks, since {wanted} does not divide their "
        f"inputs: {shown}{more}"
    )


def _is_small(model: ir.Model, node: QuantizedNode) -> bool:
    """Whether a product is so small that turning its activations into INT8 costs more than it saves."""
    if node.weight is None or node.op_type == "Conv":
        return False
    tensor = model.graph.initializers[node.weight[1].tensor].const_value
    assert tensor is not None
    return tensor.size < _BIG


def _refuse_without_fp8(compute_capabilities: Sequence[str]) -> None:
    without = [item for item in compute_capabilities if tuple(map(int, item.split("."))) < _FIRST_WITH_FP8]
    if without or not compute_capabilities:
        raise UsageError(
            f"--weights fp8 needs GPUs of compute capability 8.9 or newer, and the engine is for "
            f"{', '.join(without) or '8.0 and newer'}; give --compute-capability 8.9, or take --weights int8"
        )
