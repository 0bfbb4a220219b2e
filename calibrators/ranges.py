"""Which magnitude the largest INT8 code of each tensor stands for, and where that was learned."""

from __future__ import annotations

import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from trtq.errors import ArtifactError, UsageError
from trtq.models.spec import Activations

SCHEMA_VERSION = 1
FP16_LIMIT = 65504 / 2
"""Half of FP16's largest number: the calibration data does not hold the largest value there is."""
QMAX = 127
"""The largest INT8 code; the smallest is its negative, so that codes are symmetric."""
_SCALE_OF_DEAD = 1.0


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
        amax: The magnitude that the code 127 stands for after that; 0 without scales.
    """

    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()
    amax: float = 0.0


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
        beyond_fp16: Tensors whose values leave too little room below FP16's largest number, with their amax.
        channels: The tensors whose channels are treated apart: the repairs.
        weight_scales: "max": scales of weights hold the largest; "mse": they clip where the error is least.
        roundings: What of a weight is not rounded to the nearest code, packed, by the float weight's digest.
        activations: "asymmetric": codes reach from the smallest value to the largest, with a zero point.
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
    activations: Activations = "symmetric"
    roundings: Mapping[str, bytes] = field(default_factory=dict)

    def amax(self, tensor: str) -> float:
        """Returns the amax to quantize with; 1.0 for a dead tensor, whose scale must still be positive.

        Raises:
            UsageError: The tensor has no range.
        """
        try:
            found = self.tensors[tensor]
        except KeyError:
            raise UsageError(
                f"the ranges hold nothing for tensor {tensor!r}; they were calibrated for another model or "
                f"with other skipped layers: calibrate again"
            ) from None
        return found.amax or _SCALE_OF_DEAD

    def ends(self, tensor: str) -> tuple[float, float]:
        """Returns what the smallest and the largest code stand for; 0 lies between them.

        They are the extremes that were seen, clipped at the amax of the method.

        Raises:
            UsageError: The tensor has no range.
        """
        amax, item = self.amax(tensor), self.tensors[tensor]
        if self.activations == "symmetric" or item.minimum == item.maximum == 0:
            return -amax, amax
        return max(min(item.minimum, 0.0), -amax), min(max(item.maximum, 0.0), amax)


def ranges_to_json(ranges: Ranges) -> bytes:
    """Returns the ranges as JSON."""
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "ranges",
        "method": ranges.method,
        "model_sha256": ranges.model_sha256,
        "data": ranges.data,
        "num_samples": ranges.num_samples,
        "is_random": ranges.is_random,
        "shapes": {
            name: {"min": shape.min, "opt": shape.opt, "max": shape.max}
            for name, shape in ranges.shapes.items()
        },
        "beyond_fp16": dict(ranges.beyond_fp16),
        "tensors": {
            name: {"amax": item.amax, "min": item.minimum, "max": item.maximum}
            for name, item in ranges.tensors.items()
        },
    }
    if ranges.channels:
        document["channels"] = {name: asdict(item) for name, item in ranges.channels.items()}
    if ranges.weight_scales != "max":
        document["weight_scales"] = ranges.weight_scales
    if ranges.activations != "symmetric":
        document["activations"] = ranges.activations
    if ranges.roundings:
        document["roundings"] = {name: b64encode(item).decode() for name, item in ranges.roundings.items()}
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def read_ranges(path: Path) -> Ranges:
    """Returns the ranges of a JSON file.

    Raises:
        ArtifactError: The file is missing, broken, of another kind or of a newer schema, or a number in it is
            not finite or negative where it must not be.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"cannot read the ranges {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is not a ranges file: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != "ranges":
        raise ArtifactError(f"{path} is not a ranges file; `trtq calibrate` writes one")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {document.get('schema_version')}, this trtq reads {SCHEMA_VERSION}; "
            f"calibrate again"
        )
    try:
        return _from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path} is not a complete ranges file: {error!r}; calibrate again") from error


def _from_document(document: Mapping[str, Any]) -> Ranges:
    tensors = {
        name: Range(_magnitude(item["amax"]), _finite(item["min"]), _finite(item["max"]))
        for name, item in document["tensors"].items()
    }
    return Ranges(
        tensors=tensors,
        method=str(document["method"]),
        model_sha256=str(document["model_sha256"]),
        data=str(document["data"]),
        num_samples=int(document["num_samples"]),
        is_random=bool(document["is_random"]),
        shapes={
            name: Shapes(tuple(item["min"]), tuple(item["opt"]), tuple(item["max"]))
            for name, item in document["shapes"].items()
        },
        beyond_fp16={name: _magnitude(amax) for name, amax in document["beyond_fp16"].items()},
        channels={name: _channels(item) for name, item in document.get("channels", {}).items()},
        weight_scales=_weight_scales(document.get("weight_scales", "max")),
        activations=_activations(document.get("activations", "symmetric")),
        roundings={
            name: b64decode(item, validate=True) for name, item in document.get("roundings", {}).items()
        },
    )


def _channels(item: Mapping[str, Any]) -> Channels:
    mean, scale, shift = (tuple(map(_finite, item[key])) for key in ("mean", "scale", "shift"))
    if any(value <= 0 for value in scale):
        raise ValueError(f"scales of channels must be positive, got {scale!r}")
    if len(shift) not in (0, len(scale)) or (mean and scale and len(mean) != len(scale)):
        raise ValueError("the scales of channels must be as many as the shifts and as many as the means")
    return Channels(mean, scale, shift, _magnitude(item["amax"]))


def _weight_scales(word: object) -> Literal["max", "mse"]:
    if word == "max" or word == "mse":
        return word
    raise ValueError(f"weight_scales must be max or mse, got {word!r}")


def _activations(word: object) -> Activations:
    if word == "symmetric" or word == "asymmetric":
        return word
    raise ValueError(f"activations must be symmetric or asymmetric, got {word!r}")


def _magnitude(value: object) -> float:
    if (number := _finite(value)) < 0:
        raise ValueError(f"amax must be at least 0, got {value!r}")
    return number


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"amax, min and max must be finite numbers, got {value!r}")
    return float(value)
