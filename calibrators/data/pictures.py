"""Pictures as samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.data.files import StoredFile, hash_files
from trtq.errors import DataError
from trtq.models.preprocess import Preprocess, prepare_image, read_image
from trtq.models.signature import TensorSpec, show_shape
from trtq.numbers import format_count
from trtq.workers import Threads


@dataclass(frozen=True, slots=True)
class PictureInput:
    """The input that takes pictures.

    Attributes:
        spec: The input, of rank 4.
        steps: How pictures are prepared for it.
    """

    spec: TensorSpec
    steps: Preprocess

    @property
    def size(self) -> tuple[int, int] | None:
        """The height and width that the model fixes; None if they are open."""
        height, width = self.spec.shape[2:] if self.steps.layout == "NCHW" else self.spec.shape[1:3]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def refuse_open_size(self, batch_size: int) -> None:
        """Refuses pictures of any size for batches.

        Raises:
            DataError: Neither the model nor the settings say how large they are.
        """
        is_open = self.size is None and not self.steps.resize and not self.steps.crop
        if is_open and batch_size > 1:
            raise DataError(
                f"the model leaves the size of {self.spec.name!r} {show_shape(self.spec.shape)} open; "
                "set `resize` in [preprocess] of model.toml so that images fit into batches, or use a "
                "batch size of 1"
            )

    def read(self, stream: IO[bytes], name: str) -> NDArray[Any]:
        """Returns the sample that an encoded picture becomes: (C, H, W) or (H, W, C) by the layout."""
        return self._check(read_image(stream, self.steps, self.size, name), name)

    def prepare(self, image: Any, name: str) -> NDArray[Any]:
        """Returns the sample that a picture of Pillow's becomes."""
        return self._check(prepare_image(image, self.steps, self.size, name), name)

    def _check(self, sample: NDArray[Any], name: str) -> NDArray[Any]:
        """Returns the sample in the input's dtype; DataError if that cannot hold it."""
        dtype = self.spec.dtype
        if np.issubdtype(np.dtype(dtype), np.integer):
            limits = np.iinfo(dtype)
            if sample.min() < limits.min or sample.max() > limits.max or (sample != np.rint(sample)).any():
                raise DataError(
                    f"{name} becomes numbers from {sample.min():g} to {sample.max():g}, the model takes "
                    f"{dtype}; set `scale = 1.0`, `mean = [0.0]` and `std = [1.0]` in [preprocess] of "
                    f"model.toml"
                )
        return sample.astype(dtype)


def find_picture_input(
    inputs: Sequence[TensorSpec], steps: Preprocess, name: str = ""
) -> PictureInput | None:
    """Returns the only input of rank 4, or the one of this name; None if there is none or are several."""
    found = [spec for spec in inputs if len(spec.shape) == 4 and (not name or spec.name == name)]
    return PictureInput(found[0], steps) if len(found) == 1 else None


def require_picture_input(inputs: Sequence[TensorSpec], steps: Preprocess, what: str) -> PictureInput:
    """Returns the only input of a model, of rank 4.

    Args:
        inputs: What the model takes.
        steps: How pictures are prepared.
        what: The data, for the message: "an image folder".

    Raises:
        DataError: The model takes something else.
    """
    found = find_picture_input(inputs, steps)
    if found is None or len(inputs) != 1:
        wanted = ", ".join(str(spec) for spec in inputs)
        raise DataError(f"{what} feeds one input of rank 4, the model takes {wanted}; give .npz files")
    return found


def open_pictures(
    images: Sequence[StoredFile], name: str, inputs: Sequence[TensorSpec], size: int, steps: Preprocess
) -> Batches:
    """Returns pictures in batches, decoded in threads.

    Raises:
        DataError: The model takes no pictures, or leaves their size open.
    """
    taken = require_picture_input(inputs, steps, "an image folder")
    taken.refuse_open_size(size)

    def read(image: StoredFile) -> NDArray[Any]:
        with image.open() as stream:
            return taken.read(stream, image.name)

    def read_batch(start: int) -> Feed:
        group = images[start : start + size]
        samples = [read(image) for image in group]
        for image, sample in zip(group, samples, strict=True):
            _refuse_other_size(image, sample, samples[0])
        where = f"{group[0].name} to {group[-1].base}"
        return Feed({taken.spec.name: np.stack(samples)}, where, len(group), _shorten(group, name))

    def part(start: int, step: int) -> Iterator[Feed]:
        return Threads().map(read_batch, range(start * size, len(images), step * size))

    digest = f"{hash_files(images)}/{size}/{steps}"
    origin = f"{name} ({format_count(len(images), 'image')})"
    return Batches(
        lambda: part(0, 1),
        origin,
        len(images),
        digest,
        preprocess=steps,
        feed_samples=size,
        part=part,
    )


def _shorten(images: Sequence[StoredFile], folder: str) -> tuple[str, ...]:
    """Returns the names of pictures without that of the folder which holds them."""
    return tuple(image.name.removeprefix(f"{folder}/") for image in images)


def _refuse_other_size(image: StoredFile, sample: NDArray[Any], first: NDArray[Any]) -> None:
    if sample.shape != first.shape:
        raise DataError(
            f"{image.name} becomes an array of shape {show_shape(sample.shape)}, others in its batch have "
            f"{show_shape(first.shape)}; set `crop`, or another `resize_mode`, in [preprocess] of model.toml"
        )
