"""Calibration and evaluation data as a lazy stream of feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trtq.errors import DataError
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec, show_shape
from trtq.numbers import format_count

ONE_BATCH_EACH = "for inputs without an axis of samples give a folder of .npz files, one batch each"

_ADVICE = "say how many samples are used with --calib-samples (--eval-samples for evaluation data)"
_MOST_FEEDS = 20_000
"""Of data whose length nobody knows, where no number of samples is given."""
_NUMBERS = (
    "float16",
    "float32",
    "float64",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Feed:
    """One run of the model.

    Attributes:
        arrays: The inputs by name, and further arrays that were asked for (labels).
        source: Where it comes from, for messages: `calib/0007.npz` or `calib.npz (samples 8 to 15)`.
        num_samples: How many samples it holds.
        names: Of the samples, such as files of pictures; empty if they have none.
    """

    arrays: Mapping[str, NDArray[Any]]
    source: str
    num_samples: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Batches:
    """A stream of feeds that can be read again and again; at most a few are in memory at a time.

    Attributes:
        read: Starts a new pass.
        origin: What was opened, for messages.
        num_samples: How many samples there are; None if that is not known before reading (a script).
        content: The digest, or a function that waits for it.
        script_digest: Of the code that makes what has no digest; it may yield other data all the same.
        is_random: Whether these are made-up numbers.
        preprocess: How these pictures were prepared for the model; None: they are no pictures.
        left_out: How many samples at the end fill no batch of the model's fixed size and are left out.
        feed_samples: How many samples a feed holds at most, where they lie along the first axis of every
            array and may be run in smaller feeds; None if they may not. With `part`, all but the last hold so
            many.
        part: Starts a pass over every n-th feed from one on (start, step), without reading the others; None
            if that is not possible.
        files: Start a pass over the feeds of one file each, which make up the whole; empty: not known.
        reopen: Opens the same stream in another process, on another machine; it pickles. None if that is not
            possible.
    """

    read: Callable[[], Iterator[Feed]]
    origin: str
    num_samples: int | None
    content: str | Callable[[], str] | None = None
    is_random: bool = False
    preprocess: Preprocess | None = None
    left_out: int = 0
    feed_samples: int | None = None
    part: Callable[[int, int], Iterator[Feed]] | None = None
    script_digest: str | None = None
    files: tuple[Callable[[], Iterator[Feed]], ...] = ()
    reopen: Callable[[], Batches] | None = None

    def __reduce__(self) -> tuple[Callable[[Callable[[], Batches]], Batches], tuple[Callable[[], Batches]]]:
        """Pickles how the stream is opened, not what it holds.

        Raises:
            DataError: Only this process has the data.
        """
        if self.reopen is None:
            raise DataError(
                f"{self.origin} is known to this process alone, so that no other can read it; give the path "
                f"of data, or leave out --workers"
            )
        return _open_again, (self.reopen,)

    @property
    def digest(self) -> str | None:
        """Of the content, to recognize unchanged data; None if there is none (a script)."""
        return self.content() if callable(self.content) else self.content

    def __iter__(self) -> Iterator[Feed]:
        """Starts a new pass."""
        return self.read()

    def every(self, start: int, step: int) -> Iterator[Feed]:
        """Returns a pass over the feeds start, start + step, start + 2 step and so on."""
        if self.part is not None and (start, step) != (0, 1):
            return self.part(start, step)
        return islice(self.read(), start, None, step)

    def shard(self, index: int, count: int, skip: int = 0) -> Iterator[Feed]:
        """Returns a pass over part `index`, from 1, of `count` that make up the whole.

        Where there are as many files as parts, a part is every n-th file, and no other is read; else it is
        every n-th feed.

        Args:
            index: Which part.
            count: How many there are.
            skip: How many feeds of the part are left out at its beginning.
        """
        if 1 < count <= len(self.files):
            return islice(chain.from_iterable(read() for read in self.files[index - 1 :: count]), skip, None)
        return self.every(index - 1 + skip * count, count)

    def take_every(self, start: int, step: int) -> Batches:
        """Returns the stream of these feeds alone, as `every` reads them."""
        known, suffix = self.content, f"/{start}::{step}"
        return replace(
            self,
            read=partial(self.every, start, step),
            part=None,
            files=(),
            num_samples=None,
            content=(lambda: known() + suffix) if callable(known) else known and known + suffix,
            reopen=self.reopen and partial(_open_every, self.reopen, start, step),
        )

    def changed(self, change: Callable[[Iterator[Feed]], Iterator[Feed]]) -> Batches:
        """Returns the stream with `change` around every pass; it must treat each feed alone."""
        read, part = self.read, self.part

        def change_file(file: Callable[[], Iterator[Feed]]) -> Callable[[], Iterator[Feed]]:
            return lambda: change(file())

        return replace(
            self,
            read=lambda: change(read()),
            part=part and (lambda start, step: change(part(start, step))),
            files=tuple(map(change_file, self.files)),
            reopen=None,
        )

    def first(self, num_samples: int | None) -> Batches:
        """Returns the stream cut after this many samples, at the end of a feed; None: all of it.

        All that code makes, whose length nobody knows, may be without end. That is refused while reading.
        """
        again = self.reopen and partial(_open_first, self.reopen, num_samples)
        if num_samples is None and self.num_samples is None and self.content is None:
            limited = self.changed(lambda feeds: refuse_endless(feeds, self.origin))
            return replace(limited, reopen=again)
        if num_samples is None or (self.num_samples is not None and self.num_samples <= num_samples):
            return self
        part: Callable[[int, int], Iterator[Feed]] | None = None
        if self.part is not None and self.feed_samples is not None:
            whole, num_feeds = self.part, -(-num_samples // self.feed_samples)

            def part(start: int, step: int) -> Iterator[Feed]:
                return islice(whole(start, step), max(0, -(-(num_feeds - start) // step)))

        known, suffix = self.content, f":{num_samples}"
        return replace(
            self,
            read=lambda: take_samples(self.read(), num_samples),
            num_samples=None if self.num_samples is None else min(self.num_samples, num_samples),
            content=(lambda: known() + suffix) if callable(known) else known and known + suffix,
            part=part,
            files=(),
            script_digest=self.script_digest and self.script_digest + suffix,
            reopen=again,
        )


def _open_again(reopen: Callable[[], Batches]) -> Batches:
    return replace(reopen(), reopen=reopen)


def _open_every(reopen: Callable[[], Batches], start: int, step: int) -> Batches:
    return reopen().take_every(start, step)


def _open_first(reopen: Callable[[], Batches], num_samples: int | None) -> Batches:
    return reopen().first(num_samples)


def take_samples(feeds: Iterable[Feed], num_samples: int) -> Iterator[Feed]:
    """Yields the first feeds with at least so many samples; no further one is read."""
    seen = 0
    for feed in feeds:
        yield feed
        seen += feed.num_samples
        if seen >= num_samples:
            return


def refuse_endless(feeds: Iterable[T], origin: str, advice: str = _ADVICE) -> Iterator[T]:
    """Yields the feeds; DataError for more of them than any script would yield that ends."""
    for index, feed in enumerate(feeds):
        if index >= _MOST_FEEDS:
            raise DataError(
                f"{origin} has yielded {_MOST_FEEDS:,} feeds and may never end; let it return after the last "
                f"one, or {advice}"
            )
        yield feed


def check_batches(batches: Batches, inputs: Sequence[TensorSpec], extra: Sequence[str] = ()) -> Batches:
    """Returns the stream with every feed cast to the model's types and checked before it is handed on.

    A feed may have the arrays named `extra`, such as labels; they are not checked.

    Raises:
        DataError: While reading: no feed at all, or as `check_feed`.
    """

    def check(feeds: Iterator[Feed]) -> Iterator[Feed]:
        for found in feeds:
            feed = cast_feed(found, inputs)
            check_feed(feed, inputs, extra)
            yield feed

    def read() -> Iterator[Feed]:
        first = None
        for first in checked.read():
            yield first
        if first is None:
            raise DataError(
                f"{batches.origin} yields no samples; give at least one, "
                f"and from a script a new iterator each time"
            )

    checked = batches.changed(check)
    return replace(checked, read=read, reopen=batches.reopen)


def cast_feed(feed: Feed, inputs: Sequence[TensorSpec]) -> Feed:
    """Returns a feed whose floats and whole numbers have the width and byte order that the model takes.

    What would not fit stays as it is, and so do whole numbers for floats: pictures have to be scaled.
    """
    arrays = {spec.name: _cast(feed.arrays[spec.name], spec) for spec in inputs if spec.name in feed.arrays}
    return replace(feed, arrays={**feed.arrays, **arrays})


def _cast(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    kinds = next((kinds for kinds in ("f", "iu") if array.dtype.kind in kinds), "")
    if spec.dtype not in _NUMBERS or np.dtype(spec.dtype).kind not in kinds:
        return array
    if array.dtype == spec.dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(spec.dtype)
    fits = np.isfinite(cast) == np.isfinite(array) if kinds == "f" else cast == array
    return cast if fits.all() else array


def check_feed(feed: Feed, inputs: Sequence[TensorSpec], extra: Sequence[str] = ()) -> None:
    """Raises DataError for a missing or unknown name, another dtype or shape, NaN or infinity.

    -inf may stand in an input without values above 0, which is an additive mask. An axis behind that of the
    samples may be empty, as that of a cache is at first.
    """
    names = [spec.name for spec in inputs]
    if missing := [name for name in names if name not in feed.arrays]:
        raise DataError(
            f"{feed.source} has no array {missing[0]!r}; it has {', '.join(sorted(feed.arrays)) or 'none'}, "
            f"the model takes {', '.join(names)}"
        )
    if unknown := [name for name in feed.arrays if name not in names and name not in extra]:
        also = "".join(f", and labels are read from {name!r}" for name in extra)
        raise DataError(
            f"{feed.source} has an array {unknown[0]!r} that the model does not take; "
            f"its inputs are {', '.join(names) or 'none'}{also}"
        )
    for spec in inputs:
        _check_array(feed, spec)


def _advise_type(array: NDArray[Any], spec: TensorSpec) -> str:
    """Returns how to convert an array without making other numbers of it."""
    takes_floats = "float" in spec.dtype
    is_picture = array.dtype == np.uint8 and takes_floats
    if not takes_floats and array.dtype.kind == "f" and (array != np.rint(array)).any():
        return (
            f"its values from {array.min():g} to {array.max():g} are not whole, and a cast would cut them "
            "off; give what the model takes, such as pixels from 0 to 255"
        )
    words = f"convert it with .astype({spec.dtype!r})"
    return f"{words}, and scale it as for the model's training, such as / 255" if is_picture else words


def _advise_shape(array: NDArray[Any], spec: TensorSpec) -> str:
    """Returns how to bring an array into the shape of an input."""
    if len(spec.shape) < 2 and array.ndim == len(spec.shape) + 1:
        return ONE_BATCH_EACH
    if len(spec.shape) not in (3, 4):
        return "give the samples as the model takes them"
    keys = "`resize`, `channels` and `layout` in [preprocess] of model.toml"
    return f"resize the samples, or set {keys} for images"


def _check_array(feed: Feed, spec: TensorSpec) -> None:
    array, what = feed.arrays[spec.name], f"input {spec.name!r} of {feed.source}"
    if array.dtype.name != spec.dtype:
        raise DataError(
            f"{what} is {array.dtype.name}, the model expects {spec.dtype}; {_advise_type(array, spec)}"
        )
    if not spec.fits(array.shape):
        raise DataError(
            f"{what} has shape {show_shape(array.shape)}, the model expects {show_shape(spec.shape)}; "
            f"{_advise_shape(array, spec)}"
        )
    if array.shape[:1] == (0,) and spec.shape[:1] != (0,):  # else a cache that holds nothing yet
        raise DataError(f"{what} is empty: shape {show_shape(array.shape)}")
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        bad = ~np.isfinite(array)
        if not np.any(array > 0) and not np.isnan(array).any():
            return  # an additive mask: what is -inf gets no attention
        sample = int(np.argwhere(bad)[0][0]) if array.ndim else 0
        raise DataError(
            f"{what} has {format_count(int(bad.sum()), 'NaN or infinite value')}, the first in its sample "
            f"{sample}; clean the data"
        )
