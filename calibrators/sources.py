"""The kinds of calibration data that a user may name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.arrays import count_samples, open_array_file, open_feed_files
from trtq.calibrators.batches import Batches, Feed, check_batches
from trtq.calibrators.data.files import (
    Listed,
    LocalFile,
    LocalFolder,
    StoredFile,
    StoredFolder,
    find_local,
    find_suffix,
    refuse_devices,
)
from trtq.calibrators.data.pictures import open_pictures, require_picture_input
from trtq.calibrators.data.python import Passes, copy_array, open_iterable
from trtq.calibrators.data.remote import RemoteFolder, open_remote
from trtq.calibrators.data.samples import SampleFiles, Wanted, batch_files
from trtq.calibrators.data.table import PARQUET_SUFFIXES, find_dataset_files, open_table, table_has_pictures
from trtq.calibrators.data.tar import is_tar, read_tar, tar_has_pictures
from trtq.calibrators.data.video import VIDEO_SUFFIXES, read_frames
from trtq.errors import DataError, TrtqError
from trtq.files import refuse_damage
from trtq.models.address import is_address, show_address, strip_local
from trtq.models.preprocess import SUFFIXES, Preprocess
from trtq.models.script import iterate_in_place, load_function, run_in_place
from trtq.models.signature import TensorSpec, show_shape
from trtq.models.spec import Data, names_script

_MOST_RANDOM = 1 << 30
_Place: TypeAlias = StoredFile | LocalFolder | RemoteFolder | Listed
ACCEPTED_DATA = (
    "an .npz or .npy file with the samples on the first axis, a folder of .npz files (one batch "
    "each), a folder of images, tar shards, Parquet files, videos, a .json of inputs saved by "
    "Polygraphy, script.py:function that yields dicts of arrays, or a URL of any of these except a "
    "script"
)


@dataclass(frozen=True, slots=True)
class _Request:
    """How data is to be read.

    Attributes:
        wanted: The arrays.
        size: Samples a batch.
        is_fixed: Whether the model fixes that.
        steps: How pictures are prepared.
    """

    wanted: Wanted
    size: int
    is_fixed: bool
    steps: Preprocess


def open_batches(
    source: Data,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    *,
    preprocess: Preprocess | None = None,
    extra: Sequence[str] = (),
) -> Batches:
    """Returns the checked stream of the data that `source` names.

    Args:
        source: A path, a URL, or `script.py:function`; see `ACCEPTED_DATA`. Or what yields items in Python;
            see `open_iterable`.
        inputs: What the model takes. Where its batch axis has a fixed size, that is the batch size, and
            samples that do not fill a last batch are left out.
        batch_size: Samples a batch for data with a sample axis.
        preprocess: How pictures are prepared.
        extra: Names of further arrays that the data may have, such as labels.

    Raises:
        DataError: There is no such data, or it is of no known kind. While it is read: see `check_batches`.
        MissingDependency: What reads it is not installed.
    """
    found = check_batches(_open(source, inputs, batch_size, preprocess, extra), inputs, extra)
    if not isinstance(source, str):
        return found
    place = source if is_address(source) else str(Path(strip_local(source)).absolute())
    again = partial(open_batches, place, inputs, batch_size, preprocess=preprocess, extra=extra)
    return replace(found, reopen=again)  # by a process that may have another working folder


def _open(
    source: Data,
    inputs: Sequence[TensorSpec],
    batch_size: int,
    preprocess: Preprocess | None,
    extra: Sequence[str],
) -> Batches:
    size, is_fixed = _find_batch_size(inputs, batch_size)
    request = _Request(Wanted(inputs, extra), size, is_fixed, preprocess or Preprocess())
    if not isinstance(source, str):
        return open_iterable(source, request.wanted)
    if is_address(source) and names_script(source):
        raise DataError(f"the script {show_address(source)} is not run from there; copy it to this machine")
    script, separator, function = source.rpartition(":")
    if separator and script.endswith(".py"):
        return _from_script(Path(script), function)
    return _open_place(_find_place(source), request)


def _find_place(source: str) -> _Place:
    """Returns the file, or what holds several."""
    if is_address(source):
        return open_remote(source)
    path = strip_local(source)
    if (place := find_local(path)) is None:
        raise DataError(f"there is no data {Path(path)}; give {ACCEPTED_DATA}")
    return place


def _open_place(place: _Place, request: _Request) -> Batches:
    if isinstance(place, LocalFolder | RemoteFolder):
        return _open_folder(place, request)
    if isinstance(place, Listed):
        return _open_files(place.files, place.name, request)
    if find_suffix(place) == ".json":
        return _from_polygraphy(place)
    if find_suffix(place) in (".npz", ".npy"):
        names = [spec.name for spec in request.wanted.inputs]
        return _keep_full_batches(open_array_file(place, names, request.size), request)
    return _open_files([place], place.name, request)


def _open_folder(folder: StoredFolder, request: _Request) -> Batches:
    if dataset := find_dataset_files(folder.name, folder.list()):
        return _open_table(dataset, folder.name, request)
    if files := [file for file in folder.list(deep=True) if _find_kind(file)]:
        return _open_files(files, folder.name, request)
    raise DataError(
        f"{folder.name} holds neither .npz files nor images ({', '.join(SUFFIXES)}), tar archives, Parquet "
        f"files or videos; give {ACCEPTED_DATA}"
    )


def _find_kind(file: StoredFile) -> str:
    """Returns what a file holds by its name; empty if that is not known."""
    if is_tar(file):
        return "tar archives"
    if file.base.lower().endswith((".tar.bz2", ".tar.xz", ".tar.zst")):
        return "archives that are not read"
    return next((kind for kind, suffixes in _KINDS.items() if find_suffix(file) in suffixes), "")


def _open_files(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    """Returns the samples of files of one kind."""
    refuse_devices(file for file in files if isinstance(file, LocalFile))
    kinds = sorted({_find_kind(file) for file in files})
    if len(kinds) > 1:
        shown = " and ".join(kind or "other files" for kind in kinds)
        raise DataError(f"{name} holds {shown}; give files of one kind only")
    open_kind = _OPENERS.get(kinds[0])
    if open_kind is None:
        raise DataError(f"{name} is not a kind of data that trtq reads; give {ACCEPTED_DATA}")
    return open_kind(files, name, request)


def _open_feeds(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    return open_feed_files(files, name)


def _open_images(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    batches = open_pictures(files, name, request.wanted.inputs, request.size, request.steps)
    return _keep_full_batches(batches, request)


def _open_table(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    batches = _batch(open_table(files, name, request.wanted, request.steps), request)
    has_pictures = table_has_pictures(files[0], request.wanted)
    return replace(batches, preprocess=request.steps if has_pictures else None)


def _open_tar(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    read = partial(read_tar, wanted=request.wanted, steps=request.steps)
    batches = _batch(SampleFiles(name, files, read, settings=str(request.steps)), request)
    return replace(batches, preprocess=request.steps if tar_has_pictures(files[0]) else None)


def _open_videos(files: Sequence[StoredFile], name: str, request: _Request) -> Batches:
    taken = require_picture_input(request.wanted.inputs, request.steps, "a video")
    taken.refuse_open_size(request.size)
    source = SampleFiles(name, files, partial(read_frames, taken=taken), settings=str(request.steps))
    return replace(_batch(source, request), preprocess=request.steps)


def _batch(source: SampleFiles, request: _Request) -> Batches:
    return _keep_full_batches(batch_files(source, request.size, is_fixed=request.is_fixed), request)


_KINDS = {
    "feeds": (".npz",),
    "images": SUFFIXES,
    "tables": PARQUET_SUFFIXES,
    "videos": VIDEO_SUFFIXES,
    "image formats that are not read": (".avif", ".gif", ".heic", ".jfif", ".jp2", ".ppm"),
}
_OPENERS: Mapping[str, Callable[[Sequence[StoredFile], str, _Request], Batches]] = {
    "feeds": _open_feeds,
    "images": _open_images,
    "tables": _open_table,
    "tar archives": _open_tar,
    "videos": _open_videos,
}


def make_random_batches(
    inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]], count: int
) -> Batches:
    """Returns made-up feeds: normal numbers for floats, 0 and 1 for the rest. Ranges from them mean nothing.

    A mask of attention hides nothing: how much of a cache it shows decides what a decoder reads. Open dims
    of inputs that `shapes` does not name become 1.

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
                f"input {spec.name!r} has shape {shown}: {num_elements} random numbers are too many to "
                "generate; give real data, or smaller sizes for its dynamic dims"
            )

    def draw(rng: np.random.Generator, spec: TensorSpec) -> NDArray[Any]:
        is_float, size = spec.dtype.startswith(("float", "bfloat")), sizes[spec.name]
        values = rng.standard_normal(size) if is_float else rng.integers(0, 2, size)
        if not is_float and "attention_mask" in spec.name:
            values = np.ones(size)
        return np.asarray(values, spec.dtype)

    def read() -> Iterator[Feed]:
        rng = np.random.default_rng(0)
        for index in range(count):
            yield Feed({spec.name: draw(rng, spec) for spec in inputs}, f"random feed {index}", num_samples)

    num_samples = max((size[0] for size in sizes.values() if size), default=1) or 1
    digest = f"random/{count}/{sorted(sizes.items())}"
    again = partial(make_random_batches, inputs, shapes, count)
    return Batches(read, "random numbers", count * num_samples, digest, is_random=True, reopen=again)


def _find_batch_size(inputs: Sequence[TensorSpec], wanted: int) -> tuple[int, bool]:
    """Returns the batch size to use, and whether the model fixes it; an axis of 0 has no samples."""
    fixed = (spec.shape[0] for spec in inputs if spec.shape)
    size = next((item for item in fixed if isinstance(item, int) and item), None)
    return (wanted, False) if size is None else (size, True)


def _keep_full_batches(batches: Batches, request: _Request) -> Batches:
    """Returns the batches that a model with a fixed size takes; all for another one."""
    total, size = batches.num_samples, request.size
    if not request.is_fixed:
        return batches
    if total is not None and total < size:
        raise DataError(f"{batches.origin} holds {total} samples, the model takes batches of exactly {size}")
    if total is None:
        batches = replace(batches, read=partial(_refuse_none_full, batches.read, size, batches.origin))
    batches = batches.changed(lambda feeds: (feed for feed in feeds if feed.num_samples == size))
    if total is None or total % size == 0:
        return batches
    left_out = f"without the last {total % size} of {total} samples, which do not fill a batch of {size}"
    origin = f"{batches.origin} ({left_out})"
    return replace(batches, origin=origin, num_samples=total - total % size, left_out=total % size)


def _refuse_none_full(read: Callable[[], Iterator[Feed]], size: int, origin: str) -> Iterator[Feed]:
    """Yields the feeds of a whole pass; DataError at its end if none had the size of a batch."""
    num_samples, is_full = 0, False
    for feed in read():
        yield feed
        num_samples, is_full = num_samples + feed.num_samples, is_full or feed.num_samples == size
    if num_samples and not is_full:
        raise DataError(f"{origin} holds {num_samples} samples, the model takes batches of exactly {size}")


def _from_polygraphy(file: StoredFile) -> Batches:
    """Reads the file as a whole: its format allows nothing else."""
    reader = lazy.require("polygraphy.json", None, "reading inputs saved by Polygraphy")
    with refuse_damage(DataError, f"{file.name} is not a file of inputs saved by Polygraphy"):
        with file.open() as stream:
            loaded = reader.from_json(stream.read().decode())
        if not isinstance(loaded, list) or not all(isinstance(feed, Mapping) for feed in loaded):
            raise DataError(
                f"{file.name} contains no list of feeds; save one with `polygraphy run --save-inputs`"
            )
        feeds = [{name: np.asarray(value) for name, value in feed.items()} for feed in loaded]

    def read() -> Iterator[Feed]:
        for index, arrays in enumerate(feeds):
            yield Feed(arrays, f"{file.name}, feed {index}", count_samples(arrays))

    return Batches(read, file.name, sum(map(count_samples, feeds)), file.hash())


def _from_script(script: Path, function: str) -> Batches:
    """Runs the user's own code: its errors pass through with the script named."""
    call, passes = load_function(script, function), Passes(f"{script}:{function}")

    def read() -> Iterator[Feed]:
        try:
            with run_in_place(script):
                items = passes.start(call())
            for index, arrays in enumerate(iterate_in_place(script, items)):
                if not isinstance(arrays, Mapping):
                    raise DataError(
                        f"{script}:{function} must yield dicts of arrays, item {index} is "
                        f"{type(arrays).__name__}"
                    )
                if any(not isinstance(name, str) for name in arrays):
                    raise DataError(
                        f"{script}:{function}, item {index}: arrays have the names of inputs, got {[*arrays]}"
                    )
                where = f"{script}:{function}, item {index}"
                arrays = {name: copy_array(value, f"{name!r} of {where}") for name, value in arrays.items()}
                yield Feed(arrays, where, count_samples(arrays))
        except TrtqError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{script}:{function} failed: {type(error).__name__}: {error}") from error

    digest = f"{LocalFile(script).hash()}/{function}"
    return Batches(read, f"{script}:{function}", None, None, script_digest=digest)
