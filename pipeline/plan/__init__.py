"""What a model needs of a GPU in each precision, and which fits: before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trtq.errors import UsageError
from trtq.models.spec import LayerSpec
from trtq.models.tensors import FLOAT_TYPES
from trtq.numbers import format_bytes, format_shape, shorten
from trtq.pipeline.formats import BLOCK_FORMATS, FORMATS, FP8, FP16, FP32, INT8, WEIGHT_FORMATS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.double import GROUP
from trtq.pipeline.formats.format import Format
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.liveness import Peak, count_bytes, find_peak_memory, fix_shapes
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.operands import DEQUANTIZE
from trtq.pipeline.graph.state import pair_states
from trtq.pipeline.plan.mixture import Mixture, list_mixtures
from trtq.pipeline.plan.positions import check_positions
from trtq.pipeline.plan.scheme import SchemePlan
from trtq.pipeline.plan.sizes import DynamicSizes as DynamicSizes
from trtq.pipeline.rewrite.weights.choose import ChosenWeight, choose_weights, group_by_weight
from trtq.pipeline.rewrite.weights.layout import count_stored_bytes

_CODE_BYTES, _CODE_PER_NODE = 200_000, 14_000
_CODE_PER_OP = {
    "LSTM": 2_600_000, "GRU": 2_600_000, "MaxPool": 130_000, "AveragePool": 130_000,
    "GlobalAveragePool": 130_000, "GlobalMaxPool": 130_000, "Softmax": 50_000, "LayerNormalization": 50_000,
}  # fmt: skip
"""What an engine's kernels take, by the nodes that are generated code, more for some, by the distinct
quantized weights, and for NF4 by all readers of them. Fitted to 72 TensorRT-RTX 1.7 engines of 18 models,
from which it is 6 % off in the mean, and 10 to 27 % from a fifth of them. GRU is taken to be like LSTM."""
_NO_CODE = frozenset({
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity",
    "Relu", "Add",
})  # fmt: skip
_RESERVE_BYTES = 400_000_000
"""What the CUDA context and the libraries take before the first engine: measured 0.3 to 0.5 GB."""
_NEWER = " (for compute capability {}.{} and newer)"
_NAMES = [
    name + (_NEWER.format(*form.compute_capability) if form.compute_capability > (8, 0) else "")
    for name, form in WEIGHT_FORMATS.items()
]
_BUILT_BY = (
    f"build them with --fp16 and --weights {', '.join(_NAMES[:-1])} or {_NAMES[-1]}; fp32 and bf16 are "
    "for comparison"
)
_KV_CACHES = {item.name: item for item in (FP16, INT8, FP8)}
KV_CACHES = tuple(_KV_CACHES)
"""What a cache can be counted in."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MOST_PARAMS = 10**18


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits.

    Attributes:
        subject: The model, or the number of parameters.
        num_params: Elements of float constants, and of codes that are dequantized.
        schemes: From the most exact to the smallest.
        recommended: The first that fits; None if none does or no memory is given.
        reason: Why, for people.
        notes: What the numbers rest on.
        gpu_memory_bytes: As given.
        mixture: The most exact mixture of formats that fits; None where FP16 does, or no mixture.
    """

    subject: str
    num_params: int
    schemes: tuple[SchemePlan, ...]
    recommended: str | None = None
    reason: str = "no --gpu-memory is given, so nothing is judged"
    notes: tuple[str, ...] = ()
    gpu_memory_bytes: int | None = None
    mixture: Mixture | None = None


def plan_params(
    num_params: int,
    *,
    gpu_memory_bytes: int | None = None,
    block_size: int = 64,
    double_quant: bool = False,
) -> MemoryPlan:
    """Returns the plan for a number of parameters alone, all of them weights that can be in few bits.

    Args:
        num_params: How many there are.
        gpu_memory_bytes: What there is; None: nothing is judged.
        block_size: Weights per scale of int4 and nf4: 16, 32, 64, 128 or 256.
        double_quant: Whether nf4 holds its scales in 8 bits.

    Raises:
        UsageError: There is no parameter, no memory, or no such block size.
    """
    WeightScheme("int4", "rtn", block_size)  # refuses other sizes of blocks
    if num_params < 1:
        raise UsageError(f"a model has at least one parameter, got {num_params}")
    schemes = []
    for name, form in FORMATS.items():
        scale = INT8.bits + FP32.bits / GROUP if double_quant and _has_coded_scales(form) else FP16.bits
        width = form.bits + (scale / block_size if name in BLOCK_FORMATS else 0.0)
        size = math.ceil(num_params * width / 8)
        schemes.append(SchemePlan(name, size, size + _CODE_BYTES, 0, 0, _RESERVE_BYTES, width))
    notes = (
        "activations and state are not known without a model; give one, with --batch and --seq",
        f"{' and '.join(BLOCK_FORMATS)} have one FP16 scale for {block_size} weights; without scales they "
        "are 4 bits",
        *_note_double(double_quant),
        _BUILT_BY,
    )
    plan = MemoryPlan(f"{num_params:,} parameters", num_params, tuple(schemes), notes=notes)
    return _judge(plan, gpu_memory_bytes)


def plan_model(
    path: Path | str,
    *,
    sizes: DynamicSizes | None = None,
    gpu_memory_bytes: int | None = None,
    workspace_bytes: int = 0,
    block_size: int = 64,
    double_quant: bool = False,
    skip: Sequence[str] = (),
    quantize_sensitive: bool = False,
    kv_cache: str = FP16.name,
) -> MemoryPlan:
    """Returns the plan for a model.

    Args:
        path: The float ONNX file.
        sizes: Of the open dims of its inputs; None: of a batch of 1.
        gpu_memory_bytes: What there is; None: nothing is judged.
        workspace_bytes: Scratch memory that is granted to the engine.
        block_size: Of int4 and nf4.
        double_quant: Whether nf4 holds its scales in 8 bits.
        skip: Patterns of what keeps its precision.
        quantize_sensitive: Whether weights with the usual sensitive names are stored in fewer bits too.
        kv_cache: The format of inputs and outputs that carry state: "fp16" is that of all activations, "int8"
            and "fp8" take half of it.

    Raises:
        ModelError, UsageError: The model cannot be used, an open dim has no size, or there is no such cache.
    """
    if kv_cache not in _KV_CACHES:
        raise UsageError(f"kv_cache is {', '.join(KV_CACHES[:-1])} or {KV_CACHES[-1]}, not {kv_cache!r}")
    skip = LayerSpec(skip=tuple(skip)).skip  # refuses what is no regular expression
    graph = load(Path(path), min_opset=13)
    shapes = (sizes or DynamicSizes()).shapes_of(graph.inputs)
    fixed = fix_shapes(graph.model, shapes)
    unchecked = tuple(check_positions(fixed, graph.inputs, shapes))
    held = None if kv_cache == FP16.name else _KV_CACHES[kv_cache].bits // 8
    states = {width: count_state_bytes(fixed, held or width) for width in (4, 2)}
    if held is not None and not states[2]:
        names = ", ".join(item.name for item in graph.inputs)
        raise UsageError(
            f"--kv-cache is for a model with a cache, and no output continues one of the inputs {names}"
        )
    peaks = {width: find_peak_memory(fixed, width, states[width]) for width in (4, 2)}
    count = _count_weights(graph.model)

    def measure(name: str, scheme: WeightScheme | None, skip: Sequence[str], width: int = 2) -> SchemePlan:
        chosen = () if scheme is None else _choose(graph.model, scheme, skip)
        size = count_weight_bytes(graph.model, width, chosen)
        return SchemePlan(
            name=name,
            weights_bytes=size,
            engine_bytes=size + count_code_bytes(fixed, chosen),
            activations_bytes=peaks[width].nbytes + _count_scratch_bytes(chosen),
            state_bytes=sum(states[width].values()),
            reserve_bytes=_RESERVE_BYTES + workspace_bytes,
            bits_per_weight=round(8 * size / count, 3) if count else 0.0,
        )

    schemes = []
    for name, form in FORMATS.items():
        width = (FP16 if isinstance(form, CodeFormat) else form).bits // 8
        scheme = _scheme(name, block_size, double_quant, quantize_sensitive)
        schemes.append(measure(name, scheme, skip, width))
    notes = (
        *_notes(graph, shapes, peaks[2], kv_cache if states[2] else None),
        *unchecked,
        *_note_double(double_quant),
    )
    plan = _judge(MemoryPlan(graph.path.name, count, tuple(schemes), notes=notes), gpu_memory_bytes)
    if gpu_memory_bytes is None or plan.recommended == FP16.name:
        return plan
    mixtures = list_mixtures(graph.model, block_size, skip)
    found = ((item, measure("mixture", item.scheme, item.skip)) for item in mixtures)
    fitting = next((pair for pair in found if pair[1].total_bytes <= gpu_memory_bytes), None)
    if fitting is None or fitting[0].is_uniform:
        return plan
    memory = replace(fitting[1], fits=True)
    return replace(plan, mixture=replace(fitting[0], memory=memory, model=str(graph.path)))


def _scheme(name: str, block_size: int, double_quant: bool, quantize_sensitive: bool) -> WeightScheme | None:
    if name not in WEIGHT_FORMATS:
        return None
    return WeightScheme(
        name,
        block_size=block_size,
        double_quantization=double_quant and _has_coded_scales(WEIGHT_FORMATS[name]),
        keep_sensitive=not quantize_sensitive,
    )


def _has_coded_scales(form: Format) -> bool:
    """Whether double quantization is for the format."""
    return isinstance(form, CodeFormat) and not form.is_linear


def _note_double(double_quant: bool) -> tuple[str, ...]:
    if not double_quant:
        return ()
    return (f"with --double-quant, the scales of nf4 are in 8 bits, with one FP32 scale for {GROUP} of them",)


def _choose(model: ir.Model, scheme: WeightScheme, skip: Sequence[str]) -> tuple[ChosenWeight, ...]:
    return group_by_weight(model, choose_weights(model, scheme, skip))


def count_weight_bytes(model: ir.Model, float_bytes: int, chosen: Sequence[ChosenWeight] = ()) -> int:
    """Returns the size of all constants, with those that are chosen in few bits and their scales in FP16."""
    initializers = model.graph.initializers
    quantized = {initializers[weight.tensor]: count_stored_bytes(weight, FP16.dtype) for weight in chosen}
    return sum(
        quantized[value] if value in quantized else count_bytes(value, float_bytes) or 0
        for value in _list_constants(model)
    )


def count_code_bytes(model: ir.Model, chosen: Sequence[ChosenWeight] = ()) -> int:
    """Returns an estimate of what an engine's kernels take."""
    generated = [node.op_type for node in model.graph if node.op_type not in _NO_CODE]
    size = _CODE_BYTES + sum(_CODE_PER_NODE + _CODE_PER_OP.get(op_type, 0) for op_type in generated)
    for form in {weight.encoding.format for weight in chosen}:
        own = [weight for weight in chosen if weight.encoding.format is form]
        kinds = {(weight.shape, weight.encoding, weight.readers[0].op_type) for weight in own}
        count = len(kinds) if form.is_linear else sum(len(weight.readers) for weight in own)
        size += form.kernel_bytes * count
    return size


def count_state_bytes(model: ir.Model, float_bytes: int) -> dict[ir.Value, int]:
    """Returns the sizes of float inputs and outputs that go together, as `past.0.key` and `present.0.key`.

    An output of unknown size is counted as its input, into which most attention operators write.
    """
    inputs, outputs = (
        {str(value.name): value for value in values if value.dtype in FLOAT_TYPES}
        for values in (model.graph.inputs, model.graph.outputs)
    )
    found: dict[ir.Value, int] = {}
    for past, present in pair_states(inputs, outputs).items():
        value, partner = inputs[past], outputs[present]
        found[value] = count_bytes(value, float_bytes) or 0
        found[partner] = count_bytes(partner, float_bytes) or found[value]
    return found


def parse_count(text: str) -> int:
    """Returns a number of parameters: `10B`, `350M`, `1.1e9`.

    Raises:
        UsageError: The text is no number, or larger than that of any model.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is not a number of parameters; write 10B, 350M or 125000000")
    count = float(found[1]) * _UNITS[found[2].upper()]
    if count > _MOST_PARAMS:
        raise UsageError(
            f"{shorten(text)!r} is more parameters than any model has; write 10B, 350M or 125000000"
        )
    return round(count)


def _list_constants(model: ir.Model) -> list[ir.Value]:
    """Returns the constants of a model, also those in bodies."""
    graphs = (model.graph, *model.graph.subgraphs())
    return [value for graph in graphs for value in graph.initializers.values()]


def _count_weights(model: ir.Model) -> int:
    codes = {node.inputs[0] for node in model.graph.all_nodes() if node.op_type == DEQUANTIZE}
    return sum(
        math.prod(value.shape.numpy())
        for value in _list_constants(model)
        if value.shape is not None and value.dtype is not None
        if value.dtype.is_floating_point() or value in codes
    )


def _count_scratch_bytes(chosen: Sequence[ChosenWeight]) -> int:
    """Returns the memory in which TensorRT looks up NF4 weights: FP16 and INT32 of two weights."""
    products = (weight for weight in chosen if any(item.op_type != "Gather" for item in weight.readers))
    sizes = [weight.num_elements for weight in products if not weight.encoding.format.is_linear]
    return 6 * sum(sorted(sizes, reverse=True)[:2])


def _judge(plan: MemoryPlan, memory: int | None) -> MemoryPlan:
    """Returns the plan with what fits, and what is recommended of it."""
    if memory is None:
        return plan
    if memory < 1:
        raise UsageError(f"the GPU's memory must have at least 1 byte, got {memory}")
    schemes = tuple(replace(item, fits=item.total_bytes <= memory) for item in plan.schemes)
    smallest = min(schemes, key=lambda item: item.total_bytes)
    advised = next((item.name for item in schemes if item.fits and FORMATS[item.name].advice), None)
    if advised is not None:
        reason = FORMATS[advised].advice
    elif smallest.reserve_bytes >= memory:
        reserve = format_bytes(smallest.reserve_bytes)
        reason = f"nothing fits: CUDA and scratch memory alone take {reserve}, without any model"
    else:
        reason = f"nothing fits: even {smallest.name} needs {format_bytes(smallest.total_bytes)}"
    return replace(plan, schemes=schemes, recommended=advised, reason=reason, gpu_memory_bytes=memory)


def _notes(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]], peak: Peak, kv_cache: str | None
) -> tuple[str, ...]:
    shown = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
    notes = [
        f"for {shown}",
        "activations are counted node by node; an engine fuses nodes. Kernels take 8 to 40 MB of "
        f"scratch memory, included in the {format_bytes(_RESERVE_BYTES)} for CUDA and scratch memory",
        _BUILT_BY,
    ]
    if peak.node:
        notes.append(f"the peak is at {peak.node!r}")
    if peak.unknown:
        notes.append(f"{peak.unknown} tensors have no known size and are not counted")
    if kv_cache is not None:
        notes.append("inputs and outputs carry state from run to run; both are counted")
    if kv_cache not in (None, FP16.name):
        notes.append(
            f"the state is counted in {kv_cache.upper()}, with one scale per tensor, as trtq build "
            f"--kv-cache {kv_cache} holds a cache that grows by a Concat"
        )
    return (*notes, *(f"{node.name} is not seen: {node.reason}" for node in graph.unseen[:3]))
