"""Which attention the builder has fused in the format that it is asked in."""

from __future__ import annotations

from collections.abc import Iterator

from trtq.pipeline.engine.backend import BuiltEngine
from trtq.pipeline.graph.attention import RULE, Attention
from trtq.pipeline.graph.placement import Placement


def find_unfused(attentions: Iterator[Attention], placement: Placement, built: BuiltEngine) -> dict[str, str]:
    """Returns the products of attention in 8 bits that are not fused in these bits, and what runs instead.

    Args:
        attentions: Of the float graph.
        placement: What of it takes codes.
        built: What the builder made; if it does not tell its kernels, nothing is known.
    """
    placed = {node.name: node for node in placement.quantized if node.scheme.rule == RULE}
    found: dict[str, str] = {}
    for item in attentions if built.kernels else ():
        names = {str(item.scores.name), str(item.context.name)}
        if not names <= placed.keys():
            continue
        form = placed[str(item.scores.name)].scheme.inputs[0][1].format
        fused = [kernel for kernel in built.kernels if names <= {*kernel.nodes}]
        if not any(kernel.multiplies_in == form.name for kernel in fused):
            runs_as = "/".join(fused[0].inputs) if fused else "several kernels"
            found |= dict.fromkeys(names, f"the builder did not fuse this attention in {form}: {runs_as}")
    return found
