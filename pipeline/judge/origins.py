"""What outputs hold, by the node that makes them: indices are names in any type, cast floats are amounts.

Class maps often leave a model as uint8 or as float, and amounts, such as samples of sound, as whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from trtq.models.tensors import FLOAT_TYPES
from trtq.pipeline.judge.parts import PASSED_ON, list_parts

_INDICES = {"ArgMax": 0, "ArgMin": 0, "TopK": 1}
"""Which output of these operators tells a place."""
_CUT = (*PASSED_ON, "Slice", "Split", "Round", "Floor", "Ceil")
"""What they make of names or amounts are such too."""


def find_origins(model: ir.Model) -> dict[tuple[str, str], bool]:
    """Returns whether each output, and each part of one, holds names; what nobody knows is left out.

    A key is the output and the part as `views` calls it; empty: the whole.
    """
    found = {}
    for output in model.graph.outputs:
        for part, values in _list_groups(output):
            kinds = {_holds_names(value) for value in values}
            if len(kinds) == 1 and (kind := kinds.pop()) is not None:
                found[str(output.name), part] = kind
    return found


def name_part(values: tuple[ir.Value, ...]) -> str:
    """Returns what a part of an output is called."""
    return " + ".join(str(value.name) for value in values)


def _list_groups(output: ir.Value) -> Iterator[tuple[str, tuple[ir.Value, ...]]]:
    yield "", (output,)
    parts = list_parts(output)
    if len(parts) > 1:
        yield from ((name_part(part), part) for part in parts)


def _holds_names(value: ir.Value) -> bool | None:
    """Returns whether a value holds names (True) or amounts (False); None if its type has to tell."""
    is_whole = value.dtype is not None and value.dtype.is_integer()
    was_float = False
    node = value.producer()
    while node is not None and node.op_type in _CUT and not node.domain and node.inputs[0] is not None:
        value = node.inputs[0]
        was_float = was_float or value.dtype in FLOAT_TYPES
        node = value.producer()
    if node is not None and not node.domain and _INDICES.get(node.op_type) == value.index():
        return True
    return False if is_whole and was_float else None
