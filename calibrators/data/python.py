"""Data that a program of the user's makes: what may be iterated, such as a DataLoader of PyTorch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.calibrators.arrays import count_samples
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.data.samples import Wanted
from trtq.errors import DataError, TrtqError
from trtq.models.spec import Data, name_object

_OF_PYTHON = ("builtins", "itertools")
"""Where the kinds of iterators come from that never begin anew, such as generators."""


def open_iterable(data: Data, wanted: Wanted) -> Batches:
    """Returns the feeds of an iterable, or of a function that returns one.

    An item is a dict of arrays by name; or an array, for a model with one input; or a tuple or list with the
    inputs in their order, and the labels after them. An array is whatever numpy takes, such as a tensor on
    the CPU. It is copied before the next item is asked for, as a program may use its memory again.

    Raises:
        DataError: It can be read only once. While it is read: an item is something else, or the code fails.
    """
    name = f"{name_object(data)} in Python"
    if isinstance(data, Iterator):
        raise DataError(
            f"{name} can be read only once, and trtq reads data several times; give a list, a DataLoader, or "
            f"a function that returns a new iterator"
        )

    passes = Passes(name)

    def read() -> Iterator[Feed]:
        made = _call(name, data if callable(data) and not isinstance(data, Iterable) else lambda: data)
        items = passes.start(made)
        for index in count():
            where = f"{name}, item {index}"
            try:
                item = _call(where, lambda: next(items))
            except StopIteration:
                return
            arrays = {
                key: copy_array(value, f"{key!r} of {where}") for key, value in _name(item, where, wanted)
            }
            yield Feed(arrays, where, count_samples(arrays))

    return Batches(read, name, None, None)


class Passes:
    """The passes over what code returns: each needs an iterator of its own, or one that begins anew.

    That of a DataLoader with persistent workers does, each time that the DataLoader is asked for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: Callable[[], object] = lambda: None

    def start(self, items: Iterable[Any]) -> Iterator[Any]:
        """Returns an iterator over the items.

        Raises:
            DataError: It is that of the last pass, and goes on where that has ended.
        """
        iterator = iter(items)
        goes_on = iterator is items or type(iterator).__module__ in _OF_PYTHON
        if goes_on and iterator is self._last():
            raise DataError(
                f"{self._name} returns the iterator of an earlier pass again; return a new one each time"
            )
        try:
            self._last = weakref.ref(iterator)  # it may hold processes
        except TypeError:  # of one in C
            self._last = lambda: iterator
        return iterator


def _call(where: str, call: Callable[[], Any]) -> Any:
    """Returns what the user's code returns.

    Raises:
        DataError: It fails.
        StopIteration: It has come to its end.
    """
    try:
        return call()
    except (TrtqError, StopIteration):
        raise
    except Exception as error:
        raise DataError(f"{where} failed: {type(error).__name__}: {error}") from error


def _name(item: object, where: str, wanted: Wanted) -> Sequence[tuple[str, Any]]:
    """Returns the arrays of an item with their names; labels that nobody asked for are left out.

    Raises:
        DataError: It is nothing of what `open_iterable` takes.
    """
    if isinstance(item, Mapping):
        return [*item.items()]
    names = [spec.name for spec in wanted.inputs]
    if not isinstance(item, tuple | list):
        if len(names) == 1:
            return [(names[0], item)]
        raise DataError(
            f"{where} is one {type(item).__name__}, the model takes {', '.join(names)}; yield dicts"
        )
    if not len(names) <= len(item) <= len(names) + max(1, len(wanted.extra)):
        raise DataError(
            f"{where} has {len(item)} arrays, the model takes {', '.join(names)}, and the labels may stand "
            f"after them; yield dicts"
        )
    return [*zip((*names, *wanted.extra), item, strict=False)]


def copy_array(value: Any, where: str) -> NDArray[Any]:
    """Returns an array of its own memory.

    Raises:
        DataError: It is no array, or some of it is masked.
    """
    if np.ma.is_masked(value):
        raise DataError(f"{where} is masked in places, which no model sees; fill it with numpy's `filled`")
    detached = value.detach() if hasattr(value, "detach") else value
    near = detached.cpu() if hasattr(detached, "cpu") else detached
    array: NDArray[Any] = _call(where, lambda: np.array(near.numpy() if hasattr(near, "numpy") else near))
    if array.dtype.hasobject or array.dtype.kind in "US":
        raise DataError(f"{where} is {type(value).__name__}, no array of numbers; convert it with numpy")
    return array
