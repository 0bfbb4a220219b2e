"""Which of the quantized layers really run in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trtq.kept import Fallback
from trtq.pipeline.engine.backend import BuiltEngine, Kernel
from trtq.pipeline.graph.quantized import QuantizedLayer

_GLUE = ("kgen", "shape_call")
"""Kinds of generated kernels that only convert or combine; a layer's arithmetic is elsewhere."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many quantized layers there are, how many run in INT8, and the others."""

    layers_quantized: int
    layers_int8: int
    fallbacks: tuple[Fallback, ...]


def measure_coverage(
    layers: Sequence[QuantizedLayer], built: BuiltEngine, targets: Sequence[str] = ()
) -> Coverage:
    """Returns what became of the layers whose operands are behind Q/DQ, in an engine for these targets."""
    fallbacks = []
    for layer in layers:
        own = [kernel for kernel in built.kernels if layer.name in kernel.nodes]
        if not any(kernel.is_int8 for kernel in own):
            if own:
                runs_as, reason = _runs_as(own), _guess_reason(layer, built, targets)
            elif built.kernels:
                runs_as, reason = (
                    "none",
                    "no kernel bears its name: the builder removed it, or fused it under another",
                )
            else:
                runs_as, reason = "unknown", "the builder does not say what it runs"
            fallbacks.append(Fallback(layer.name, layer.op_type, runs_as, reason))
    return Coverage(len(layers), len(layers) - len(fallbacks), tuple(fallbacks))


def list_precisions(nodes: Sequence[str], built: BuiltEngine) -> dict[str, str]:
    """Returns what each of the named nodes runs as, such as "Int8" or "Half"; unknown ones are left out."""
    found = {}
    for name in nodes:
        own = [kernel for kernel in built.kernels if name in kernel.nodes]
        if own:
            found[name] = "Int8" if any(kernel.is_int8 for kernel in own) else _runs_as(own)
    return found


def _runs_as(own: Sequence[Kernel]) -> str:
    """Returns the dtypes of the kernel that does the arithmetic."""
    kernel = next((kernel for kernel in own if kernel.kind not in _GLUE), own[0])
    dequantizes = not kernel.is_int8 and set(kernel.operands) == {"Int8"}
    dtypes = (*kernel.inputs, *kernel.constants) if dequantizes else kernel.operands
    return "/".join(dict.fromkeys(dtypes)) or "unknown"


def _guess_reason(layer: QuantizedLayer, built: BuiltEngine, targets: Sequence[str]) -> str:
    """Returns the likely reason, by what was measured for the patterns that silently run in float."""
    if layer.op_type == "ConvTranspose":
        return "TensorRT has no INT8 kernel for ConvTranspose; leave it out of --op-types"
    if layer.scale_shape not in ((), None):
        return f"its activation scale has shape {layer.scale_shape}; INT8 convolutions want a 0-d scale"
    if layer.weight_axis is not None and layer.weight_axis != layer.output_axis:
        wanted = "one scale for all of it" if layer.output_axis is None else f"axis {layer.output_axis}"
        return f"its weight is quantized along axis {layer.weight_axis}, INT8 wants {wanted}"
    if "7.5" in targets:
        return "compute capability 7.5 (Turing) runs Q/DQ layers in float"
    return built.usual_reason
