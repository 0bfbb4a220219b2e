"""Tests that rotated streams compute the same, and that what is not known to be linear is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from folded import op_types
from numpy.typing import NDArray
from opset_23 import needs_opset_23
from residual_decoder import NORMS, TOKENS, make_graph

from trtq.pipeline.graph.edit import map_values
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.rotation.hadamard import make_matrix, rotate_rows
from trtq.pipeline.rewrite.rotation.rotate import rotate

GraphOf = Callable[..., Graph]
Outputs = Callable[..., list[NDArray[np.float32]]]
IDS = {"ids": np.random.default_rng(0).integers(0, TOKENS, (2, 5))}


def agree(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    return float(np.abs(ours - theirs).max()) < 1e-4 * float(np.abs(theirs).max())


@pytest.mark.parametrize("length", [1, 2, 3, 12, 48, 64, 97])
def test_the_matrix_is_orthogonal_and_spreads_a_channel(length: int) -> None:
    matrix = make_matrix(length)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    assert np.abs(matrix).max() <= np.sqrt(2 / length) + 1e-12
    rows = np.random.default_rng(0).standard_normal((2, 3, length))
    np.testing.assert_allclose(rotate_rows(rows), rows @ matrix, atol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [
        pytest.param(name, marks=needs_opset_23) if name == "RMSNormalization" else name
        for name in NORMS
        if name != "LayerNormalization"
    ],
)
def test_a_decoder_computes_the_same_of_rotated_streams(
    graph_of: GraphOf, outputs_of: Outputs, norm: str
) -> None:
    model = make_graph(
        graph_of, opset=23 if norm == "RMSNormalization" else 19, outlier=20.0, norm=norm
    ).model
    made = rotate(model)
    onnx.checker.check_model(ir.to_proto(made.model), full_check=True)
    assert op_types(made.model) == op_types(model)
    assert {"x0", "x1", "x2", "w0", "w1", "d", "a", "b", "c"} <= made.names.keys()
    (ours,), (theirs,) = outputs_of(made.model, feed=IDS), outputs_of(model, feed=IDS)
    assert agree(ours, theirs)
    assert not np.array_equal(ours, theirs)


def test_no_channel_of_a_rotated_stream_is_much_larger_than_others(
    graph_of: GraphOf, outputs_of: Outputs
) -> None:
    model = make_graph(graph_of, outlier=50.0).model
    made = rotate(model)
    peaks = []
    for graph, name in ((model, "x2"), (made.model, made.names["x2"])):
        seen = graph.clone()
        seen.graph.outputs[:] = [map_values(seen.graph)[name]]
        (values,) = outputs_of(seen, feed=IDS)
        peaks.append(np.abs(values).max() / np.sqrt(np.square(values).mean()))
    assert peaks[0] > 2 * peaks[1]


def test_a_table_that_the_output_layer_shares_stays_shared(graph_of: GraphOf, outputs_of: Outputs) -> None:
    head = "flat = Reshape (c, rows) out = Gemm <transB = 1> (flat, table) logits = Reshape (out, back)"
    model = make_graph(graph_of, head=head).model
    made = rotate(model)
    assert len(made.model.graph.initializers["table"].uses()) == 2
    assert len(made.model.graph) == len(model.graph) + 2
    assert "flat" not in made.names  # before the output layer nothing is rotated
    (ours,), (theirs,) = outputs_of(made.model, feed=IDS), outputs_of(model, feed=IDS)
    assert agree(ours, theirs)


REFUSED = {
    "an output of the graph": {"extra": "y = Identity (x1)", "more": ", float[N, S, 96] y"},
    "another function of the stream": {"extra": "y = Tanh (x1)", "more": ", float[N, S, 96] y"},
    "a gate": {"extra": "y = Mul (x1, g0)", "more": ", float[N, S, 96] y"},
    "a norm of which an output is read": {"extra": "y = Identity (a)", "more": ", float[N, S, 96] y"},
    "a product with another tensor": {
        "extra": "t = Transpose <perm = [0, 2, 1]> (c) y = MatMul (c, t)", "more": ", float[N, S, S] y",
    },
}  # fmt: skip


@pytest.mark.parametrize("parts", REFUSED.values(), ids=REFUSED)
def test_a_stream_with_another_reader_is_left(graph_of: GraphOf, parts: dict[str, Any]) -> None:
    assert rotate(make_graph(graph_of, **parts).model).names == {}


def test_a_stream_that_a_layer_norm_reads_is_left(graph_of: GraphOf) -> None:
    assert rotate(make_graph(graph_of, norm="LayerNormalization").model).names == {}
