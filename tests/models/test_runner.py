"""Tests of sessions that are opened when they are needed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from trtq.models.runner import MovableSession
from trtq.models.session import open_session

_NET = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y) { y = Relu (x) }'


@pytest.fixture
def opened() -> list[Any]:
    return []


@pytest.fixture
def session(opened: list[Any]) -> MovableSession:
    def open_one() -> Any:
        found = open_session(ir.from_onnx_text(_NET), optimize=False)
        opened.append(weakref.ref(found))
        return found

    return MovableSession(open_one)


def test_a_session_is_opened_by_the_first_who_asks(session: MovableSession, opened: list[Any]) -> None:
    assert not opened
    (found,) = session.run(None, {"x": np.array([[-1, 1]], np.float32)})
    assert found.tolist() == [[0, 1]]
    assert len(opened) == 1


def test_a_closed_session_is_freed_and_still_knows_its_inputs_and_outputs(
    session: MovableSession, opened: list[Any]
) -> None:
    (kept,) = session.run(None, {"x": np.array([[2, 3]], np.float32)})
    session.close()
    gc.collect()
    assert opened[0]() is None, "what it gave, or its inputs, hold it"
    shown = [
        (item.name, list(item.shape), item.type) for item in (*session.get_inputs(), *session.get_outputs())
    ]
    assert shown == [("x", ["N", 2], "tensor(float)"), ("y", ["N", 2], "tensor(float)")]
    assert len(opened) == 1
    (again,) = session.run(None, {"x": kept})
    np.testing.assert_array_equal(again, kept)
    assert len(opened) == 2


def test_closing_what_is_not_open_opens_nothing(session: MovableSession, opened: list[Any]) -> None:
    session.close()
    assert not opened
