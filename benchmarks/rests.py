"""Whether FP16 costs a detector much where most of its layers have 8 bits: mixtures with both rests.

    trtq calibrate benchmarks/.work/large/nudenet_yolo/model.onnx --repair auto,pad \
        --calib-data benchmarks/.work/large/nudenet_yolo/calibration.npz --output ranges.json
    python benchmarks/rests.py benchmarks/.work/large/nudenet_yolo ranges.json \
        benchmarks/results/layer-errors-pad-2026-11-29.json --output benchmarks/results/rests-2026-11-30.json

The mixtures are those of layer_errors.py, with the errors of the layers that it found, or the one of a build
by automatic.py. What is not quantized is FP32, then FP16 as an engine computes in it. Each is judged on all
evaluation samples, and on either half of them: how far the halves are apart shows what one of them can tell.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feeds import part_of
from layer_errors import Forms, choose, distance
from numpy.typing import NDArray
from tasks import score
from tools import circumstances

from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.models.session import open_session
from trtq.pipeline.formats import FP8, FP16, FP32, INT8
from trtq.pipeline.formats.floats import FloatFormat
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import Placement, place
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.rewrite.mixed import quantize_graph

_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_AT_A_TIME = 4
_PARTS = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}


def main() -> None:
    """Judges FP16 alone, then the mixtures; all is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a detector's folder, of models.py")
    parser.add_argument("ranges", type=Path, help="of trtq calibrate, for INT8")
    parser.add_argument("layers", type=Path, help="what layer_errors.py or automatic.py wrote")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    wanted = read_mixtures(given.layers)
    detector = Detector.read(given.folder, given.ranges)
    reference = detector.run({}, FP32)
    mixtures: list[dict[str, Any]] = []
    result = {**circumstances(["trtq"]), "samples": len(reference), "mixtures": mixtures}
    for macs, forms, rest in [(0.0, {}, FP16), *((*item, rest) for item in wanted for rest in (FP32, FP16))]:
        found = detector.run(forms, rest)
        mixtures.append(
            {"macs": macs, "rest": rest.name, "error": distance(found, reference)}
            | {"points_lost": detector.count_lost(found, reference)}
        )
        print(json.dumps(mixtures[-1]), flush=True)
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")


def read_mixtures(path: Path) -> list[tuple[float, Forms]]:
    """Returns mixtures, each behind its share of the MACs in 8 bits."""
    found = json.loads(path.read_text())
    if "models" in found:
        (built,) = found["models"].values()
        return [(built["quantized_macs"], built["layers"])]
    layers = found["layers"]
    chosen = [choose(layers, share) for share in _SHARES]
    return [(sum(layers[name]["macs"] for name in forms), forms) for forms in chosen]


@dataclass(frozen=True)
class Detector:
    """A detector with its ranges and evaluation data.

    Attributes:
        graph: The float model.
        ranges: Of its tensors.
        task: How its outputs are judged.
        name: Of its input.
        samples: What it is judged on: shape (samples, channels, height, width).
    """

    graph: Graph
    ranges: Ranges
    task: dict[str, Any]
    name: str
    samples: NDArray[Any]

    @staticmethod
    def read(folder: Path, ranges: Path) -> Detector:
        """Returns the detector of a folder."""
        task = json.loads((folder / "task.json").read_text())
        with np.load(part_of(folder, "evaluation")) as arrays:
            ((name, samples),) = arrays.items()
        graph = load(folder / "model.onnx", min_opset=FP8.min_opset)
        return Detector(graph, read_ranges(ranges), task, name, samples)

    def run(self, forms: Forms, rest: FloatFormat) -> NDArray[np.float32]:
        """Returns the output with these layers in 8 bits: shape (samples, boxes and classes, anchors)."""
        made = quantize_graph(self.graph, self._place(forms), self.ranges, rest=rest).model
        made = emulate_halves(made) or made
        session = open_session(make_quantize_exact(made) or made, optimize=False)
        starts = range(0, len(self.samples), _AT_A_TIME)
        parts = ({self.name: self.samples[start : start + _AT_A_TIME]} for start in starts)
        return np.concatenate([np.asarray(session.run(None, part)[0]) for part in parts])

    def _place(self, forms: Forms) -> Placement:
        placed = {form.name: place(self.graph.model, form=form).quantized for form in (INT8, FP8)}
        known = {(form, node.name): node for form, nodes in placed.items() for node in nodes}
        names = [str(node.name) for node in self.graph.model.graph if node.name in forms]
        return Placement(tuple(known[forms[name], name] for name in names))

    def count_lost(self, found: NDArray[Any], reference: NDArray[Any]) -> dict[str, float]:
        """Returns the points of the metric that are lost on all samples and on either half."""
        return {
            part: round(100 - 100 * score(self.task, [*found[own, None]], [*reference[own, None]]), 3)
            for part, own in _PARTS.items()
        }


if __name__ == "__main__":
    main()
