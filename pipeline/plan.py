"""What a model needs of a GPU in each precision, and which fits: before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from trtq.errors import UsageError
from trtq.models.signature import TensorSpec, show_shape
from trtq.models.spec import LayerSpec
from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.formats import FORMATS, FP16, WEIGHT_FORMATS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.granularity import PerBlock
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.liveness import Peak, count_bytes, find_peak_memory, fix_shapes
from trtq.pipeline.graph.load import Graph, load
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
_BUILT_BY = (
    "trtq build makes them with --fp16 and --weights int8, fp8 (for compute capability 8.9 and newer), int4 "
    "or nf4; fp32 and bf16 are for comparison"
)
_STATE = re.compile(r"past_key_values|past|present|new|^in(?=_)|^out(?=_)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_MOST_PARAMS = 10**18
_LONG = 20  # characters of what was given that a message repeats


@dataclass(frozen=True, slots=True)
class SchemePlan:
    """One precision.

    Attributes:
        name: "fp32", "bf16" (for comparison: nothing builds them), "fp16"; or "int8", "fp8", "int4", "nf4":
            weights so, the rest FP16.
        weights_bytes: All constants, with scales.
        engine_bytes: The file: weights, and the code of the kernels.
        activations_bytes: Alive at one time, with inputs and outputs; 0 if not known.
        state_bytes: Inputs and outputs that carry state from run to run, such as a KV cache; they are among
            the activations too if the shapes are known, and counted once.
        reserve_bytes: CUDA's own, and the workspace if one is given.
        bits_per_weight: The mean over all float constants.
        fits: Whether the total fits into the GPU's memory; None if that is not given.
    """

    name: str
    weights_bytes: int
    engine_bytes: int
    activations_bytes: int
    state_bytes: int
    reserve_bytes: int
    bits_per_weight: float
    fits: bool | None = None

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.engine_bytes + self.activations_bytes + self.reserve_bytes


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What fits.

    Attributes:
        subject: The model, or the number of parameters.
        num_params: Elements of float constants.
        schemes: From the most exact to the smallest.
        recommended: The first that fits; None if none does or no memory is given.
        reason: Why, for people.
        notes: What the numbers rest on.
        gpu_memory_bytes: As given.
    """

    subject: str
    num_params: int
    schemes: tuple[SchemePlan, ...]
    recommended: str | None
    reason: str
    notes: tuple[str, ...] = ()
    gpu_memory_bytes: int | None = None


def plan_params(num_params: int, *, gpu_memory_bytes: int | None = None, block_size: int = 64) -> MemoryPlan:
    """Returns the plan for a number of parameters alone: all of them weights that can be in few bits.

    Raises:
        UsageError: There is no parameter, or no memory.
    """
    if num_params < 1:
        raise UsageError(f"a model has at least one parameter, got {num_params}")
    schemes = []
    for name, form in FORMATS.items():
        is_blocked = isinstance(form, CodeFormat) and form.block_sizes
        width = form.bits + (FP16.bits / block_size if is_blocked else 0.0)
        size = math.ceil(num_params * width / 8)
        schemes.append(SchemePlan(name, size, size + _CODE_BYTES, 0, 0, _RESERVE_BYTES, width))
    notes = (
        "activations and state are not known without a model; give one, with --batch and --seq",
        f"int4 and nf4 have one FP16 scale for {block_size} weights; without scales they are 4 bits",
        _BUILT_BY,
    )
    return _decided(f"{num_params:,} parameters", num_params, schemes, notes, gpu_memory_bytes)


def plan_model(
    path: Path,
    *,
    sizes: Sizes | None = None,
    gpu_memory_bytes: int | None = None,
    workspace_bytes: int = 0,
    block_size: int = 64,
    skip: Sequence[str] = (),
) -> MemoryPlan:
    """Returns the plan for a model.

    Args:
        path: The float ONNX file.
        sizes: Of the open dims of its inputs; None: of a batch of 1.
        gpu_memory_bytes: What there is; None: nothing is judged.
        workspace_bytes: Scratch memory that is granted to the engine.
        block_size: Of int4 and nf4.
        skip: Patterns of what keeps its precision.

    Raises:
        ModelError, UsageError: The model cannot be used, or an open dim has no size.
    """
    skip = LayerSpec(skip=tuple(skip)).skip  # refuses what is no regular expression
    graph = load(path, min_opset=13)
    shapes = (sizes or Sizes()).shapes_of(graph.inputs)
    fixed = fix_shapes(graph.model, shapes)
    peaks = {width: find_peak_memory(fixed, width) for width in (4, 2)}
    states = {width: count_state_bytes(fixed, width) for width in (4, 2)}
    floats = _float_elements(graph.model)
    schemes = []
    for name, form in FORMATS.items():
        width = (FP16 if isinstance(form, CodeFormat) else form).bits // 8
        chosen: tuple[ChosenWeight, ...] = ()
        if name in WEIGHT_FORMATS:
            placement = choose_weights(graph.model, WeightScheme(name, block_size=block_size), skip)
            chosen = group_by_weight(graph.model, placement)
        size = count_weight_bytes(graph.model, width, chosen)
        scratch = sum(sorted(map(_count_scratch_bytes, chosen), reverse=True)[:2])
        schemes.append(
            SchemePlan(
                name=name,
                weights_bytes=size,
                engine_bytes=size + count_code_bytes(fixed, chosen),
                activations_bytes=peaks[width].nbytes + scratch,
                state_bytes=states[width],
                reserve_bytes=_RESERVE_BYTES + workspace_bytes,
                bits_per_weight=round(8 * size / floats, 3) if floats else 0.0,
            )
        )
    return _decided(path.name, floats, schemes, _notes(graph, shapes, peaks[2], states[2]), gpu_memory_bytes)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of open dims.

    Attributes:
        batch: Of the first axis.
        seq: Of the other open axes; None: there must be none.
        shapes: Whole shapes by input; they win.
    """

    batch: int = 1
    seq: int | None = None
    shapes: Mapping[str, tuple[int, ...]] | None = None

    def shapes_of(self, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every input.

        Raises:
            UsageError: A size is not positive, a shape does not fit, or an open dim has no size.
        """
        for name, size in (("--batch", self.batch), ("--seq", self.seq)):
            if size is not None and size < 1:
                raise UsageError(f"{name} must be at least 1, got {size}")
        given = self.shapes or {}
        names = [item.name for item in inputs]
        if unknown := [name for name in given if name not in names]:
            raise UsageError(
                f"shapes are given for {unknown[0]!r}, but the model's inputs are {', '.join(names)}"
            )
        return {item.name: self._shape_of(item, given.get(item.name)) for item in inputs}

    def _shape_of(self, item: TensorSpec, given: tuple[int, ...] | None) -> tuple[int, ...]:
        if given is not None:
            if not item.fits(given):
                raise UsageError(
                    f"shape {show_shape(given)} does not fit input {item.name!r}, "
                    f"which is {show_shape(item.shape)}"
                )
            return given
        found = [
            dim if isinstance(dim, int) else self.batch if axis == 0 else self.seq
            for axis, dim in enumerate(item.shape)
        ]
        if None in found:
            raise UsageError(
                f"input {item.name!r} is {show_shape(item.shape)}; give --seq for its open dims, or "
                f"--shapes {item.name}:..."
            )
        return tuple(size for size in found if size is not None)


def count_weight_bytes(model: ir.Model, float_bytes: int, chosen: Sequence[ChosenWeight] = ()) -> int:
    """Returns the size of all constants, as `trtq build` would store them.

    Args:
        model: The float graph.
        float_bytes: Of a float element.
        chosen: The weights that are in few bits, with scales in FP16.
    """
    quantized = {weight.tensor: count_stored_bytes(weight, FP16.dtype) for weight in chosen}
    return sum(
        quantized[key] if key in quantized else count_bytes(value, float_bytes) or 0
        for key, value in model.graph.initializers.items()
    )


def count_code_bytes(model: ir.Model, chosen: Sequence[ChosenWeight] = ()) -> int:
    """Returns what an engine's kernels take beside its weights: an estimate.

    Args:
        model: With static shapes.
        chosen: The weights that are in few bits, all in one format.
    """
    generated = [node.op_type for node in model.graph if node.op_type not in _NO_CODE]
    size = _CODE_BYTES + sum(_CODE_PER_NODE + _CODE_PER_OP.get(op_type, 0) for op_type in generated)
    if not chosen:
        return size
    form = chosen[0].encoding.format
    kinds = {(weight.shape, _axis(weight), weight.readers[0].op_type) for weight in chosen}
    count = len(kinds) if form.is_linear else sum(len(weight.readers) for weight in chosen)
    return size + form.kernel_bytes * count


def _axis(weight: ChosenWeight) -> int | None:
    granularity = weight.encoding.granularity
    return granularity.axis if isinstance(granularity, PerBlock) else weight.encoding.channel_axis


def count_state_bytes(model: ir.Model, float_bytes: int) -> int:
    """Returns the size of float inputs and outputs that belong together, as `past.0.key` and `present.0.key`.

    Args:
        model: With static shapes.
        float_bytes: Of a float element.
    """
    outputs = {_bare(str(value.name)): value for value in model.graph.outputs if value.dtype in FLOAT_TYPES}
    total = 0
    for value in model.graph.inputs:
        partner = outputs.get(_bare(str(value.name)))
        if value.dtype in FLOAT_TYPES and partner is not None and _STATE.search(str(value.name)):
            total += (count_bytes(value, float_bytes) or 0) + (count_bytes(partner, float_bytes) or 0)
    return total


def parse_count(text: str) -> int:
    """Returns a number of parameters: `10B`, `350M`, `1.1e9`.

    Raises:
        UsageError: The text is no number, or larger than that of any model.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no number of parameters; write 10B, 350M or 125000000")
    count = float(found[1]) * _UNITS[found[2].upper()]
    if count > _MOST_PARAMS:
        shown = text if len(text) <= _LONG else f"{text[:_LONG]}..."
        raise UsageError(f"{shown!r} is more parameters than any model has; write 10B, 350M or 125000000")
    return round(count)


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", ".", _STATE.sub("", name.lower())).strip(".")


def _float_elements(model: ir.Model) -> int:
    return sum(
        math.prod(value.shape.numpy())
        for value in model.graph.initializers.values()
        if value.dtype in FLOAT_TYPES and value.shape is not None
    )


def _count_scratch_bytes(weight: ChosenWeight) -> int:
    """Returns the memory in which TensorRT looks up a product's NF4 weight: FP16 and INT32."""
    is_table = all(reader.op_type == "Gather" for reader in weight.readers)
    return 0 if is_table or weight.encoding.format.is_linear else 6 * weight.num_elements


def _decided(
    subject: str,
    num_params: int,
    schemes: Sequence[SchemePlan],
    notes: Sequence[str],
    gpu_memory_bytes: int | None,
) -> MemoryPlan:
    if gpu_memory_bytes is None:
        reason = "no --gpu-memory is given, so nothing is judged"
        return MemoryPlan(subject, num_params, tuple(schemes), None, reason, tuple(notes))
    if gpu_memory_bytes < 1:
        raise UsageError(f"the GPU's memory must have at least 1 byte, got {gpu_memory_bytes}")
    judged = tuple(replace(item, fits=item.total_bytes <= gpu_memory_bytes) for item in schemes)
    fitting = [item.name for item in judged if item.fits and FORMATS[item.name].advice]
    if not fitting:
        smallest = min(judged, key=lambda item: item.total_bytes)
        reserve = smallest.reserve_bytes
        reason = (
            f"nothing fits: CUDA and scratch memory alone take {reserve / 1e9:.2f} GB, without any model"
            if reserve >= gpu_memory_bytes
            else f"nothing fits: even {smallest.name} needs {smallest.total_bytes / 1e9:.2f} GB"
        )
        return MemoryPlan(subject, num_params, judged, None, reason, tuple(notes), gpu_memory_bytes)
    return MemoryPlan(
        subject, num_params, judged, fitting[0], FORMATS[fitting[0]].advice, tuple(notes), gpu_memory_bytes
    )


def _notes(graph: Graph, shapes: Mapping[str, tuple[int, ...]], peak: Peak, state: int) -> tuple[str, ...]:
    shown = ", ".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in shapes.items())
    notes = [
        f"for {shown}",
        "activations are those of the graph node by node; an engine fuses nodes. Kernels take 8 to 40 MB of "
        f"scratch memory beside, which is a part of the {_RESERVE_BYTES / 1e6:.0f} MB for CUDA and scratch "
        "memory",
        _BUILT_BY,
    ]
    if peak.node:
        notes.append(f"the peak is at {peak.node!r}")
    if peak.unknown:
        notes.append(f"{peak.unknown} tensors have no known size and are not counted")
    if state:
        notes.append("inputs and outputs carry state from run to run; both are counted")
    return (*notes, *(f"{node.name} is not seen: {node.reason}" for node in graph.unseen[:3]))
