"""Tests of models that run a feed at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from threading import Barrier, current_thread
from typing import Any

import numpy as np
import pytest
from made_up import batches_of
from numpy.typing import NDArray

from trtq.errors import ModelError
from trtq.models.frugal import FrugalSession
from trtq.models.runner import MovableSession, create_runner
from trtq.models.session import SessionPort
from trtq.pipeline.judge.compared import ComparedModels
from trtq.pipeline.judge.runs import run_feeds
from trtq.pipeline.judge.views import OutputViews

_FEEDS = [np.full((2, 3), number, np.float32) for number in range(4)]


class _Port:
    def __init__(self, name: str) -> None:
        self.name, self.shape, self.type = name, ("N", 3), "tensor(float)"


class _Session:
    """Multiplies; each run waits until as many others run as the barrier wants."""

    can_move = True

    def __init__(self, factor: float, barrier: Barrier) -> None:
        self.factor, self.barrier, self.threads = factor, barrier, set[str]()

    def get_inputs(self) -> Sequence[SessionPort]:
        return [_Port("x")]

    def get_outputs(self) -> Sequence[SessionPort]:
        return [_Port("y")]

    def run(self, _: None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        self.barrier.wait(timeout=60)
        self.threads.add(current_thread().name)
        if feed["x"].max() > 100:
            raise RuntimeError("too large")
        return [self.factor * feed["x"]]


def test_models_run_a_feed_at_the_same_time() -> None:
    barrier = Barrier(3)
    runners = [create_runner(_Session(factor, barrier), f"m{factor}") for factor in (1, 2, 3)]
    seen = [*run_feeds(runners, batches_of(_FEEDS), "data", None, at_once=True)]
    assert [feed.source for feed, _ in seen] == ["feed 0", "feed 1", "feed 2", "feed 3"]
    for number, (_, results) in enumerate(seen):
        found = {name: outputs["y"][0, 0] for name, outputs in results.items()}
        assert found == {"m1": number, "m2": 2 * number, "m3": 3 * number}


def test_they_take_turns_in_the_thread_of_the_caller_otherwise() -> None:
    sessions = [_Session(factor, Barrier(1)) for factor in (1, 2)]
    runners = [create_runner(session, str(session.factor)) for session in sessions]
    assert len([*run_feeds(runners, batches_of(_FEEDS), "data", None)]) == 4
    assert {name for session in sessions for name in session.threads} == {current_thread().name}


def test_a_failure_names_the_feed_that_they_run() -> None:
    barrier = Barrier(2)
    runners = [create_runner(_Session(factor, barrier), str(factor)) for factor in (1, 2)]
    feeds = batches_of([*_FEEDS, np.full((2, 3), 1000, np.float32)])
    with pytest.raises(ModelError, match=r"running the models on feed 4 failed: .*too large"):
        assert not [*run_feeds(runners, feeds, "data", None, at_once=True)]


def _compared(*opened: Any, engines: tuple[Any, ...] = ()) -> ComparedModels:
    sessions = {
        str(index): MovableSession(partial(_Session, 1.0, Barrier(1)), item)
        for index, item in enumerate(opened)
    }
    return ComparedModels(sessions, {}, engines, (), "", None, OutputViews(), "data")


def test_what_is_to_save_memory_or_cannot_change_threads_does_not_run_at_once() -> None:
    session = _Session(1, Barrier(1))
    assert _compared(session, session).can_run_at_once
    assert not _compared(session, FrugalSession(session)).can_run_at_once
    assert not _compared(session, None).can_run_at_once
    assert not _compared(session, engines=(object(),)).can_run_at_once
    assert _compared(session, engines=(session,)).can_run_at_once
