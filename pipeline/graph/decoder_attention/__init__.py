"""Attention that keeps a cache in one node, as plain nodes that TensorRT and --kv-cache take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from trtq.numbers import format_count
from trtq.pipeline.graph.decoder_attention import grouped, standard
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import infer_shapes, read_opset

_FIRST_OPSET = 13
"""Its Unsqueeze takes axes as an input."""


def unfold_attention(model: ir.Model) -> Iterator[str]:
    """Writes GroupQueryAttention of ONNX Runtime, and Attention of ONNX with a cache, as plain nodes.

    The cache grows by one Concat, whose result is the output. The last node keeps the name.

    Args:
        model: Nodes have names; it is changed in place.

    Raises:
        ModelError: A node does what no plain form here does, or its sizes are not known.
    """
    kinds = (grouped, standard)
    found = [(kind, node) for node in model.graph for kind in kinds if kind.is_meant(node)]
    if not found or read_opset(model) < _FIRST_OPSET:
        return
    infer_shapes(model)
    edit = GraphEditor(model)
    for kind, node in found:
        kind.unfold(edit, node)
    edit.drop_unused()
    yield f"wrote {format_count(len(found), 'attention')} with a cache as plain nodes"
    if any(kind is grouped for kind, _ in found):
        yield (
            "all texts of a batch have as many tokens before as the cache holds; the outputs are NaN where "
            "seqlens_k says another number"
        )
