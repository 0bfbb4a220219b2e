"""Which nodes of a model each kernel of ONNX Runtime computes.

ONNX Runtime fuses nodes and renames what it rewrites, and says of each kernel its name and its tensors alone.
A kernel is told by a tensor or a node of the model that it is named for, or by a tensor that it makes. The
nodes that no kernel is told by are in the kernel before them, where its output has no name of the model, such
as a Relu behind a convolution, or else in the kernel that reads them, such as what a LayerNormalization is
made of.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

_ADDED = re.compile(r"^InsertedPrecisionFreeCast_|(_token_\d+|_nchwc)+$")
"""What ONNX Runtime adds to names."""
_CODES = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_FOR_READERS = ("QuantizeLinear", "DynamicQuantizeLinear", "ReorderInput")
"""Conversions for the sake of what reads their outputs; others are because of what made their inputs."""
_LAYOUTS = ("Cast", "Transpose", "ReorderInput", "ReorderOutput")
"""What ONNX Runtime puts behind a kernel; its output then has the name of what the kernel makes."""
_HEAVY = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "Attention", "LSTM", "GRU")


@dataclass(frozen=True, slots=True)
class Owner:
    """The nodes of a model that a kernel works for, heavy ones first.

    `converts` tells that it computes none of them and only converts between formats or layouts.
    """

    nodes: tuple[str, ...]
    converts: bool


def find_owners(model: ir.Model, optimized: ir.Model) -> dict[str, Owner]:
    """Returns, by the name of each kernel of the optimized graph, the nodes that it works for.

    Args:
        model: What was given to ONNX Runtime; all nodes have names of their own.
        optimized: What it made of that.
    """
    kernels = list(optimized.graph)
    groups = _Groups(model, kernels).assign()
    own = {
        index: tuple(str(node.name) for node in sorted(nodes, key=_is_light) if node.op_type not in _CODES)
        for index, nodes in groups.items()
    }
    users = {kernel: own[index] for index, kernel in enumerate(kernels) if own.get(index)}
    return {
        str(kernel.name): Owner(users[kernel], converts=False)
        if kernel in users
        else Owner(_find_user(kernel, users), converts=True)
        for kernel in kernels
    }


def name_node(node: ir.Node) -> str:
    """Returns the name of a node; that of its first output if it has none."""
    return node.name or str(node.outputs[0].name)


def match_nodes(reference: Path, other: Path) -> dict[str, str]:
    """Returns, by the names of a model's nodes, what another model calls those that make the same tensors.

    Nodes whose names both models have are left out, and nothing is known of engines.
    """
    if not reference.suffix == other.suffix == ".onnx":
        return {}
    nodes, others = list(ir.load(reference).graph), list(ir.load(other).graph)
    names, makers = {name_node(node) for node in nodes}, {node.outputs[0].name: node for node in nodes}
    return {
        name_node(node): name_node(makers[node.outputs[0].name])
        for node in others
        if name_node(node) not in names and node.outputs[0].name in makers
    }


def _is_light(node: ir.Node) -> bool:
    return node.op_type not in _HEAVY


class _Groups:
    """The nodes of a model, put together by the kernels that compute them."""

    def __init__(self, model: ir.Model, kernels: Sequence[ir.Node]) -> None:
        self._nodes = [node for node in model.graph if node.op_type != "Constant"]
        self._kernels = kernels
        self._by_name = {str(node.name): node for node in self._nodes}
        self._makers = {str(value.name): node for node in self._nodes for value in node.outputs}
        self._kernel_of: dict[ir.Node, int] = {}

    def assign(self) -> dict[int, list[ir.Node]]:
        """Returns the nodes of each kernel, by its index."""
        for index, kernel in enumerate(self._kernels):
            for value in kernel.outputs:
                node = self._makers.get(str(value.name))
                if node is not None and (kernel.op_type not in _LAYOUTS or node.op_type == kernel.op_type):
                    self._kernel_of.setdefault(node, index)
        named = {
            index: node for index, kernel in enumerate(self._kernels) if (node := self._find_named(kernel))
        }
        for index, node in named.items():
            self._kernel_of.setdefault(node, index)
        for index, node in named.items():
            if not self._ends_at_known_tensor(self._kernels[index]):
                self._extend(index, node)
        for node in reversed(self._nodes):
            self._join_reader(node)
        groups = defaultdict[int, list[ir.Node]](list)
        for node in self._nodes:
            if node in self._kernel_of:
                groups[self._kernel_of[node]].append(node)
        return groups

    def _find_named(self, kernel: ir.Node) -> ir.Node | None:
        """Returns the node that a kernel is named for, or that makes the tensor that it is named for."""
        name = _ADDED.sub("", str(kernel.name or ""))
        if kernel.op_type == "Cast" and name not in self._by_name:
            return None  # it is named for what it converts
        return self._by_name.get(name) or self._makers.get(name)

    def _ends_at_known_tensor(self, kernel: ir.Node) -> bool:
        return any(str(value.name) in self._makers for value in kernel.outputs)

    def _extend(self, index: int, node: ir.Node) -> None:
        """Puts what follows a node into its kernel too, as far as that can be fused behind it."""
        read = {value.name for value in self._kernels[index].inputs if value is not None}
        while len(readers := [user for value in node.outputs for user, _ in value.uses()]) == 1:
            (reader,) = readers
            is_taken = reader in self._kernel_of or reader.op_type in (*_HEAVY, "DequantizeLinear")
            if (
                is_taken
                or node.op_type == "QuantizeLinear"
                or not self._reads_only(reader, node, index, read)
            ):
                return
            self._kernel_of[reader] = index
            node = reader

    def _reads_only(self, reader: ir.Node, node: ir.Node, index: int, read: set[str | None]) -> bool:
        """Returns whether all else that a node reads are constants, or what its kernel would read."""
        others = [value.producer() for value in reader.inputs if value is not None]
        makers = [other for other in others if other is not None and other is not node]
        kernels = [self._kernel_of.get(maker) for maker in makers]
        made = [self._kernels[kernel] for kernel in kernels if kernel is not None and kernel != index]
        return None not in kernels and all(
            any(value.name in read for value in kernel.outputs) for kernel in made
        )

    def _join_reader(self, node: ir.Node) -> None:
        """Puts a node into the kernel of the first that reads it, if it is in none."""
        users = [user for value in node.outputs for user, _ in value.uses()]
        known = [self._kernel_of[user] for user in users if user in self._kernel_of]
        if node not in self._kernel_of and known:
            self._kernel_of[node] = min(known)


def _find_user(kernel: ir.Node, users: Mapping[ir.Node, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the nodes for which a kernel converts, or because of which; none if there are none."""
    first = kernel.op_type in _FOR_READERS
    for forward in (first, not first):
        waiting, seen = deque([kernel]), {kernel}
        while waiting:
            for other in _list_neighbours(waiting.popleft(), forward=forward):
                if other in users:
                    return users[other]
                waiting += [other] if other not in seen else []
                seen.add(other)
    return ()


def _list_neighbours(kernel: ir.Node, *, forward: bool) -> Iterator[ir.Node]:
    if forward:
        return (user for value in kernel.outputs for user, _ in value.uses())
    makers = (value.producer() for value in kernel.inputs if value is not None)
    return (maker for maker in makers if maker is not None)
