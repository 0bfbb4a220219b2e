"""Feeds by their number, for workers of which each takes the next that nobody has taken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError

_ALONE = 1 << 40
"""A step behind which there is no further feed."""
_known: set[tuple[str, str]] = set()
"""The origins and digests of what this process has seen to be the data of the driver."""


class FeedCursor:
    """Finds feeds by their number; where these rise, each is read once.

    Where it is pickled to, the data is opened again, and has to be the same.
    """

    def __init__(self, batches: Batches, digest: str | None = None) -> None:
        """Opens nothing yet.

        Args:
            batches: The data.
            digest: What its digest has to be; None: nobody knows.
        """
        self._batches, self._wanted = batches, digest
        self._feeds: Iterator[Feed] | None = None
        self._next = 0

    def __reduce__(self) -> tuple[type[FeedCursor], tuple[Batches, str | None]]:
        """Pickles how the data is opened, and its digest."""
        return FeedCursor, (self._batches, _digest(self._batches))

    def open(self) -> Batches:
        """Returns the data.

        Raises:
            DataError: It cannot be read, or is other data than where it was pickled.
        """
        self._refuse_other()
        return self._batches

    def find(self, index: int) -> Feed | None:
        """Returns the feed of this number, from 0; None behind the last one.

        Raises:
            DataError: As `open`.
        """
        self._refuse_other()
        if self._batches.part is not None:
            return next(self._batches.every(index, _ALONE), None)
        if self._feeds is None or index < self._next:
            self._feeds, self._next = iter(self._batches), 0
        try:
            feed = next(islice(self._feeds, index - self._next, None), None)
        except Exception:
            self._feeds = None
            raise
        self._next = index + 1
        return feed

    def _refuse_other(self) -> None:
        if self._wanted is None or (self._batches.origin, self._wanted) in _known:
            return
        if _digest(self._batches) != self._wanted:
            raise DataError(
                f"{self._batches.origin} is other data where a worker reads it than here; give data that all "
                f"workers see under this name"
            )
        _known.add((self._batches.origin, self._wanted))


def _digest(batches: Batches) -> str | None:
    return batches.digest or batches.script_digest
