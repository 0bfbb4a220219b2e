"""Attention that keeps a cache in one node, as plain nodes that TensorRT and --kv-cache take."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common as passes

from trtq.numbers import format_count
from trtq.pipeline.graph.decoder_attention import grouped, standard
from trtq.pipeline.graph.decoder_attention.parts import NoPlainFormError
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.opset import infer_shapes, read_opset

_FIRST_OPSET = 13
"""Its Unsqueeze takes axes as an input."""


def unfold_attention(model: ir.Model) -> Iterator[str]:
    """Writes GroupQueryAttention of ONNX Runtime, and Attention of ONNX with a cache, as plain nodes.

    The cache grows by one Concat, whose result is the output. The last node keeps the name. What has no plain
    form here stays as it is: ONNX Runtime runs it.

    Args:
        model: Nodes have names; it is changed in place.

    Yields:
        What was changed, and what was not, a sentence each.
    """
    kinds = (grouped, standard)
    found = [(kind, node) for node in model.graph for kind in kinds if kind.is_meant(node)]
    if not found or read_opset(model) < _FIRST_OPSET:
        return
    infer_shapes(model)
    edit, done = GraphEditor(model), []
    for kind, node in found:
        try:
            kind.unfold(edit, node)
        except NoPlainFormError as reason:
            yield f"node {node.name!r} ({node.op_type}) stays, which TensorRT does not take: it has {reason}"
        else:
            done.append(kind)
    passes.RemoveUnusedNodesPass()(model)
    if done:
        yield f"wrote {format_count(len(done), 'attention')} with a cache as plain nodes"
    if grouped in done:
        yield (
            "every text takes the whole cache: where seqlens_k gives another length, the outputs are NaN; "
            "for texts of unequal length build with --backend onnxruntime, which keeps GroupQueryAttention"
        )
