"""Where the time of a quantized model or engine goes, layer by layer, beside the float one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from trtq.pipeline.engine.kernel_times import KernelTime
from trtq.pipeline.judge.speed import LayerTime

CONVERSIONS = "conversions"
"""The row of kernels that no layer of the float model is known for."""


@dataclass(frozen=True, slots=True)
class LayerTable:
    """The times of a candidate by layers of the float model, what quantization costs most first.

    Attributes:
        candidate: What was measured, such as "int8".
        against: The float model or engine.
        rows: The layers; the last may be `conversions`, which belong to no layer.
    """

    candidate: str
    against: str
    rows: tuple[LayerTime, ...]


def compare_layers(floats: Sequence[KernelTime], others: Sequence[KernelTime]) -> tuple[LayerTime, ...]:
    """Returns what each layer takes in both, with the conversions, what quantization costs most first.

    Nodes that either runtime computes in one kernel are one layer, so that a fused kernel stands beside all
    that it does.

    Args:
        floats: The kernels of the float model.
        others: Those of the quantized model, with the nodes as the float model calls them.
    """
    known = {node for kernel in floats for node in kernel.nodes}
    groups = _Joined()
    for kernel in (*floats, *others):
        groups.join([node for node in kernel.nodes if node in known])
    rows: dict[str, tuple[list[KernelTime], list[KernelTime]]] = defaultdict(lambda: ([], []))
    for side, kernels in enumerate((floats, others)):
        for kernel in kernels:
            first = next((node for node in kernel.nodes if node in known), None)
            rows[CONVERSIONS if first is None else groups.find(first)][side].append(kernel)
    found = [_summarize(key, known, *sides) for key, sides in rows.items()]
    return tuple(sorted(found, key=lambda row: row.float_ms - row.quantized_ms))


def _summarize(
    key: str, known: Iterable[str], floats: Sequence[KernelTime], others: Sequence[KernelTime]
) -> LayerTime:
    working = [kernel for kernel in (*floats, *others) if not kernel.converts]
    nodes = [node for kernel in (*working, *floats, *others) for node in kernel.nodes if node in known]
    names = tuple(dict.fromkeys(nodes)) if key != CONVERSIONS else ()
    return LayerTime(
        name=names[0] if names else CONVERSIONS,
        fused=names[1:],
        float_ms=sum(kernel.ms for kernel in floats),
        quantized_ms=sum(kernel.ms for kernel in others),
        conversions_ms=sum(kernel.ms for kernel in others if kernel.converts or not names),
        float_kernels=_list_types(floats),
        quantized_kernels=_list_types(others),
    )


def _list_types(kernels: Sequence[KernelTime]) -> tuple[str, ...]:
    """Returns the operators of kernels, those that compute first."""
    ordered = sorted(kernels, key=lambda kernel: kernel.converts)
    return tuple(dict.fromkeys(kernel.op_type or kernel.name for kernel in ordered))


class _Joined:
    """Names in groups that grow together."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def find(self, name: str) -> str:
        """Returns the name that stands for the group."""
        way = [name]
        while (above := self._above.get(way[-1], way[-1])) != way[-1]:
            way.append(above)
        self._above.update(dict.fromkeys(way, way[-1]))
        return way[-1]

    def join(self, names: Sequence[str]) -> None:
        """Makes one group of the groups of these names."""
        for name in names[1:]:
            self._above[self.find(name)] = self.find(names[0])


def rename_nodes(kernels: Iterable[KernelTime], names: Mapping[str, str]) -> Iterator[KernelTime]:
    """Yields the kernels with their nodes as another model calls them, where it has them."""
    for kernel in kernels:
        yield replace(kernel, nodes=tuple(names.get(node, node) for node in kernel.nodes))
