"""From an Einsum that is a product with a constant matrix to the MatMul that it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.operands import read_constant

_EQUATION = re.compile(r"(\w+),(\w+)->(\w+)")


def turn_einsum_into_matmul(model: ir.Model) -> Iterator[str]:
    """Writes `...k,kn->...n` with a constant matrix as MatMul; the node keeps its name and its output.

    The matrix may come first, and may be given as `nk`. Sums over more than one letter, diagonals and
    batches of matrices stay Einsum.
    """
    edit, count = GraphEditor(model), 0
    for node in [node for node in model.graph if node.op_type == "Einsum" and len(node.inputs) == 2]:
        if (found := _find_product(node)) is None:
            continue
        place, is_transposed = found
        activation, weight = node.inputs[1 - place], node.inputs[place]
        assert weight is not None
        if is_transposed:
            matrix = np.ascontiguousarray(read_constant(weight).T)
            weight = edit.add_constant(f"{weight.name}_transposed", matrix)
        name, old = str(node.name), node.outputs[0]
        product = edit.insert("MatMul", [activation, weight], like=old, output=f"{old.name}_product")
        edit.replace(old, product, rename="")
        edit.remove(node)
        maker = product.producer()
        assert maker is not None
        maker.name = name
        count += 1
    if count:
        edit.drop_unused()
        yield f"turned {count} Einsum nodes into MatMul"


def _find_product(node: ir.Node) -> tuple[int, bool] | None:
    """Returns the place of the constant matrix and whether it is `nk`; None where there is none."""
    equation = node.attributes["equation"].as_string() if "equation" in node.attributes else ""
    matched = _EQUATION.fullmatch(re.sub(r"\s", "", equation))
    if matched is None:
        return None
    terms, result = matched.groups()[:2], matched.group(3)
    for place in (1, 0):
        weight, letters, other = node.inputs[place], terms[place], terms[1 - place]
        if weight is None or weight.const_value is None or len(letters) != 2 or len(other) < 2:
            continue
        if len(set(letters)) < 2 or len(set(other)) < len(other) or len(set(result)) < len(result):
            continue
        summed, new = other[-1], letters.replace(other[-1], "")
        if len(new) == 1 and new not in other and result == other[:-1] + new:
            return place, letters == new + summed
    return None
