"""Data that a program makes: lists, loaders, functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from made_up import join, sizes_of

from trtq.calibrators.sources import open_batches
from trtq.errors import DataError, UsageError
from trtq.models.signature import TensorSpec

ONE = [TensorSpec("x", "float32", ("N", 2))]
TWO = [*ONE, TensorSpec("ids", "int64", ("N",))]
X = np.arange(20, dtype=np.float32).reshape(10, 2)
IDS = np.arange(10)


@pytest.mark.parametrize(
    "item", [{"x": X, "ids": IDS}, (X, IDS), [X, IDS], (X, IDS, IDS), {"x": X.tolist(), "ids": IDS}], ids=str
)
def test_dicts_and_tuples_are_feeds(item: Any) -> None:
    if isinstance(item, dict) and isinstance(item["x"], list):
        item = {**item, "x": np.array(item["x"], np.float32)}
    (feed,) = open_batches([item], TWO, 4)
    assert np.array_equal(feed.arrays["x"], X)
    assert feed.arrays.keys() == {"x", "ids"}
    assert (feed.num_samples, feed.source) == (10, "list in Python, item 0")


def test_an_array_is_the_only_input_and_labels_stand_behind() -> None:
    assert np.array_equal(join(open_batches([X[:4], X[4:]], ONE, 4)), X)
    (feed,) = open_batches([(X, IDS)], ONE, 4, extra=["labels"])
    assert feed.arrays["labels"].tolist() == IDS.tolist()


def test_a_function_that_yields_is_called_anew_for_each_pass() -> None:
    def feeds() -> Iterator[Any]:
        yield X[:4]
        yield X[4:]

    batches = open_batches(feeds, ONE, 4)
    assert sizes_of(batches) == sizes_of(batches) == [4, 6]
    assert (batches.origin, batches.digest, batches.num_samples) == ("feeds in Python", None, None)


def test_an_array_is_copied_before_the_next_is_asked_for() -> None:
    class Reusing:
        def __iter__(self) -> Iterator[Any]:
            buffer = np.zeros((1, 2), np.float32)
            for value in range(3):
                buffer[:] = value
                yield buffer

    feeds = list(open_batches(Reusing(), ONE, 4))
    assert [feed.arrays["x"][0, 0] for feed in feeds] == [0, 1, 2]


def test_a_loader_of_pytorch_is_read() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'trtq[export]'")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(X).requires_grad_(), torch.from_numpy(IDS))
    loader = torch.utils.data.DataLoader(tensors, batch_size=4)
    batches = open_batches(loader, ONE, 4)
    assert sizes_of(batches) == sizes_of(batches) == [4, 4, 2]
    assert np.array_equal(join(batches), X)
    assert batches.origin == "DataLoader in Python"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (X, r"^list in Python, item 0 is one ndarray, the model takes x, ids; yield dicts$"),
        (
            (X,),
            r"^list in Python, item 0 has 1 arrays, the model takes x, ids, and the labels may stand after "
            r"them; yield dicts$",
        ),
        ((X, IDS, IDS, IDS), r"^list in Python, item 0 has 4 arrays, the model takes x, ids"),
        (
            (X, "text"),
            r"^'ids' of list in Python, item 0 is str, no array of numbers; convert it with numpy$",
        ),
        (
            (X, np.ma.masked_less(IDS, 3)),
            r"^'ids' of list in Python, item 0 is masked in places, which no model sees; fill it with numpy",
        ),
        ((X, None), r"^'ids' of list in Python, item 0 is NoneType, no array of numbers; "),
        (([[1.0], [1.0, 2.0]], IDS), r"^'x' of list in Python, item 0 failed: ValueError: "),
    ],
)
def test_items_that_are_no_feeds_are_told(item: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(open_batches([item], TWO, 4))


def test_what_can_be_read_only_once_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"^generator in Python can be read only once, and trtq reads data several times; give a list, "
        r"a DataLoader, or a function that returns a new iterator$",
    ):
        open_batches((X for _ in range(2)), ONE, 4)


class Again:
    """An iterator that begins anew when it is asked for, as that of persistent workers does."""

    def __init__(self) -> None:
        self._left = 0

    def begin(self) -> Again:
        self._left = 2
        return self

    def __iter__(self) -> Again:
        return self

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        self._left -= 1
        return X[: 1 + self._left]


@dataclass
class Iterated:
    """What may be iterated, and asks `start` for the iterator."""

    start: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.start()


def test_an_iterator_that_begins_anew_is_read_again() -> None:
    batches = open_batches(Iterated(Again().begin), ONE, 4)
    next(iter(batches))
    assert sizes_of(batches) == sizes_of(batches) == [2, 1]


@pytest.mark.parametrize("items", [iter([X, X]), (X for _ in range(2))], ids=["list", "generator"])
def test_what_holds_an_iterator_that_was_used_is_told(items: Iterator[Any]) -> None:
    batches = open_batches(Iterated(lambda: items), ONE, 4)
    next(iter(batches))
    with pytest.raises(DataError, match=r"^Iterated in Python returns the iterator of an earlier pass again"):
        list(batches)


@pytest.mark.parametrize("items", [iter([X, X]), (X for _ in range(2))], ids=["list", "generator"])
def test_an_iterator_that_was_used_is_told(items: Iterator[Any]) -> None:
    batches = open_batches(lambda: items, ONE, 4)
    next(iter(batches))
    with pytest.raises(
        DataError,
        match=r"^<lambda> in Python returns the iterator of an earlier pass again; return a new one each",
    ):
        list(batches)


def test_a_failure_of_the_users_code_is_told() -> None:
    def fails() -> Iterator[Any]:
        yield X
        raise RuntimeError("the disk is gone")

    with pytest.raises(DataError, match=r"^fails in Python, item 1 failed: RuntimeError: the disk is gone$"):
        list(open_batches(fails, ONE, 4))


def test_our_own_errors_pass_through() -> None:
    def refuses() -> Iterator[Any]:
        raise UsageError("no data today")

    with pytest.raises(UsageError, match=r"^no data today$"):
        list(open_batches(refuses, ONE, 4))
