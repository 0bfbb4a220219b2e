"""What a placement is: which nodes take codes, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from trtq.kept import KeptNode
from trtq.pipeline.formats import INT8, INT8_OF_7_BITS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import PerBlock, PerTensor, PerToken

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CLOSED = "closed"
"""The rule of a node that takes codes only because the layer before it writes them: see `closed`."""


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A constant weight, and how it is held."""

    tensor: str
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class QuantizedNode:
    """A node that takes codes, and how.

    `activations` are place and name of the inputs behind Q/DQ, none where the weight alone is quantized;
    `weight` is place and name of its constant weight.
    """

    name: str
    op_type: str
    scheme: LayerScheme
    activations: tuple[tuple[int, str], ...] = ()
    weight: tuple[int, str] | None = None

    @property
    def encodings(self) -> tuple[tuple[str, Encoding], ...]:
        """The activations, with how each is held."""
        inputs = dict(self.scheme.inputs)
        return tuple((tensor, inputs[place]) for place, tensor in self.activations)

    @property
    def held_weight(self) -> QuantizedWeight | None:
        """The weight and its encoding."""
        if self.weight is None or self.scheme.weight is None:
            return None
        return QuantizedWeight(self.weight[1], self.scheme.weight)

    def to_key(self) -> tuple[object, ...]:
        """Returns all that a quantized model depends on, for a digest: the encodings too."""
        inputs = tuple((place, _describe(encoding)) for place, encoding in self.scheme.inputs)
        weight = None if self.scheme.weight is None else _describe(self.scheme.weight)
        return self.name, self.scheme.rule, self.activations, inputs, self.weight, weight

    def to_plain(self) -> dict[str, Any]:
        """Returns it as `inspect --json` shows it."""
        plain = {"name": self.name, "op_type": self.op_type, "rule": self.scheme.rule}
        weight = None
        if self.weight is not None and self.scheme.weight is not None:
            place, tensor = self.weight
            weight = (place, {"tensor": tensor, "axis": self.scheme.weight.channel_axis})
        return {**plain, "activations": self.activations, "weight": weight}


def _describe(encoding: Encoding) -> tuple[object, ...]:
    form = encoding.format
    stored = None if encoding.stored is None else _describe(encoding.stored)
    flags = encoding.is_dynamic, encoding.is_given, encoding.has_coded_scales, encoding.amax
    return form.name, form.lowest, form.largest, str(encoding.granularity), *flags, stored


@dataclass(frozen=True, slots=True)
class HeldCache:
    """A cache of a decoder that is held in codes; it grows by a Concat.

    Attributes:
        past: The input that holds what came before.
        present: The output that continues it, the result of the Concat: the tensor that needs a range.
        node: The name of the Concat.
        form: What the cache is held in.
    """

    past: str
    present: str
    node: str
    form: CodeFormat


@dataclass(frozen=True, slots=True)
class Placement:
    """For every node with weights, in graph order, what is done.

    Attributes:
        quantized: How each node is quantized.
        kept: Why each other one is kept float.
        given: Those that come quantized, which nothing is done to, and what of each does.
        caches: Those that are held in codes.
    """

    quantized: tuple[QuantizedNode, ...] = ()
    kept: tuple[KeptNode, ...] = ()
    given: tuple[KeptNode, ...] = ()
    caches: tuple[HeldCache, ...] = ()

    @property
    def encodings(self) -> tuple[tuple[str, Encoding], ...]:
        """The tensors that quantized nodes read, each with how they are held, in graph order."""
        return tuple(dict.fromkeys(pair for node in self.quantized for pair in node.encodings))

    @property
    def activations(self) -> tuple[str, ...]:
        """The tensors that need a range, in graph order."""
        return tuple(self.formats)

    @property
    def formats(self) -> dict[str, CodeFormat]:
        """The number format of each tensor that needs a range: of several the one that does not clip."""
        found: dict[str, CodeFormat] = {}
        for name, encoding in self.encodings:
            if encoding.needs_range and (name not in found or not encoding.format.clips):
                found[name] = encoding.format
        return found | {cache.present: cache.form for cache in self.caches if cache.present not in found}

    @property
    def layers(self) -> tuple[QuantizedNode, ...]:
        """The nodes whose kernel works on codes, which counts as coverage: not Add and Softmax."""
        placed = (node for node in self.quantized if node.activations and node.op_type in QUANTIZABLE)
        return tuple(node for node in placed if node.scheme.rule != CLOSED)

    @property
    def without_closed(self) -> Placement:
        """The same without what takes codes only because the layer before it writes them."""
        return replace(self, quantized=tuple(node for node in self.quantized if node.scheme.rule != CLOSED))

    @property
    def weights_alone(self) -> tuple[QuantizedNode, ...]:
        """The nodes that take floats and a weight of few bits."""
        return tuple(node for node in self.quantized if not node.activations)

    @property
    def has_few_bits(self) -> bool:
        """Whether a weight is stored in fewer bits than it is computed with."""
        return bool(self.weights_alone) or self.has_stored

    @property
    def has_stored(self) -> bool:
        """Whether a weight beside a quantized activation is (W4A8)."""
        weights = (node.scheme.weight for node in self.quantized)
        return any(weight is not None and weight.stored is not None for weight in weights)

    @property
    def min_opset(self) -> int:
        """The first opset that holds the formats; 21 where the scales of a weight lie along several axes."""
        weights = [node.scheme.weight for node in self.quantized if node.scheme.weight is not None]
        has_axes = any(
            weight.stored or isinstance(weight.granularity, PerToken | PerBlock) for weight in weights
        )
        held = (*(encoding for _, encoding in self.encodings), *weights)
        forms = (*(encoding.format for encoding in held), *(cache.form for cache in self.caches))
        return max(21 if has_axes else 13, 13, *(form.first_opset for form in forms))

    def with_one_scale(self) -> Placement:
        """Returns the same decisions with one scale for each weight, instead of one an output channel.

        Blocks stay: they are a part of their format.
        """
        return self._with_weights(
            lambda weight: (
                weight
                if isinstance(weight.granularity, PerBlock)
                else replace(weight, granularity=PerTensor())
            )
        )

    def with_weights_of_7_bits(self) -> Placement:
        """Returns the same decisions with codes from -63 to 63 for what is INT8 of weights."""
        return self._with_weights(
            lambda weight: replace(weight, format=INT8_OF_7_BITS) if weight.format is INT8 else weight
        )

    def _with_weights(self, change: Callable[[Encoding], Encoding]) -> Placement:
        def changed(node: QuantizedNode) -> QuantizedNode:
            weight = node.scheme.weight and change(node.scheme.weight)
            return replace(node, scheme=replace(node.scheme, weight=weight))

        return replace(self, quantized=tuple(map(changed, self.quantized)))
