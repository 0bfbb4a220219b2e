"""Which tensors may have another size for inputs of the same shapes, since their values decide it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtq.pipeline.graph.edit import list_bodies

_BY_VALUES: Mapping[str, slice] = {
    "AffineGrid": slice(1, 2),
    "BlackmanWindow": slice(None),
    "CenterCropPad": slice(1, 2),
    "Col2Im": slice(1, 3),
    "Compress": slice(1, 2),
    "ConstantOfShape": slice(None),
    "DFT": slice(1, None),
    "Expand": slice(1, 2),
    "HammingWindow": slice(None),
    "HannWindow": slice(None),
    "MaxUnpool": slice(2, None),
    "MelWeightMatrix": slice(None),
    "NonMaxSuppression": slice(None),
    "NonZero": slice(None),
    "OneHot": slice(1, 2),
    "Pad": slice(1, None),
    "Range": slice(None),
    "Reshape": slice(1, 2),
    "Resize": slice(1, None),
    "STFT": slice(1, None),
    "SequenceAt": slice(1, 2),
    "Slice": slice(1, None),
    "Split": slice(1, None),
    "StringSplit": slice(None),
    "Tile": slice(1, None),
    "TopK": slice(1, 2),
    "Unique": slice(None),
    "Upsample": slice(1, None),
}
"""The operands whose values decide the size of what these operators make."""
_BODIES = ("If", "Loop")
"""What they make is as large as what they run."""
_SIZES = ("Shape", "Size")
"""What they make is known by the shapes of the inputs."""


def find_open_sizes(model: ir.Model) -> frozenset[ir.Value]:
    """Returns the values of the graph whose sizes depend on more than the shapes of its inputs."""
    computed: set[ir.Value | None] = {item for item in model.graph.inputs if not item.is_initializer()}
    opened: set[ir.Value | None] = set()  # the others have sizes that the shapes of the inputs tell
    for node in model.graph:
        inner = [item for body in list_bodies(node) for item in body.all_nodes()]
        read = {value for item in (node, *inner) for value in item.inputs}
        deciding = node.inputs[_BY_VALUES.get(node.op_type, slice(0, 0))]
        hides = node.op_type in _BODIES or node.op_identifier() in model.functions
        hides = hides or any(item.op_type in (*_BODIES, *_BY_VALUES) for item in inner)
        if hides or not opened.isdisjoint(read) or not computed.isdisjoint(deciding):
            opened.update(node.outputs)
            computed.update(node.outputs)
        elif node.op_type not in _SIZES and not computed.isdisjoint(read):
            computed.update(node.outputs)
    return frozenset(value for value in opened if value is not None)
