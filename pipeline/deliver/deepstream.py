"""What DeepStream's nvinfer is told of a model: `config_infer_primary.txt`.

Source: the table of the properties of Gst-nvinfer in NVIDIA's DeepStream guide. What it does to a picture is
y = net-scale-factor * (x - mean), with x from 0 to 255, a mean for each channel and one factor for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trtq.errors import ArtifactError
from trtq.models.preprocess import Preprocess, spread_over_channels
from trtq.models.signature import TensorSpec, show_shape

CONFIG = "config_infer_primary.txt"
LABELS = "labels.txt"
MODES: Mapping[str, int] = {"fp32": 0, "int8": 1, "fp16": 2}
"""network-mode by precision: what nvinfer builds in from an ONNX file."""
CLASSIFIER, OTHER = 1, 100
"""Of network-type: an output of scores of classes, and one that nvinfer leaves to the application."""
_COLORS: Mapping[str, int] = {"RGB": 0, "BGR": 1, "L": 2}
_BILINEAR = 1


def find_scaling(steps: Preprocess, num_channels: int) -> tuple[float, tuple[float, ...]]:
    """Returns net-scale-factor and the offsets, which do what `(x * scale - mean) / std` does.

    Raises:
        ArtifactError: That is not one positive factor for all channels.
        DataError: mean or std is of another number of channels.
    """
    mean, std = (spread_over_channels(values, num_channels) for values in (steps.mean, steps.std))
    factors = [steps.scale / value for value in std]
    if not all(math.isclose(factor, factors[0], rel_tol=1e-6) for factor in factors):
        middle = sum(std) / len(std)
        raise ArtifactError(
            f"std {list(std)} differs by channel, and nvinfer has one net-scale-factor for all; build with "
            f"--std {middle:.4g}, so that the gate judges what DeepStream will do, or put the division into "
            f"the model"
        )
    if factors[0] <= 0:
        raise ArtifactError(
            f"nvinfer takes no net-scale-factor of {factors[0]:g}, which is scale {steps.scale:g} by std "
            f"{std[0]:g}; it must be positive"
        )
    return factors[0], tuple(value / steps.scale for value in mean)


def read_picture_size(spec: TensorSpec, steps: Preprocess, usual: Sequence[int]) -> tuple[int, int, int]:
    """Returns channels, height and width of an input that takes pictures.

    Args:
        spec: The input.
        steps: How pictures become it.
        usual: The shape that stands for open dims; empty: there is none.

    Raises:
        ArtifactError: nvinfer cannot feed it.
    """
    shape = [dim if isinstance(dim, int) else (usual or [0] * 8)[at] for at, dim in enumerate(spec.shape)]
    shown = f"{spec.name!r} is {spec.dtype} {show_shape(spec.shape)}"
    if spec.dtype != "float32" or len(shape) != 4:
        raise ArtifactError(f"{shown}; nvinfer feeds images as float32 with four axes")
    order = (1, 2, 3) if steps.layout == "NCHW" else (3, 1, 2)
    channels, height, width = (shape[at] for at in order)
    if channels != (1 if steps.channels == "L" else 3):
        raise ArtifactError(
            f"{shown}: {channels} channels in the layout {steps.layout}, which are not those of "
            f"{steps.channels}; build with --layout and --channels as of the model"
        )
    if height < 1 or width < 1:
        raise ArtifactError(f"{shown}: its height and width are dynamic, and the build names none")
    if steps.layout == "NHWC" and not all(isinstance(dim, int) for dim in spec.shape[1:]):
        raise ArtifactError(
            f"{shown}: its height and width are dynamic, and nvinfer sets them (infer-dims) as C;H;W "
            "alone; fix them in the model"
        )
    return channels, height, width


def list_picture_properties(steps: Preprocess, size: tuple[int, int, int]) -> dict[str, str]:
    """Returns what nvinfer does to a frame, in the order of the file.

    Raises:
        ArtifactError, DataError: As of `find_scaling`.
    """
    factor, offsets = find_scaling(steps, size[0])
    is_letterbox = int(steps.resize_mode == "letterbox")
    return {
        "net-scale-factor": f"{factor:.9g}",
        "offsets": ";".join(f"{value:.9g}" for value in offsets),
        "model-color-format": str(_COLORS[steps.channels]),
        **({"infer-dims": ";".join(map(str, size))} if steps.layout == "NCHW" else {}),
        "network-input-order": str(int(steps.layout == "NHWC")),
        "maintain-aspect-ratio": str(is_letterbox),
        "symmetric-padding": str(is_letterbox),
        "scaling-filter": str(_BILINEAR),
    }


def list_picture_differences(steps: Preprocess, size: tuple[int, int, int]) -> list[str]:
    """Returns in which ways nvinfer cuts a frame otherwise than the pictures of the build were."""
    found = []
    if steps.resize_mode == "letterbox":
        found.append("nvinfer pads with black, and the images of the build were padded with grey (114)")
    if steps.crop or steps.resize_mode == "short-side":
        found.append(
            f"nvinfer stretches the whole frame to {size[1]}x{size[2]}, and the images of the build "
            "were cropped"
        )
    return found


def format_config(properties: Mapping[str, str], comments: Sequence[str] = ()) -> str:
    """Returns the text of the configuration."""
    lines = [
        *(f"# {line}" for line in comments),
        "[property]",
        *(f"{key}={value}" for key, value in properties.items()),
    ]
    return "\n".join(lines) + "\n"
