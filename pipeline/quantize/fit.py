"""Whether ranges from a file are those of the model that they are to quantize."""

from __future__ import annotations

from collections.abc import Iterator

from trtq.calibrators.channels import ChannelLayout
from trtq.calibrators.ranges import Ranges
from trtq.errors import UsageError
from trtq.numbers import format_count, format_shape
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.rewrite.channels.statistics import find_channel_layouts
from trtq.progress import Watcher


def check_fit(ranges: Ranges, graph: Graph, placement: Placement, watcher: Watcher) -> None:
    """Refuses ranges of another model, and warns of those of another file of the same model.

    Names alone prove little, since exporters count: "x" and "/Relu_output_0" are in many models. So channels
    are counted too.

    Raises:
        UsageError: A tensor has no range, or other channels.
    """
    if ranges.rotation == "none":  # a rotated tensor has another name
        ranges.require(placement.formats)
        layouts = find_channel_layouts(graph.model, placement)
        differing = next(_list_differing(ranges, layouts), None)
        if differing is not None:
            raise UsageError(f"the ranges were calibrated for another model: {differing}; calibrate again")
    if ranges.is_random:
        watcher.warn("the ranges come from random numbers: the accuracy of what has them means nothing")
    if ranges.model_sha256 != graph.sha256:
        watcher.warn(
            f"the ranges were calibrated for another file than {graph.path}; if its weights differ, "
            "calibrate again"
        )


def _list_differing(ranges: Ranges, layouts: dict[str, ChannelLayout]) -> Iterator[str]:
    """Yields what the ranges say of channels that the model has not."""
    for name, layout in layouts.items():
        if seen := ranges.shapes.get(name):
            axis = 1 if layout.is_second else -1
            if len(seen.opt) < 2 or seen.opt[axis] != layout.number:
                shape = format_shape(seen.opt)
                yield f"its input {name!r} had shape {shape}, and this one has {_count(layout)}"
        found = ranges.channels.get(name)
        lengths = () if found is None else (len(found.mean), len(found.scale), len(found.shift))
        if number := next((item for item in lengths if item not in (0, layout.number)), None):
            yield f"its tensor {name!r} had {format_count(number, 'channel')}, and has {_count(layout)} here"


def _count(layout: ChannelLayout) -> str:
    return format_count(layout.number, "channel")
