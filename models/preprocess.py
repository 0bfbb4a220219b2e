"""How an image becomes the input array of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import DataError, UsageError
from trtq.files import refuse_damage
from trtq.models.option import setting
from trtq.numbers import format_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
RESIZE_MODES = ("stretch", "short-side", "letterbox")
CHANNELS = ("RGB", "BGR", "L")
LAYOUTS = ("NCHW", "NHWC")
_LARGEST_16_BITS = 65535


@dataclass(frozen=True, slots=True)
class Preprocess:
    """The steps from an image file to an input, in the order of the fields.

    The defaults are those of ImageNet classifiers as torchvision trains them, except for the sizes, which
    come from the model when it has fixed ones.

    Attributes:
        resize: Resize to this height and width in pixels, such as 256 or 480x640. None: the model's input
            size.
        resize_mode: stretch ignores the aspect ratio; short-side keeps it and covers the size; letterbox
            keeps it, fits inside the size, and pads with grey (114).
        crop: Centre crop to this height and width, such as 224. None: no crop.
        channels: Channel order; L is greyscale.
        scale: Factor on the pixel values 0-255, before mean and std; 16-bit values are first multiplied by
            255 / 65535. None: 1/255.
        mean: Mean to subtract, one number per channel or one for all.
        std: Standard deviation to divide by, one number per channel or one for all.
        layout: Axis order of the input.
        exif: First rotate each image by its EXIF orientation, as viewers do.
        frame_step: Use every n-th frame of a video.
    """

    resize: tuple[int, ...] = setting((), metavar="SIZES")
    resize_mode: str = setting("stretch")
    crop: tuple[int, ...] = setting((), metavar="SIZES")
    channels: str = setting("RGB")
    scale: float = setting(1 / 255)
    mean: tuple[float, ...] = setting((0.485, 0.456, 0.406), metavar="NUMBERS")
    std: tuple[float, ...] = setting((0.229, 0.224, 0.225), metavar="NUMBERS")
    layout: str = setting("NCHW")
    exif: bool = setting(False)
    frame_step: int = setting(1)

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if len(size) > 2 or any(value < 1 for value in size):
                raise UsageError(f"{name} must be one or two positive sizes in pixels, got {list(size)}")
        for name, value, choices in (
            ("resize_mode", self.resize_mode, RESIZE_MODES),
            ("channels", self.channels, CHANNELS),
            ("layout", self.layout, LAYOUTS),
        ):
            if value not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.frame_step < 1:
            raise UsageError(f"frame_step must be at least 1, got {self.frame_step}")
        if not self.mean or not self.std:
            raise UsageError(
                f"mean and std must hold one number, or one per channel, got {list(self.mean)} and "
                f"{list(self.std)}"
            )
        if any(value == 0 for value in self.std):
            raise UsageError(f"std must not contain 0, got {list(self.std)}")
        if not all(map(math.isfinite, (self.scale, *self.mean, *self.std))):
            raise UsageError(
                f"scale, mean and std must be finite, "
                f"got {self.scale}, {list(self.mean)} and {list(self.std)}"
            )


def describe(steps: Preprocess) -> str:
    """Returns the steps in words, and the values that come out of them."""
    mean, std = _find_offsets(steps)
    size, crop = (format_shape(_pair(each) or ()) for each in (steps.resize, steps.crop))
    words = [
        *(["turned by EXIF"] if steps.exif else []),
        steps.channels,
        f"{steps.resize_mode} to {size}" if steps.resize else "size of the model" * (not steps.crop),
        f"crop {crop}" if steps.crop else "",
        f"x {steps.scale:.6g}" if steps.scale != 1 / 255 else "/ 255",
        f"mean {[round(item, 6) for item in mean]}",
        f"std {[round(item, 6) for item in std]}",
        steps.layout,
        *([f"one frame in {steps.frame_step}"] if steps.frame_step > 1 else []),
    ]
    low, high = find_reach(steps)
    return f"{', '.join(filter(None, words))}; values from {low:.3g} to {high:.3g}"


def _find_offsets(steps: Preprocess) -> tuple[tuple[float, ...], ...]:
    """Returns mean and std as they are used: a grey picture has one number of each."""
    return tuple(
        spread_over_channels(values, 1) if steps.channels == "L" else values
        for values in (steps.mean, steps.std)
    )


def find_reach(steps: Preprocess) -> tuple[float, float]:
    """Returns the lowest and the highest value that a picture may become."""
    mean, std = _find_offsets(steps)
    count = max(len(mean), len(std))
    mean, std = ((values * count)[:count] for values in (mean, std))
    ends = [(top * steps.scale - m) / s for top in (0, 255) for m, s in zip(mean, std, strict=True)]
    return min(ends), max(ends)


def read_image(
    source: Path | IO[bytes], steps: Preprocess, size: tuple[int, int] | None, name: str = ""
) -> NDArray[Any]:
    """Returns one sample: float32, shape (C, H, W) or (H, W, C) by the layout.

    Args:
        source: The picture: a file, or what its bytes are read from.
        steps: What is done to it.
        size: Height and width that the model wants; used when `steps` names neither resize nor crop.
        name: For messages; empty: the path.

    Raises:
        DataError: It is no picture, it is several, its numbers have no known scale, or mean and std have
            another number of channels.
        MissingDependency: Pillow is not installed.
    """
    name = name or str(source)
    pillow = lazy.require("PIL.Image", "images", "reading images")
    with refuse_damage(DataError, f"{name} cannot be read as an image"), pillow.open(source) as opened:
        _refuse_several(opened, name)
        image = _decode(_turn(opened) if steps.exif else opened, steps.channels, name)
    return _to_sample(image, steps, size, name)


def prepare_image(image: Any, steps: Preprocess, size: tuple[int, int] | None, name: str) -> NDArray[Any]:
    """Returns the sample that a picture of Pillow's becomes; see `read_image`."""
    _refuse_several(image, name)
    return _to_sample(_decode(image, steps.channels, name), steps, size, name)


def restore_image(sample: NDArray[Any], steps: Preprocess) -> Any:
    """Returns a sample as a picture of Pillow's, RGB or grey: what the model sees, in the picture's colors.

    Args:
        sample: As `read_image` returns it.
        steps: What was done to the picture.
    """
    import numpy as np

    pixels = np.asarray(sample, np.float32)
    pixels = pixels.transpose(1, 2, 0) if steps.layout == "NCHW" else pixels
    mean, std = (
        spread_over_channels(steps.mean, pixels.shape[-1]),
        spread_over_channels(steps.std, pixels.shape[-1]),
    )
    pixels = (pixels * np.asarray(std, np.float32) + np.asarray(mean, np.float32)) / (steps.scale or 1.0)
    pixels = pixels[..., ::-1] if steps.channels == "BGR" else pixels
    whole = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    pillow = lazy.require("PIL.Image", "images", "drawing images")
    return pillow.fromarray(whole[..., 0] if whole.shape[-1] == 1 else np.ascontiguousarray(whole))


def _to_sample(image: Any, steps: Preprocess, size: tuple[int, int] | None, name: str) -> NDArray[Any]:
    import numpy as np

    target = _pair(steps.resize) or (None if steps.crop else size)
    if target is not None:
        image = _resize(image, target, steps.resize_mode)
    if (crop := _pair(steps.crop)) is not None:
        image = _crop(image, crop, name)
    pixels = np.asarray(image, np.float32)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 1 if steps.channels == "L" else 3, axis=-1)
    if steps.channels == "BGR":
        pixels = pixels[..., ::-1]
    mean, std = (
        spread_over_channels(steps.mean, pixels.shape[-1]),
        spread_over_channels(steps.std, pixels.shape[-1]),
    )
    sample = (pixels * np.float32(steps.scale) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(sample.transpose(2, 0, 1) if steps.layout == "NCHW" else sample, np.float32)


def _refuse_several(image: Any, name: str) -> None:
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # a JPEG to which the camera added a smaller one
        raise DataError(f"{name} holds {count} pages or frames; save each as a separate image")


def _turn(image: Any) -> Any:
    """Returns the picture as its EXIF orientation says."""
    return lazy.require("PIL.ImageOps", "images", "reading images").exif_transpose(image)


def _decode(image: Any, channels: str, name: str) -> Any:
    """Returns the picture as RGB or grey; of 16 bits as numbers from 0 to 255 with fractions, mode F.

    Pillow would cut whatever is above 255 off.

    Raises:
        DataError: Its numbers have no known scale.
    """
    import numpy as np

    if image.mode == "I" or image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        if pixels.size and not 0 <= int(pixels.min()) <= int(pixels.max()) <= _LARGEST_16_BITS:
            raise DataError(
                f"{name} has pixel values from {pixels.min()} to {pixels.max()}, not 0 to 65535 as 16 "
                "bits do; give arrays in .npz files"
            )
        pillow = lazy.require("PIL.Image", "images", "reading images")
        return pillow.fromarray(pixels.astype(np.float32) / np.float32(_LARGEST_16_BITS / 255))
    if image.mode == "F":
        raise DataError(f"{name} has float pixels of unknown range; give arrays in .npz files")
    return image.convert("L" if channels == "L" else "RGB")


def _pair(size: tuple[int, ...]) -> tuple[int, int] | None:
    return (size[0], size[-1]) if size else None


def _resize(image: Any, size: tuple[int, int], mode: str) -> Any:
    height, width = size
    pillow = lazy.require("PIL.Image", "images", "reading images")
    if mode == "stretch":
        return image.resize((width, height), pillow.Resampling.BILINEAR)
    factors = (height / image.height, width / image.width)
    factor = max(factors) if mode == "short-side" else min(factors)
    scaled = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    image = image.resize(scaled, pillow.Resampling.BILINEAR)
    if mode == "short-side":
        return image
    canvas = pillow.new(image.mode, (width, height), 114 if image.mode in ("L", "F") else (114, 114, 114))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _crop(image: Any, size: tuple[int, int], name: str) -> Any:
    height, width = size
    if height > image.height or width > image.width:
        raise DataError(
            f"{name} is {image.height}x{image.width} after resizing, smaller than the crop {height}x{width}; "
            f"set `resize` in [preprocess] to at least the crop"
        )
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height))


def spread_over_channels(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """Returns mean or std with one number a channel.

    Raises:
        DataError: They are given for another number of channels.
    """
    if len(values) == num_channels:
        return values
    if len(set(values)) == 1:
        return (values[0],) * num_channels
    if num_channels == 1:  # the ImageNet defaults on a grey picture: their mean
        return (sum(values) / len(values),)
    raise DataError(f"mean and std need {num_channels} numbers, one per channel, got {list(values)}")
