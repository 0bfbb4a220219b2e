"""Tests of sessions that remember what they computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.models.runner import MovableSession
from trtq.models.session import SessionPort
from trtq.pipeline.judge.recall import RecallingSession


class Doubling:
    """A session that counts its runs."""

    def __init__(self) -> None:
        self.count = 0

    def get_inputs(self) -> Sequence[SessionPort]:
        return ()

    def get_outputs(self) -> Sequence[SessionPort]:
        return ()

    def run(self, outputs: Any, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        self.count += 1
        return [2 * feed["x"]]


@pytest.mark.parametrize(("most_bytes", "computed"), [(1000, 0), (80, 1), (79, 2), (0, 3)])
def test_the_second_round_computes_only_what_was_too_large_to_keep(most_bytes: int, computed: int) -> None:
    session, feeds = Doubling(), [{"x": np.arange(5.0) + index} for index in range(3)]
    recalled = RecallingSession(MovableSession(lambda: session), most_bytes)
    for _ in range(2):
        first = session.count
        for feed in feeds:
            (found,) = recalled.run(None, feed)
            np.testing.assert_array_equal(found, 2 * feed["x"])
        recalled.rewind()
    assert (first, session.count) == (3, 3 + computed)


def test_a_first_round_that_ended_early_is_gone_on_with() -> None:
    session, feeds = Doubling(), [{"x": np.arange(5.0) + index} for index in range(3)]
    recalled = RecallingSession(MovableSession(lambda: session))
    recalled.run(None, feeds[0])
    recalled.rewind()
    assert [float(recalled.run(None, feed)[0][0]) for feed in feeds] == [0, 2, 4]
    assert session.count == 3


@pytest.mark.parametrize(("most_bytes", "is_closed"), [(40, True), (39, False)])
def test_a_session_is_closed_if_nothing_more_is_asked_of_it(most_bytes: int, is_closed: bool) -> None:
    opened = MovableSession(Doubling)
    recalled = RecallingSession(opened, most_bytes)
    recalled.run(None, {"x": np.arange(5.0)})
    recalled.rewind(closes=True)
    assert (opened.session is None) is is_closed
    assert recalled.num_bytes == 40
    assert [float(recalled.run(None, {"x": np.arange(5.0)})[0][4]) for _ in range(2)] == [8, 8]
    assert opened.session is not None, "what goes on opens another one"
