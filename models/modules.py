"""The modules of PyTorch that the nodes of an exported file come from."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

_SCOPES, _NAMESPACE = "pkg.torch.onnx.name_scopes", "namespace"
"""What PyTorch's exporter writes beside a node: `['', 'layers.0', 'layers.0.fc', 'linear_3']`, and the same
with the classes, `: Net/layers.0: Block/layers.0.fc: Linear/linear_3: aten.linear.default`."""


def name_after_modules(graph: ir.Graph) -> None:
    """Names each node of PyTorch's exporter for the module that it comes from: `layers.0.fc/MatMul`.

    The exporter's own name is a number, `node_linear_3`. What it wrote beside the node is taken away, so that
    the names stay when the file is written and read again. Other nodes keep theirs.

    Args:
        graph: Of a model; bodies of If, Loop and Scan are looked at, too.
    """
    bases = {node: base for node in graph.all_nodes() if (base := _find_base(node)) is not None}
    taken = {node.name for node in graph.all_nodes() if node not in bases}
    last = Counter[str]()
    for node, base in bases.items():
        node.name = base
        while node.name in taken:
            last[base] += 1
            node.name = f"{base}_{last[base]}"
        taken.add(node.name)
        for key in (_SCOPES, _NAMESPACE):
            node.metadata_props.pop(key, None)


def _find_base(node: ir.Node) -> str | None:
    """Returns the name of a node but for a number; None if the file tells no module."""
    scopes = _read_scopes(node)
    if not scopes:
        return None
    module = _find_module(node, scopes)
    return f"{module}/{node.op_type}" if module else node.op_type


def _find_module(node: ir.Node, scopes: list[str]) -> str:
    """Returns the module that called a node, or the one in it, or folded into it, that has its weight."""
    called = scopes[-2] if len(scopes) > 1 else ""
    weights = [str(value.name) for value in node.inputs if value is not None and value.is_initializer()]
    owner = next((name.rpartition(".")[0] for name in weights if "." in name), "")
    # A convolution that a batch norm was folded into carries the scope of the norm.
    is_folded = "batch_norm" in scopes[-1] and node.op_type != "BatchNormalization"
    is_inside = not called or owner.startswith(f"{called}.")
    return owner if owner and (is_folded or is_inside) else called


def _read_scopes(node: ir.Node) -> list[str]:
    """Returns the modules that a node lies in, from the outermost in, and the operation; [] if not told."""
    text = node.metadata_props.get(_SCOPES)
    if text is None:
        space = node.metadata_props.get(_NAMESPACE)
        return [part.partition(": ")[0] for part in space.split("/")] if space and ": " in space else []
    try:
        scopes = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    is_told = isinstance(scopes, list) and all(isinstance(scope, str) for scope in scopes)
    return scopes if is_told else []
