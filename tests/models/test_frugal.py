"""Tests of sessions that hold no memory between runs."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.models.frugal import FrugalSession
from trtq.models.session import SessionOptions, open_session, run

_NET = """<ir_version: 8, opset_import: ["" : 17]> net (float[N,2] x) => (float[N,2] y, float[N,2] z)
{ y = Relu(x)  z = Neg(x) }"""


@pytest.mark.parametrize("keeps_memory", [True, False])
def test_the_outputs_are_those_of_the_session_whether_it_keeps_memory_or_not(*, keeps_memory: bool) -> None:
    model = ir.from_proto(onnx.parser.parse_model(_NET))
    opened = open_session(model, optimize=False, engine=SessionOptions(keeps_memory=keeps_memory))
    session, feed = FrugalSession(opened), {"x": np.array([[1, -2]], np.float32)}
    for _ in range(2):
        assert [array.tolist() for array in run(session, ["z", "y"], feed)] == [[[-1, 2]], [[1, 0]]]
        assert len(session.run(None, feed)) == 2
    assert [port.name for port in session.get_inputs()] == ["x"]
    assert [port.name for port in session.get_outputs()] == ["y", "z"]


def test_a_run_that_fails_is_not_tried_again() -> None:
    session = FrugalSession(open_session(ir.from_proto(onnx.parser.parse_model(_NET)), optimize=False))
    with pytest.raises(Exception, match="Got invalid dimensions for input: x"):
        session.run(None, {"x": np.zeros((1, 3), np.float32)})
    assert session._has_arena
