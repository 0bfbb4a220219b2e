"""The state of a decoder: which inputs hold what came before, which outputs continue them, and their axes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

Dim = int | str | None

_PAST = re.compile(r"(^|[._/])past|past_(key|value)|cache", re.IGNORECASE)
"""In the names of inputs that hold what came before; `past_key_values.0.key`, `cache_k`."""
_FEWEST_DIMS = 3
"""Of a cache; `past_sequence_length` and `cache_position` have fewer."""
_CARRIED = re.compile(r"past|present|cache|new|^in_", re.IGNORECASE)
"""In the names of inputs that an output may continue."""
_WORDS = re.compile(r"past_key_values|past|present|cache|new|(^|_)(in|out)(?=_|$)", re.IGNORECASE)
"""What the names of an input and of the output that continues it do not share."""
_NEITHER = re.compile(r"head|layer|channel|hidden", re.IGNORECASE)
_BATCH = re.compile(rf"n|b|bs|(?!.*({_NEITHER.pattern})).*batch.*", re.IGNORECASE)
_POSITIONS = re.compile(r"past|seq|len|pos|time|cache|context", re.IGNORECASE)


class CacheAxes(NamedTuple):
    """The open axes of a cache.

    Attributes:
        batch: Counts sequences; None: no open axis does.
        positions: Counts what came before; None: no open axis does, or the names do not tell which.
        others: The rest, which count neither or do not tell.
    """

    batch: int | None
    positions: int | None
    others: tuple[int, ...]


def is_cache(name: str, shape: Sequence[Dim]) -> bool:
    """Returns whether an input holds what came before, by its name and the number of its dims."""
    return len(shape) >= _FEWEST_DIMS and _PAST.search(name) is not None


def pair_states(inputs: Iterable[str], outputs: Iterable[str]) -> dict[str, str]:
    """Returns the outputs that continue inputs, by their names: `present.0.key` for `past.0.key`."""
    made = {_strip(name): name for name in outputs}
    carried = (name for name in inputs if _CARRIED.search(name))
    return {name: made[_strip(name)] for name in carried if _strip(name) in made}


def find_batches(shapes: Iterable[Sequence[Dim]]) -> set[Dim]:
    """Returns what inputs that are no caches call their first axis, where it is open and no sequence."""
    first = {shape[0] for shape in shapes if len(shape) > 1}
    return {dim for dim in first if not isinstance(dim, int) and not _POSITIONS.search(dim or "")}


def find_cache_axes(name: str, shape: Sequence[Dim], batches: Collection[Dim]) -> CacheAxes:
    """Returns what the open axes of a cache count.

    The names of the dims decide: the batch is called as in the other inputs, or `batch`, and positions are
    `past`, `seq` and the like. Of dims without names the first is the batch. One that is left counts
    positions.

    Args:
        name: Of the input. A dim that is called after it, as `load` does, has no name of its own.
        shape: Its shape.
        batches: As of `find_batches`; empty where no other input has an open batch.
    """
    names = {axis: dim or "" for axis, dim in enumerate(shape) if not isinstance(dim, int)}
    names = {axis: "" if dim == f"{name}_dim{axis}" else dim for axis, dim in names.items()}
    found = [axis for axis, dim in names.items() if dim and (dim in batches or _BATCH.fullmatch(dim))]
    positions = [axis for axis, dim in names.items() if _POSITIONS.search(dim) and axis not in found]
    nameless = [axis for axis, dim in names.items() if not dim]
    if not found and batches and (positions or len(names) > 1 or nameless == [0]):
        found = nameless
    batch = found[0] if found else None
    left = [axis for axis in names if axis != batch]
    positions = positions or [axis for axis in left if not _NEITHER.search(names[axis])]
    counted = positions[0] if len(positions) == 1 else None
    return CacheAxes(batch, counted, tuple(axis for axis in left if axis != counted))


def _strip(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", ".", _WORDS.sub("", name.lower())).strip(".")
