"""Tests that an output layer reads the table that its weight is a turned copy of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from made_up import random_array
from numpy.typing import NDArray

from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.rewrite.weights.apply import quantize_weights
from trtq.pipeline.rewrite.weights.choose import choose_weights, group_by_weight

_NET = """
net (int64[N, S] ids) => (float[N, S, 12] y) {
  x = Gather (table, ids)
  h = Tanh (x)
  [lm_head] y = MatMul (h, w)
}"""
_TABLE = random_array(12, 8)
_IDS = {"ids": np.array([[0, 3, 11], [5, 5, 1]])}


_TURNED = """
net (int64[N, S] ids) => (float[N, S, 12] y) {
  x = Gather (table, ids)
  h = Tanh (x)
  w = Transpose <perm = [1, 0]> (table)
  [lm_head] y = MatMul (h, w)
}"""
_NOTE = "'lm_head' reads the table of the embedding itself, not a turned copy"


@pytest.mark.parametrize("is_copied", [True, False])
def test_an_output_layer_reads_the_table(
    model_of: Callable[..., ir.Model],
    path_of: Callable[..., Path],
    outputs_of: Callable[..., list[NDArray[Any]]],
    is_copied: bool,
) -> None:
    weights = {"table": _TABLE, "w": np.ascontiguousarray(_TABLE.T)} if is_copied else {"table": _TABLE}
    text = _NET if is_copied else _TURNED
    (expected,) = outputs_of(model_of(text, **weights), feed=_IDS)
    graph = load(path_of(text, **weights), min_opset=18)
    assert _NOTE in graph.notes
    assert graph.is_rewritten
    onnx.checker.check_model(ir.to_proto(graph.model), full_check=True)
    constants = graph.model.graph.initializers.values()
    assert [value.name for value in constants if len(value.shape or ()) == 2] == ["table"]
    assert next(node for node in graph.model.graph if node.op_type == "Gemm").name == "lm_head"
    (found,) = outputs_of(graph.model, feed=_IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("form", ["int8", "int4", "nf4"])
def test_a_tied_table_has_one_set_of_codes(path_of: Callable[..., Path], form: str) -> None:
    table = random_array(64, 96)
    graph = load(path_of(_TURNED.replace("12", "64"), table=table), min_opset=21)
    scheme = WeightScheme(form, block_size=32, keep_sensitive=False)
    chosen = group_by_weight(graph.model, choose_weights(graph.model, scheme))
    assert [(item.tensor, len(item.readers)) for item in chosen] == [("table", 2)]
    model = quantize_weights(graph.model, graph.model, chosen)
    constants = model.graph.initializers.values()
    coded = [value.name for value in constants if [*(value.shape or ())] in ([64, 96], [64, 3, 32])]
    assert coded == ["table_float_quantized/codes"]


def test_a_transpose_that_turns_nothing_around_stays_what_it_is(path_of: Callable[..., Path]) -> None:
    text = _TURNED.replace("[1, 0]", "[0, 1]").replace("float[N, S, 12] y", "float[N, S, 8] y")
    graph = load(path_of(text, table=random_array(8, 8)), min_opset=18)
    assert "MatMul" in [node.op_type for node in graph.model.graph]


def test_of_two_equal_tables_the_first_is_read(graph_of: Callable[..., Graph]) -> None:
    text = """net (int64[N, S] ids) => (float[N, S, 12] y) {
        a = Gather (table, ids) b = Gather (other, ids) h = Add (a, b) y = MatMul (h, w) }"""
    weights = {"table": _TABLE, "other": _TABLE.copy(), "w": np.ascontiguousarray(_TABLE.T)}
    model = graph_of(text, **weights).model
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
    assert [node.op_type for node in model.graph] == ["Gather", "Tanh", "MatMul"]
