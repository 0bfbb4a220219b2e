"""Sizes of the open dims of a model: of a batch, of sequences, and of a cache with what came before."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from trtq.errors import UsageError
from trtq.models.signature import TensorSpec, show_shape

_PAST = re.compile(r"(^|[._/])(past|cache)|past_key|past_value|(key|value)_cache", re.IGNORECASE)
"""In the names of inputs that hold what came before; `past_key_values.0.key`, `cache_k`."""
_BOTH = re.compile(r"total|\+|kv_len|all_len|full", re.IGNORECASE)
"""In the names of dims that count what came before and what is new; `past_sequence_length + 1`."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of open dims; the whole shapes of inputs win.

    Attributes:
        batch: Of the first axis.
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
            UsageError: A size is not positive, a shape does not fit, an open dim has no size, or a past is
                given for a model without a cache.
        """
        for name in ("batch", "seq", "past", "new"):
            size, least = getattr(self, name), 0 if name == "past" else 1
            if size is not None and size < least:
                raise UsageError(f"--{name} must be at least {least}, got {size}")
        names = [item.name for item in inputs]
        if unknown := [name for name in self.shapes if name not in names]:
            raise UsageError(
                f"shapes are given for {unknown[0]!r}, but the model's inputs are {', '.join(names)}"
            )
        caches = [item for item in inputs if _PAST.search(item.name)]
        if self.past is not None and not caches:
            raise UsageError(f"--past is for a model with a cache, and the inputs are {', '.join(names)}")
        tokens = {dim for item in inputs if "mask" not in item.name for dim in item.shape[1:]}
        return {item.name: self._shape_of(item, tokens, bool(caches)) for item in inputs}

    def _shape_of(
        self, item: TensorSpec, tokens: Collection[int | str | None], has_cache: bool
    ) -> tuple[int, ...]:
        given, shown = self.shapes.get(item.name), show_shape(item.shape)
        if given is not None:
            if not item.fits(given):
                raise UsageError(
                    f"shape {show_shape(given)} does not fit input {item.name!r}, which is {shown}"
                )
            return given
        sizes = [
            dim if isinstance(dim, int) else self._size_of(item, dim, tokens, has_cache) for dim in item.shape
        ]
        if item.shape and not isinstance(item.shape[0], int):
            sizes[0] = self.batch
        if None in sizes:
            wanted = "--past and --new" if has_cache else "--seq"
            raise UsageError(
                f"input {item.name!r} is {shown}; give {wanted} for its open dims, "
                f"or --shapes {item.name}:..."
            )
        return tuple(size for size in sizes if size is not None)

    def _size_of(
        self, item: TensorSpec, dim: str | None, tokens: Collection[int | str | None], has_cache: bool
    ) -> int | None:
        """Returns the size of one open dim: of what came before, of what is new, or of both."""
        past = self.seq if self.past is None else self.past
        new = self.seq if self.new is None else self.new
        if _PAST.search(item.name):
            return past
        is_both = bool(_BOTH.search(dim or "")) or ("mask" in item.name.lower() and dim not in tokens)
        if not has_cache or not is_both:
            return new
        return None if past is None or new is None else past + new
