"""The kinds of calibration data that a user may name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.arrays import (
    count_samples,
    hash_array_file,
    hash_folder,
    open_array_file,
    open_feed_folder,
    refuse_devices,
)
from trtq.calibrators.batches import Batches, Feed, check_batches
from trtq.errors import DataError, TrtqError
from trtq.files import refuse_damage
from trtq.models.preprocess import SUFFIXES, Preprocess, read_image
from trtq.models.script import iterate_in_place, load_function, run_in_place
from trtq.models.signature import TensorSpec, show_shape
from trtq.numbers import format_count
from trtq.workers import Threads

_MOST_RANDOM = 1 << 30
ACCEPTED_DATA = (
    "an .npz or .npy whose arrays have a leading sample axis, a folder of .npz files (each one feed with its "
    "batch axis), a folder of images, script.py:function that yields dicts of arrays, or a .json of inputs "
    "saved by Polygraphy"
)


def open_batches(
    source: str,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    *,
    preprocess: Preprocess | None = None,
    extra: Sequence[str] = (),
) -> Batches:
    """Returns the checked stream of the data that `source` names.

    Args:
        source: A path, or `script.py:function`; see `ACCEPTED_DATA`.
        inputs: What the model takes. Where its batch axis has a fixed size, that is the batch size, and
            samples that do not fill a last batch are left out.
        batch_size: Samples a batch for data with a sample axis.
        preprocess: How pictures are prepared.
        extra: Names of further arrays that the data may have, such as labels.

    Raises:
        DataError: There is no such data, or it is of no known kind. While it is read: see `check_batches`.
    """
    found = _open(source, inputs, batch_size, preprocess, extra)
    place = str(Path(source).absolute())  # another process may have another working folder
    again = partial(open_batches, place, inputs, batch_size, preprocess=preprocess, extra=extra)
    return replace(found, reopen=again)


def _open(
    source: str,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    preprocess: Preprocess | None,
    extra: Sequence[str],
) -> Batches:
    size, fixed = _find_batch_size(inputs, batch_size)
    names = [spec.name for spec in inputs]
    script, separator, function = source.rpartition(":")
    if separator and script.endswith(".py"):
        return check_batches(_from_script(Path(script), function), inputs, extra)
    path = Path(source)
    if not path.exists():
        raise DataError(f"there is no calibration data {path}; give {ACCEPTED_DATA}")
    refuse_devices([path])
    if path.suffix == ".json" and path.is_file():
        return check_batches(_from_polygraphy(path), inputs, extra)
    if path.is_dir() and any(path.glob("*.npz")):
        return check_batches(open_feed_folder(path), inputs, extra)
    if path.is_dir():
        batches = _from_image_folder(path, inputs, size, preprocess or Preprocess())
    elif path.suffix in (".npz", ".npy"):
        batches = open_array_file(path, names, size)
    else:
        raise DataError(f"{path} is no kind of data that trtq reads; give {ACCEPTED_DATA}")
    return check_batches(_keep_full_batches(batches, size) if fixed else batches, inputs, extra)


def make_random_batches(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], count: int
) -> Batches:
    """Returns made-up feeds: normal numbers for floats, 0 and 1 for the rest. Ranges from them mean nothing.

    Open dims of inputs that `shapes` does not name become 1.

    Raises:
        DataError: An input has too many elements.
    """
    sizes = {
        spec.name: tuple(shapes.get(spec.name) or (dim if isinstance(dim, int) else 1 for dim in spec.shape))
        for spec in inputs
    }

    for spec in inputs:
        num_elements = math.prod(sizes[spec.name])
        if num_elements > _MOST_RANDOM:
            shown = show_shape(sizes[spec.name])
            raise DataError(
                f"input {spec.name!r} has shape {shown}: {num_elements} random numbers "
                f"are too many to make up; give real data, or smaller sizes for its open dims"
            )

    def draw(rng: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
        is_float, size = spec.dtype.startswith(("float", "bfloat")), sizes[spec.name]
        return np.asarray(rng.standard_normal(size) if is_float else rng.integers(0, 2, size), spec.dtype)

    def read() -> Iterator[Feed]:
        rng = np.random.default_rng(0)
        for index in range(count):
            yield Feed({spec.name: draw(rng, spec) for spec in inputs}, f"random feed {index}", num_samples)

    num_samples = max((size[0] for size in sizes.values() if size), default=1) or 1
    digest = f"random/{count}/{sorted(sizes.items())}"
    again = partial(make_random_batches, inputs, shapes, count)
    return Batches(read, "random numbers", count * num_samples, digest, is_random=True, reopen=again)


def _find_batch_size(inputs: Sequence[TensorSpec], wanted: int) -> tuple[int, bool]:
    """Returns the batch size to use, and whether the model fixes it."""
    fixed = [spec.shape[0] for spec in inputs if spec.shape and isinstance(spec.shape[0], int)]
    return (int(fixed[0]), True) if fixed else (wanted, False)


def _keep_full_batches(batches: Batches, size: int) -> Batches:
    total = batches.num_samples
    if total is not None and total < size:
        raise DataError(f"{batches.origin} holds {total} samples, the model takes batches of exactly {size}")
    batches = batches.changed(lambda feeds: (feed for feed in feeds if feed.num_samples == size))
    if total is None or total % size == 0:
        return batches
    left_out = f"without the last {total % size} of {total} samples, which fill no batch of {size}"
    origin = f"{batches.origin} ({left_out})"
    return replace(batches, origin=origin, num_samples=total - total % size, left_out=total % size)


def _from_image_folder(
    folder: Path, inputs: Sequence[TensorSpec], size: int, preprocess: Preprocess
) -> Batches:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = sorted(path for path in found if not path.is_dir())
    refuse_devices(images)
    if not images:
        raise DataError(f"{folder} holds neither .npz files nor images ({', '.join(SUFFIXES)})")
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        wanted = ", ".join(str(spec) for spec in inputs)
        raise DataError(
            f"an image folder feeds one input of rank 4, the model takes {wanted}; give .npz files"
        )
    spec = inputs[0]
    height, width = spec.shape[2:] if preprocess.layout == "NCHW" else spec.shape[1:3]
    target = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if target is None and not preprocess.resize and not preprocess.crop and size > 1:
        raise DataError(
            f"the model leaves the size of {spec.name!r} {show_shape(spec.shape)} open; set `resize` in "
            f"[preprocess] of model.toml so that pictures fit into batches, or use a batch size of 1"
        )

    def read_batch(start: int) -> Feed:
        group = images[start : start + size]
        samples = [read_image(path, preprocess, target) for path in group]
        for path, sample in zip(group, samples, strict=True):
            _check_sample(sample, samples[0], spec.dtype, path)
        array = np.stack(samples).astype(spec.dtype)
        names = tuple(str(path.relative_to(folder)) for path in group)
        return Feed({spec.name: array}, f"{group[0]} to {group[-1].name}", len(group), names)

    def part(start: int, step: int) -> Iterator[Feed]:
        return Threads().map(read_batch, range(start * size, len(images), step * size))

    digest = f"{hash_folder(images)}/{size}/{preprocess}"
    return Batches(
        lambda: part(0, 1),
        f"{folder} ({format_count(len(images), 'image')})",
        len(images),
        digest,
        preprocess=preprocess,
        feed_samples=size,
        part=part,
    )


def _check_sample(sample: NDArray[Any], first: NDArray[Any], dtype: str, path: Path) -> None:
    if sample.shape != first.shape:
        raise DataError(
            f"{path} becomes an array of shape {show_shape(sample.shape)}, others in its batch have "
            f"{show_shape(first.shape)}; set `crop`, or another `resize_mode`, in [preprocess] of model.toml"
        )
    if np.issubdtype(np.dtype(dtype), np.integer):
        limits = np.iinfo(dtype)
        if sample.min() < limits.min or sample.max() > limits.max or (sample != np.rint(sample)).any():
            raise DataError(
                f"{path} becomes numbers from {sample.min():g} to {sample.max():g}, the model takes {dtype}; "
                f"set `scale = 1.0`, `mean = [0.0]` and `std = [1.0]` in [preprocess] of model.toml"
            )


def _from_polygraphy(path: Path) -> Batches:
    work = "reading inputs saved by Polygraphy"
    reader = lazy.require("polygraphy.json", None, work)
    with refuse_damage(DataError, f"{path} is not a file of inputs saved by Polygraphy"):
        loaded = reader.load_json(str(path))
        if not isinstance(loaded, list) or not all(isinstance(feed, Mapping) for feed in loaded):
            raise DataError(f"{path} holds no list of feeds; save one with `polygraphy run --save-inputs`")
        feeds = [{name: np.asarray(value) for name, value in feed.items()} for feed in loaded]

    def read() -> Iterator[Feed]:
        for index, arrays in enumerate(feeds):
            yield Feed(arrays, f"{path}, feed {index}", count_samples(arrays))

    return Batches(read, str(path), sum(map(count_samples, feeds)), hash_array_file(path))


def _from_script(script: Path, function: str) -> Batches:
    """Runs the user's own code: its errors pass through with the script named."""
    call = load_function(script, function)

    def read() -> Iterator[Feed]:
        try:
            with run_in_place(script):
                items = call()
            for index, arrays in enumerate(iterate_in_place(script, items)):
                if not isinstance(arrays, Mapping):
                    raise DataError(
                        f"{script}:{function} must yield dicts of arrays, item {index} is "
                        f"{type(arrays).__name__}"
                    )
                arrays = {name: np.array(value) for name, value in arrays.items()}  # it may reuse its own
                yield Feed(arrays, f"{script}:{function}, item {index}", count_samples(arrays))
        except TrtqError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{script}:{function} failed: {type(error).__name__}: {error}") from error

    digest = f"{hash_array_file(script)}/{function}"
    return Batches(read, f"{script}:{function}", None, None, script_digest=digest)
