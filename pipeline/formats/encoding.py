"""How tensors and layers are held."""

from __future__ import annotations

from dataclasses import dataclass

from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.granularity import Granularity, PerChannel, PerTensor

_ONE_SCALE = PerTensor()


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one tensor is held.

    Attributes:
        format: Of its codes.
        granularity: Which values share a scale.
        is_dynamic: Whether the scales are found in each run; else they are constants.
        has_coded_scales: Whether the scales are held in 8 bits themselves (QLoRA, section 3).
        is_given: Whether the model brings the Q/DQ and its scale along.
        amax: The largest magnitude of what is quantized, where that is known without any data.
    """

    format: CodeFormat
    granularity: Granularity = _ONE_SCALE
    is_dynamic: bool = False
    has_coded_scales: bool = False
    is_given: bool = False
    amax: float | None = None

    @property
    def needs_range(self) -> bool:
        """Whether an activation held so gets Q/DQ with a constant scale that data tells."""
        return not self.is_given and self.amax is None

    @property
    def channel_axis(self) -> int | None:
        """The axis of the channels that have a scale each; None where scales are for other parts."""
        return self.granularity.axis if isinstance(self.granularity, PerChannel) else None


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """How the tensors of one layer are held; those that are not named stay float.

    Attributes:
        rule: What chose it.
        inputs: The encodings of activations, by their places among the layer's inputs.
        weight: The encoding of the weight.
    """

    rule: str
    inputs: tuple[tuple[int, Encoding], ...] = ()
    weight: Encoding | None = None

    @property
    def formats(self) -> frozenset[CodeFormat]:
        """The number formats of the activations and of the weight."""
        weights = () if self.weight is None else (self.weight,)
        return frozenset(item.format for item in (*(item for _, item in self.inputs), *weights))

    def __str__(self) -> str:
        """Names the formats: "int8 x int8", "float x int4"."""
        formats = [str(encoding.format) for _, encoding in self.inputs] or ["float"]
        return " x ".join([*formats, *([str(self.weight.format)] if self.weight is not None else [])])

    @property
    def form(self) -> CodeFormat:
        """The number format of the activations, or of the weight where they stay float."""
        held = (*(encoding for _, encoding in self.inputs), self.weight)
        return next(encoding.format for encoding in held if encoding is not None)
