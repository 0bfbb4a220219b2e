"""Tests that an output layer reads the table that its weight is a turned copy of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.tied import tie_weights

_NET = """
net (int64[N, S] ids) => (float[N, S, 12] y) {
  x = Gather (table, ids)
  h = Tanh (x)
  [lm_head] y = MatMul (h, w)
}"""
_TABLE = random_array(12, 8)
_IDS = {"ids": np.array([[0, 3, 11], [5, 5, 1]])}


def test_a_turned_copy_of_a_table_is_read_from_the_table(
    graph_of: Callable[..., Graph], outputs_of: Callable[..., list[NDArray[Any]]]
) -> None:
    model = graph_of(_NET, table=_TABLE, w=np.ascontiguousarray(_TABLE.T)).model
    (expected,) = outputs_of(model.clone(), feed=_IDS)
    assert tie_weights(model) == 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [value.name for value in model.graph.initializers.values() if len(value.shape or ()) == 2] == [
        "table"
    ]
    assert next(node for node in model.graph if node.op_type == "Gemm").name == "lm_head"
    (found,) = outputs_of(model, feed=_IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_of_two_equal_tables_the_first_is_read(graph_of: Callable[..., Graph]) -> None:
    text = """net (int64[N, S] ids) => (float[N, S, 12] y) {
        a = Gather (table, ids) b = Gather (other, ids) h = Add (a, b) y = MatMul (h, w) }"""
    weights = {"table": _TABLE, "other": _TABLE.copy(), "w": np.ascontiguousarray(_TABLE.T)}
    model = graph_of(text, **weights).model
    assert tie_weights(model) == 1
    (gemm,) = (node for node in model.graph if node.op_type == "Gemm")
    assert gemm.inputs[1] is model.graph.initializers["table"]


@pytest.mark.parametrize(
    "weights",
    [
        {"table": _TABLE, "w": _TABLE.T + np.float32(1e-6)},
        {"table": _TABLE[:, :8], "w": random_array(8, 12)},
        {"table": _TABLE.astype(np.float32), "w": np.ascontiguousarray(_TABLE[::-1].T)},
    ],
)
def test_another_weight_stays(graph_of: Callable[..., Graph], weights: dict[str, NDArray[Any]]) -> None:
    model = graph_of(_NET, **weights).model
    assert tie_weights(model) == 0
    assert [node.op_type for node in model.graph] == ["Gather", "Tanh", "MatMul"]
