"""Which of the quantized layers really run in the formats that they are asked in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtq.kept import Fallback
from trtq.pipeline.engine.backend import BuiltEngine
from trtq.pipeline.engine.kernels import CODES, Kernel
from trtq.pipeline.graph.quantized import QuantizedLayer

_GLUE = ("kgen", "shape_call")
"""Kinds of generated kernels that only convert or combine; a layer's arithmetic is elsewhere."""
_WORDS = {"int8": "Int8", "fp8": "FP8", "int4": "Int4", "nvfp4": "FP4E2M1"}
"""The builder's word for the type of a format's codes."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many quantized layers there are, how many run as asked by what they are asked, and the others."""

    layers_quantized: int
    layers_realized: Mapping[str, int]
    fallbacks: tuple[Fallback, ...]

    @property
    def num_realized(self) -> int:
        """How many layers run as asked."""
        return sum(self.layers_realized.values())


def measure_coverage(
    layers: Sequence[QuantizedLayer], built: BuiltEngine, targets: Sequence[str] = ()
) -> Coverage:
    """Returns what became of the layers with operands behind Q/DQ, in an engine for these targets."""
    realized, fallbacks = Counter[str](), []
    kernels = _group_by_node(built.kernels)
    for layer in layers:
        own = kernels.get(layer.name, [])
        if any(_is_realized(layer, kernel) for kernel in own):
            realized[layer.asked] += 1
            continue
        if own:
            runs_as, reason = _runs_as(own), _guess_reason(layer, built, targets)
        elif built.kernels:
            runs_as, reason = (
                "none",
                "no kernel has its name: the builder removed it, or fused it into another layer",
            )
        else:
            runs_as, reason = "unknown", "the builder does not say what it runs"
        fallbacks.append(Fallback(layer.name, layer.op_type, runs_as, reason, layer.asked))
    return Coverage(len(layers), dict(realized.most_common()), tuple(fallbacks))


def _group_by_node(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
    """Returns the kernels that compute each node, by its name, in their order."""
    found: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        for name in dict.fromkeys(kernel.nodes):
            found.setdefault(name, []).append(kernel)
    return found


def _is_realized(layer: QuantizedLayer, kernel: Kernel) -> bool:
    """Whether a kernel multiplies the layer's codes; beside a float activation, whether it reads them."""
    if layer.activation:
        return kernel.multiplies_in == layer.activation
    return _WORDS.get(layer.weight) in kernel.reads


def list_precisions(nodes: Sequence[str], built: BuiltEngine) -> dict[str, str]:
    """Returns what each of the named nodes runs as, such as "Int8" or "Half"; unknown ones are left out."""
    found, kernels = {}, _group_by_node(built.kernels)
    for name in nodes:
        if own := kernels.get(name):
            found[name] = next((kernel.inputs[0] for kernel in own if kernel.multiplies_in), _runs_as(own))
    return found


def _runs_as(own: Sequence[Kernel]) -> str:
    """Returns the dtypes of the kernel that does the arithmetic."""
    kernel = next((kernel for kernel in own if kernel.kind not in _GLUE), own[0])
    if kernel.multiplies_in:
        return kernel.inputs[0]
    dequantizes = set(kernel.operands) <= CODES.keys()
    dtypes = (*kernel.inputs, *kernel.constants) if dequantizes else kernel.operands
    return "/".join(dict.fromkeys(dtypes)) or "unknown"


def _guess_reason(layer: QuantizedLayer, built: BuiltEngine, targets: Sequence[str]) -> str:
    """Returns the likely reason, by what was measured for the patterns that silently run in float."""
    form = (layer.activation or layer.weight).upper()
    if not layer.activation:
        return f"its {form} weight is dequantized separately in each run: less memory, but not faster"
    if layer.op_type == "ConvTranspose":
        return f"TensorRT has no {form} kernel for ConvTranspose; leave it out of --op-types"
    if layer.activation == "nvfp4" or layer.weight == "nvfp4":
        if layer.activation != layer.weight:
            return f"no kernel multiplies {layer.activation.upper()} with {layer.weight.upper()}"
        return "NVFP4 runs in MatMul and Gemm alone, with blocks of 16 along the summed axis of both operands"
    if layer.scale_shape not in ((), None):
        return f"its activation scale has shape {layer.scale_shape}; {form} kernels need a 0-d scale"
    if layer.weight_axis is not None and layer.weight_axis != layer.output_axis:
        wanted = "one scale for all of it" if layer.output_axis is None else f"axis {layer.output_axis}"
        return f"its weight is quantized along axis {layer.weight_axis}, {form} wants {wanted}"
    if "7.5" in targets:
        return "compute capability 7.5 (Turing) runs Q/DQ layers in float"
    return built.usual_reason
