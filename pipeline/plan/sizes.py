"""Sizes of the open dims of a model: of a batch, of sequences, and of a cache with what came before."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from trtq.errors import UsageError
from trtq.models.signature import TensorSpec, show_shape
from trtq.pipeline.graph.state import CacheAxes, Dim, find_batches, find_cache_axes, is_cache

_BOTH = re.compile(r"total|\+|kv_len|all_len|full", re.IGNORECASE)
"""In the names of dims that count what came before and what is new; `past_sequence_length + 1`."""

_MOST = (1 << 31) - 1


class _Dims(NamedTuple):
    """The open dims of inputs that count sequences, what came before, and what is new."""

    batch: Collection[Dim]
    past: Collection[Dim]
    new: Collection[Dim]
    has_cache: bool


@dataclass(frozen=True, slots=True)
class DynamicSizes:
    """Sizes of open dims; the whole shapes of inputs win.

    Attributes:
        batch: Of the first axis; in a cache, of that which counts sequences.
        seq: Of all others where neither `past` nor `new` is given.
        shapes: Of inputs, by name.
        past: Of the positions in a cache, such as `past_key_values`; None: `seq`.
        new: Of the positions that a run adds; None: `seq`. A mask covers both.
    """

    batch: int = 1
    seq: int | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    past: int | None = None
    new: int | None = None

    def shapes_of(self, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every input.

        Raises:
            UsageError: A size is not positive or of no axis, a shape does not fit, an open dim has no size,
                or a past is given for a model without a cache.
        """
        for name, size in (("batch", self.batch), *self._list_lengths()):
            least = 0 if name == "past" else 1
            if size is not None and size < least:
                raise UsageError(f"--{name} must be at least {least}, got {size}")
            if size is not None and size > _MOST:
                raise UsageError(f"--{name} must be at most {_MOST}, which TensorRT can count to, got {size}")
        shapes = self._find_shapes(inputs)
        for name, size in (("batch", self.batch if self.batch > 1 else None), *self._list_lengths()):
            larger: dict[str, Any] = {} if size is None else {name: size + 1}
            if (
                size is not None
                and not self.shapes
                and replace(self, **larger)._find_shapes(inputs) == shapes
            ):
                listed = ", ".join(f"{item.name!r} is {show_shape(item.shape)}" for item in inputs)
                raise UsageError(
                    f"--{name} {size} is not the size of any dynamic axis: {listed or 'there are no inputs'}"
                )
        return shapes

    def _list_lengths(self) -> list[tuple[str, int | None]]:
        return [(name, getattr(self, name)) for name in ("seq", "past", "new")]

    def _find_shapes(self, inputs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
        """Returns the shapes; sizes that nothing has are passed over."""
        names = [item.name for item in inputs]
        if unknown := [name for name in self.shapes if name not in names]:
            raise UsageError(
                f"shapes are given for {unknown[0]!r}, but the model's inputs are {', '.join(names)}"
            )
        caches = [item for item in inputs if is_cache(item.name, item.shape)]
        if self.past is not None and not caches:
            raise UsageError(f"--past is for a model with a cache, and the inputs are {', '.join(names)}")
        others = [item for item in inputs if item not in caches]
        batches = find_batches(item.shape for item in others)
        axes = {item.name: find_cache_axes(item.name, item.shape, batches) for item in caches}
        past = {item.shape[place] for item in caches if (place := axes[item.name].positions) is not None}
        new = {dim for item in others if "mask" not in item.name for dim in item.shape[1:]} - batches
        dims = _Dims(batches - {None}, past - {None}, new, has_cache=bool(caches))
        sizes = {
            item.name: [self._size(item, axis, dims) for axis in range(len(item.shape))] for item in others
        }
        sizes |= {item.name: self._size_cache(item, axes[item.name]) for item in caches}
        return {item.name: self._require(item, sizes[item.name], has_cache=bool(caches)) for item in inputs}

    def _size_cache(self, item: TensorSpec, axes: CacheAxes) -> list[int | None]:
        if axes.others and item.name not in self.shapes:
            raise UsageError(
                f"input {item.name!r} is {show_shape(item.shape)}, which does not tell the sizes of "
                f"all its dynamic dims; give --shapes {item.name}:..."
            )
        sizes = {axes.batch: self.batch, axes.positions: self._past}
        return [dim if isinstance(dim, int) else sizes.get(axis) for axis, dim in enumerate(item.shape)]

    def _size(self, item: TensorSpec, axis: int, dims: _Dims) -> int | None:
        """Returns the size of an axis of an input that is no cache; what is unknown in a mask covers both."""
        dim = item.shape[axis]
        if isinstance(dim, int):
            return dim
        is_list = len(item.shape) == 1 and dim in {*dims.past, *dims.new}
        if dim in dims.batch or (axis == 0 and not is_list):
            return self.batch
        if dim in dims.past:
            return self._past
        is_both = bool(_BOTH.search(dim or "")) or ("mask" in item.name.lower() and dim not in dims.new)
        if not dims.has_cache or not is_both:
            return self._new
        return None if self._past is None or self._new is None else self._past + self._new

    @property
    def _past(self) -> int | None:
        return self.seq if self.past is None else self.past

    @property
    def _new(self) -> int | None:
        return self.seq if self.new is None else self.new

    def _require(self, item: TensorSpec, sizes: Sequence[int | None], *, has_cache: bool) -> tuple[int, ...]:
        """Returns the shape that is given, or else these sizes.

        Raises:
            UsageError: The shape does not fit, or a size is missing.
        """
        given, shown = self.shapes.get(item.name), show_shape(item.shape)
        if given is not None:
            if not item.fits(given):
                raise UsageError(
                    f"shape {show_shape(given)} does not fit input {item.name!r}, which is {shown}"
                )
            return given
        if None in sizes:
            wanted = "--past and --new" if has_cache else "--seq"
            raise UsageError(
                f"input {item.name!r} is {shown}; give {wanted} for its dynamic dims, or --shapes "
                f"{item.name}:..."
            )
        return tuple(size for size in sizes if size is not None)
