"""Quantization-aware training: fake-quantize where trtq puts Q/DQ, fine-tune, export the Q/DQ model.

    amax = trtq.pipeline.calibrate.qat.amax_by_node("model.onnx", ranges)     # what calibration found
    network = trtq.models.qat.prepare(module, amax)                  # BatchNorm folded, fake-quantize added
    ...                                                               # train it as any module
    trtq.models.qat.export(trtq.models.qat.freeze(network), inputs, Path("model.int8.onnx"), ...)

Activations have one scale, weights one for each output channel, all symmetric int8; gradients pass straight
through the rounding and stop where values are cut off (Y. Bengio et al., arXiv 1308.3432; PyTorch's own
fake-quantize functions). With `learn`, scales of activations are trained too (LSQ: S. Esser et al., arXiv
1902.08153, sections 2.1 and 2.2).
"""

from __future__ import annotations

import copy
import math
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from trtq import lazy
from trtq.errors import ModelError
from trtq.models import export as exporting
from trtq.models.fake_quantize import QMAX, QMIN, fake_quantize_frozen

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.05
"""Largest difference of an exported Q/DQ model, as a part of the output's range: a tie may round up."""
_ADDITIONS = (operator.add, operator.iadd, "add", "add_")


def prepare(
    module: torch.nn.Module, amax: Mapping[str, float], *, skip: Sequence[str] = (), learn: bool = False
) -> torch.nn.Module:
    """Returns a copy of the module with fake-quantize at the nodes that are named.

    The module is traced by `torch.fx` as it infers, and its BatchNorms are folded into the convolutions
    before them, as TensorRT will fuse them. A tensor with several quantized readers has one quantizer.

    Args:
        module: Convolutions and Linear layers among others; it is not changed.
        amax: The range of the quantized input of each node, by the node's name in the exported ONNX model,
            such as `block1.first.conv/Conv`, `head/Gemm` or, for the shortcut of a residual, `block1/Add`.
        skip: Regular expressions searched in these names; those nodes stay float.
        learn: Whether the scales of activations are parameters.

    Raises:
        ModelError: The module cannot be traced, or a name is not a layer or addition of it.
    """
    graph_module = _trace(module)
    _fold_batch_norm(graph_module)
    wanted = {name: value for name, value in amax.items() if not any(re.search(p, name) for p in skip)}
    readers = _readers(graph_module, wanted)
    if wrong := next((name for name, value in wanted.items() if not 0 < value < math.inf), None):
        raise ModelError(f"the range of {wrong!r} is {wanted[wrong]}; it must be positive and finite")
    _quantize_weights(graph_module, [node.target for node, _, _ in readers if node.op == "call_module"])
    quantized: dict[Any, Any] = {}
    for node, place, name in readers:
        source = node.args[place]
        if source not in quantized:
            label = f"{source.name}_quantizer"
            graph_module.add_submodule(label, _activation_quantizer(wanted[name], learn))
            with graph_module.graph.inserting_after(source):
                quantized[source] = graph_module.graph.call_module(label, (source,))
        node.update_arg(place, quantized[source])
    graph_module.recompile()
    return cast("torch.nn.Module", graph_module)


def freeze(network: torch.nn.Module) -> torch.nn.Module:
    """Returns the network with the scales of its weights fixed as they are; its activations' are anyhow.

    Args:
        network: Of `prepare`, trained or not; it is changed in place.
    """
    for child in list(network.modules()):
        quantizer = getattr(getattr(child, "parametrizations", None), "weight", None)
        if quantizer is not None:
            quantizer[0].freeze_scale(quantizer.original)
        elif hasattr(child, "freeze_scale") and hasattr(child, "zero_point"):
            child.freeze_scale()
    return network.eval()


export = partial(exporting.export, opset=19, tolerance=TOLERANCE)
"""Exports a network of `freeze` as a Q/DQ file for `trtq build`: see `models.export.export`."""


def _trace(module: torch.nn.Module) -> Any:
    fx = lazy.require("torch.fx", "export", "quantization-aware training")
    try:
        return fx.symbolic_trace(copy.deepcopy(module).eval())
    except (fx.proxy.TraceError, TypeError, NameError, RuntimeError) as error:
        raise ModelError(
            f"torch.fx cannot trace {type(module).__name__}: {str(error).splitlines()[0]}; prepare the part "
            f"of it that has no control flow over values"
        ) from error


def _fold_batch_norm(graph_module: Any) -> None:
    """Multiplies each BatchNorm into the convolution before it, which nothing else reads or calls."""
    import torch

    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        norm = modules.get(node.target) if node.op == "call_module" else None
        if not isinstance(norm, torch.nn.modules.batchnorm._BatchNorm) or norm.running_var is None:
            continue
        source = node.args[0]
        conv = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(conv, torch.nn.modules.conv._ConvNd) or len(source.users) != 1 or conv.transposed:
            continue
        if _count_uses(graph_module, source.target) > 1:  # a folded one would be wrong for the others
            continue
        folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv, norm)
        graph_module.set_submodule(source.target, folded)
        modules[source.target] = folded
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()


def _count_uses(graph_module: Any, target: str) -> int:
    """Returns how many nodes call a module or read a weight of it."""
    targets = [
        str(node.target) for node in graph_module.graph.nodes if node.op in ("call_module", "get_attr")
    ]
    return sum(name == target or name.startswith(f"{target}.") for name in targets)


def _readers(graph_module: Any, amax: Mapping[str, float]) -> list[tuple[Any, int, str]]:
    """Returns the nodes that read quantized tensors, with the place of the argument and their names."""
    layers = {_split_number(name): name for name in amax if not _is_addition(name)}
    additions = {name for name in amax if _is_addition(name)}
    found: list[tuple[Any, int, str]] = []
    counts = Counter[str]()
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            if name := layers.get((node.target, counts[node.target])):
                found.append((node, 0, name))
            counts[node.target] += 1
        elif node.target in _ADDITIONS or getattr(node.target, "__name__", "") == "add":
            base = "/".join(filter(None, (_scope(node), "Add")))
            name = f"{base}_{counts[base]}" if counts[base] else base
            counts[base] += 1
            if name in additions:
                is_conv = node.args[0].op == "call_module" and any(
                    node.args[0] is item for item, _, _ in found
                )
                found.append((node, 1 if is_conv else 0, name))
    if missing := sorted(set(amax) - {name for _, _, name in found}):
        raise ModelError(
            f"{missing[0]!r} is not a layer or addition of this module; ranges are named for the nodes of "
            f"the ONNX model that trtq exports, such as 'block1.conv/Conv'"
        )
    return found


def _split_number(name: str) -> tuple[str, int]:
    """Returns the module of a layer and which of its calls it is: ("stem", 1) of `stem/Conv_1`."""
    module, _, call = name.rpartition("/")
    number = call.rpartition("_")[2]
    return module, int(number) if number.isdecimal() else 0


def _is_addition(name: str) -> bool:
    return re.fullmatch(r"Add(_\d+)?", name.rpartition("/")[2]) is not None


def _scope(node: Any) -> str:
    """Returns the submodule in whose forward a node stands."""
    stack = node.meta.get("nn_module_stack") or {}
    last = next(reversed(stack.values()), None)
    return str(last[0] if isinstance(last, tuple) else next(reversed(stack), ""))


def _quantize_weights(graph_module: Any, targets: Sequence[str]) -> None:
    import torch

    for target in dict.fromkeys(targets):  # a module that is called twice has one weight
        layer = graph_module.get_submodule(target)
        if not isinstance(layer, torch.nn.modules.conv._ConvNd | torch.nn.Linear):
            kind = type(layer).__name__
            raise ModelError(f"{target!r} is a {kind}, whose weights trtq does not quantize")
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", _weight_quantizer())


def _activation_quantizer(amax: float, learn: bool) -> torch.nn.Module:
    """Returns a module that fake-quantizes a tensor with one scale."""
    import torch

    class ActivationQuantizer(torch.nn.Module):  # type: ignore[misc]  # the untyped base is PyTorch's
        def __init__(self) -> None:
            super().__init__()
            self.frozen: float | None = None
            scale = torch.tensor(amax / QMAX)
            if learn:
                self.scale = torch.nn.Parameter(scale)
            else:
                self.register_buffer("scale", scale)
            self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            scale = self.scale
            if learn and self.training:
                # The size of the gradient as LSQ scales it, so that scales learn no faster than weights.
                factor = 1 / math.sqrt(values[0].numel() * QMAX)
                return torch._fake_quantize_learnable_per_tensor_affine(
                    values, scale.abs().reshape(1), self.zero_point.float().reshape(1), QMIN, QMAX, factor
                )
            if self.frozen is not None:
                return fake_quantize_frozen()(values, self.frozen)
            return torch.fake_quantize_per_tensor_affine(values, scale.abs(), self.zero_point, QMIN, QMAX)

        def freeze_scale(self) -> None:
            """Makes the scale a constant."""
            self.frozen = float(self.scale.detach().abs())

    return ActivationQuantizer()


def _weight_quantizer() -> torch.nn.Module:
    """Returns a module that fake-quantizes a weight; scales of output channels follow it until frozen."""
    import torch

    class WeightQuantizer(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", None)

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            scale = self._scale_of(weight) if self.scale is None else self.scale
            zeros = torch.zeros(scale.shape, dtype=torch.int32, device=scale.device)
            return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, QMIN, QMAX)

        def _scale_of(self, weight: torch.Tensor) -> torch.Tensor:
            largest = weight.detach().abs().amax(dim=tuple(range(1, weight.ndim)))
            return torch.where(largest > 0, largest / QMAX, torch.ones_like(largest))

        def freeze_scale(self, weight: torch.Tensor) -> None:
            """Makes the scale a constant: that of this weight."""
            self.scale = self._scale_of(weight)

    return WeightQuantizer()
