"""Which magnitude the largest code of each tensor stands for, and where that was learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from trtq.errors import UsageError
from trtq.json import FileKind
from trtq.models.spec import Activations

FP16_LIMIT = 65504 / 2
"""Half of FP16's largest number: the calibration data does not hold the largest value there is."""
FP16_LEAST = 2.0**-17
"""Numbers below it have at most seven bits in FP16, as there are no smaller steps than 2^-24."""
Rotation = Literal["none", "hadamard"]
QMAX = 127
"""The largest INT8 code; the smallest is its negative, so that codes are symmetric."""
_SCALE_OF_DEAD = 1.0
_TOO_LARGE = 2.0**128 - 2.0**103
"""From here on FP32 has infinity."""


@dataclass(frozen=True, slots=True)
class Range:
    """What is known of one tensor: the chosen amax, and the exact extremes that were seen."""

    amax: float
    minimum: float
    maximum: float

    @property
    def is_dead(self) -> bool:
        """Whether the tensor was zero in every sample."""
        return self.amax == 0.0


@dataclass(frozen=True, slots=True)
class Shapes:
    """The shapes that one input had: smallest, most frequent and largest in each dimension."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Channels:
    """How the channels of one tensor are treated apart, all as tuples over the channels or empty.

    Attributes:
        mean: Their means, with which the biases of the layers behind are corrected.
        scale: What each is divided by before the tensor is quantized; the weights behind take it up.
        shift: What is taken away from each before that; the biases behind take it up.
        amax: The magnitude that the largest code stands for after that; 0 without scales.
        largest: The largest magnitude that was seen after that; 0 if the amax holds everything.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    amax: float = 0.0
    largest: float = 0.0


@dataclass(frozen=True, slots=True)
class Ranges:
    """The ranges of a model's tensors, with their provenance.

    Attributes:
        tensors: By the tensor's name.
        method: The method with its parameters, such as `percentile(percentile=99.99)`.
        model_sha256: The model that was observed.
        data: The data, as a person reads it.
        num_samples: How many samples were observed.
        is_random: Whether the data was made up.
        shapes: The shapes of the inputs in the data.
        beyond_fp16: Tensors whose values leave too little room below FP16's largest number, or all lie where
            FP16 has hardly any steps, with their amax.
        channels: The tensors whose channels are treated apart: the repairs.
        weight_scales: "max": scales of weights hold the largest; "mse": they clip where the error is least.
        rotation: "hadamard": the residual streams are rotated; their tensors have ranges by their new names.
        roundings: What of a weight is not rounded to the nearest code, packed, by the float weight's digest.
        attention: The products of activations that were found to lose next to nothing in INT8.
        formats: The number formats of tensors for which the ranges were chosen, where it is not INT8.
        activations: "asymmetric": codes reach from the smallest value to the largest, with a zero point;
            "per-token": tensors whose rows have scales of their own, found in each run, have no range.
    """

    tensors: Mapping[str, Range]
    method: str
    model_sha256: str
    data: str
    num_samples: int
    is_random: bool = False
    shapes: Mapping[str, Shapes] = field(default_factory=dict)
    beyond_fp16: Mapping[str, float] = field(default_factory=dict)
    channels: Mapping[str, Channels] = field(default_factory=dict)
    weight_scales: Literal["max", "mse"] = "max"
    rotation: Rotation = "none"
    activations: Activations = "symmetric"
    roundings: Mapping[str, bytes] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    attention: tuple[str, ...] = ()

    def require(self, tensors: Iterable[str]) -> None:
        """Refuses these ranges where tensors have none.

        Raises:
            UsageError: A tensor has no range.
        """
        if missing := [name for name in tensors if name not in self.tensors]:
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UsageError(
                f"the ranges hold nothing for tensor {missing[0]!r}{others}; they were calibrated for "
                f"another model or with other skipped layers: calibrate again"
            )

    def amax(self, tensor: str, form: str = "") -> float:
        """Returns the amax to quantize with; 1.0 for a dead tensor, whose scale must still be positive.

        In another format than the range was chosen for, it is the largest magnitude that was seen: the
        formats that layers are given beside INT8 are floats, which lose little by it.

        Args:
            tensor: Its name.
            form: The number format that it is held in; empty: the one that its range was chosen for.

        Raises:
            UsageError: The tensor has no range.
        """
        self.require((tensor,))
        found = self.tensors[tensor]
        if form in ("", self.formats.get(tensor, "int8")):
            return found.amax or _SCALE_OF_DEAD
        return max(-found.minimum, found.maximum) or found.amax or _SCALE_OF_DEAD

    def ends(self, tensor: str, form: str = "") -> tuple[float, float]:
        """Returns what the smallest and the largest code stand for; 0 lies between them.

        They are the extremes that were seen, clipped at the amax of the method.

        Args:
            tensor: Its name.
            form: The number format that it is held in, as for `amax`.

        Raises:
            UsageError: The tensor has no range.
        """
        amax, item = self.amax(tensor, form), self.tensors[tensor]
        if self.activations != "asymmetric" or item.minimum == item.maximum == 0:
            return -amax, amax
        return max(min(item.minimum, 0.0), -amax), min(max(item.maximum, 0.0), amax)


@dataclass(frozen=True, slots=True)
class _StoredRange:
    """A range as the file has it."""

    amax: float
    min: float
    max: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.min) and math.isfinite(self.max)):
            raise ValueError(f"min and max must be finite, got {self.min!r} and {self.max!r}")
        if self.min > self.max:
            raise ValueError(f"min must be at most max, got {self.min!r} and {self.max!r}")
        _refuse_magnitude(self.amax)
        if self.amax / QMAX >= _TOO_LARGE:
            raise ValueError(f"amax must have a scale that FP32 holds, got {self.amax!r}")


@dataclass(frozen=True, slots=True)
class _StoredRanges:
    """Ranges as the file has them, key by key; see `Ranges`."""

    method: str
    model_sha256: str
    data: str
    num_samples: int
    is_random: bool
    shapes: Mapping[str, Shapes]
    beyond_fp16: Mapping[str, float]
    tensors: Mapping[str, _StoredRange]
    channels: Mapping[str, Channels] = field(default_factory=dict)
    weight_scales: Literal["max", "mse"] = "max"
    rotation: Rotation = "none"
    activations: Activations = "symmetric"
    roundings: Mapping[str, bytes] = field(default_factory=dict)
    formats: Mapping[str, str] = field(default_factory=dict)
    attention: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for amax in self.beyond_fp16.values():
            _refuse_magnitude(amax)
        for item in self.channels.values():
            _refuse_channels(item)


FILE = FileKind(_StoredRanges, "ranges file", "trtq calibrate", "ranges")
_WRITTEN_IF_OTHER = {
    "channels": {},
    "weight_scales": "max",
    "rotation": "none",
    "activations": "symmetric",
    "roundings": {},
    "formats": {},
    "attention": (),
}


def ranges_to_json(ranges: Ranges) -> bytes:
    """Returns the ranges as JSON."""
    tensors = {
        name: _StoredRange(item.amax, item.minimum, item.maximum) for name, item in ranges.tensors.items()
    }
    stored = {item.name: getattr(ranges, item.name) for item in fields(_StoredRanges)} | {"tensors": tensors}
    return FILE.encode({key: value for key, value in stored.items() if value != _WRITTEN_IF_OTHER.get(key)})


def read_ranges(path: Path | str) -> Ranges:
    """Returns the ranges of a JSON file.

    Raises:
        ArtifactError: The file is missing, broken, of another kind or of a newer schema, or a number in it is
            not finite or negative where it must not be.
    """
    return _to_ranges(FILE.read(path))


def parse_ranges(content: bytes, origin: str) -> Ranges:
    """Returns the ranges of the bytes of such a file; `origin` is for messages.

    Raises:
        ArtifactError: As of `read_ranges`.
    """
    return _to_ranges(FILE.decode(content, origin))


def _to_ranges(stored: _StoredRanges) -> Ranges:
    tensors = {name: Range(item.amax, item.min, item.max) for name, item in stored.tensors.items()}
    return Ranges(**{item.name: getattr(stored, item.name) for item in fields(stored)} | {"tensors": tensors})


def _refuse_magnitude(amax: float) -> None:
    if not 0 <= amax < math.inf:
        raise ValueError(f"amax must be a finite number of at least 0, got {amax!r}")


def _refuse_channels(item: Channels) -> None:
    mean, scale, shift = item.mean, item.scale, item.shift
    if not all(0 < value < math.inf for value in scale):
        raise ValueError(f"scales of channels must be positive and finite, got {scale!r}")
    if not all(map(math.isfinite, (*mean, *shift))):
        raise ValueError("means and shifts of channels must be finite")
    if len(shift) not in (0, len(scale)) or (mean and scale and len(mean) != len(scale)):
        raise ValueError("the scales of channels must be as many as the shifts and as many as the means")
    _refuse_magnitude(item.amax)
    _refuse_magnitude(item.largest)
