"""From calibrated ranges to what quantization-aware training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES, place


def amax_by_node(
    model: Path | str, ranges: Ranges, *, skip: Sequence[str] = (), op_types: Sequence[str] = DEFAULT_OP_TYPES
) -> dict[str, float]:
    """Returns the range of the quantized input of each node that `trtq build` would quantize, by node name.

    Args:
        model: The float ONNX file that `trtq export` wrote of the module: nodes are named for submodules.
        ranges: Of `trtq.calibrate` on that file.
        skip: Regular expressions searched in node names; these stay float.
        op_types: The types of nodes to quantize.

    Raises:
        ModelError: The file cannot be used.
        UsageError: The ranges lack a tensor.
    """
    graph = load(Path(model), min_opset=13)
    placement = place(graph.model, skip=skip, op_types=op_types)
    tensors = [(node.name, tensor) for node in placement.quantized for _, tensor in node.activations]
    ours = {*placement.activations}
    return {name: ranges.amax(tensor) for name, tensor in tensors if tensor in ours}
