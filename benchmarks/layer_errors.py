r"""How much of a detector can be in 8 bits for a point: the error of each layer alone, and of mixtures.

    trtq calibrate benchmarks/.work/large/nudenet_yolo/model.onnx \
        --calib-data benchmarks/.work/large/nudenet_yolo/calibration.npz --output ranges.json
    python benchmarks/layer_errors.py benchmarks/.work/large/nudenet_yolo ranges.json \
        --output benchmarks/results/layer-errors-2026-11-29.json

The ranges of `layer-errors-pad-2026-11-29.json` are made with `--repair auto,pad`.

Each layer is in INT8 alone, then in FP8 alone, on a few of the first, third ... evaluation samples; its error
is that of the scores of classes. Then the layers with the least error for their multiplications are put into
8 bits together, each in its better format, and these mixtures are judged by the metric on the second, fourth
... samples. `expected` is the sum of the errors of the layers alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from feeds import part_of
from numpy.typing import NDArray
from tasks import score
from tools import circumstances

from trtq.calibrators.batches import Feed
from trtq.calibrators.ranges import read_ranges
from trtq.pipeline.formats import FP8, INT8
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.placement import place
from trtq.pipeline.judge.macs import count_macs
from trtq.pipeline.judge.switchable import Switchable, open_switchable

Forms = Mapping[str, str]
_BOXES = 4
"""The rows of the output before those of the classes."""
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_AT_A_TIME = 4


def main() -> None:
    """Measures each layer, then the mixtures; all is written after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="a detector's folder, of models.py")
    parser.add_argument("ranges", type=Path, help="of trtq calibrate, for INT8")
    parser.add_argument("--few", type=int, default=16, help="samples for each layer  [16]")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    task = json.loads((given.folder / "task.json").read_text())
    with np.load(part_of(given.folder, "evaluation")) as arrays:
        ((name, samples),) = arrays.items()
    model = load(given.folder / "model.onnx", min_opset=FP8.min_opset).model
    others = [place(model, form=FP8)]
    session = open_switchable(model, place(model, form=INT8), read_ranges(given.ranges), others=others)
    macs = count_macs(model, Feed({name: samples[:1]}, "one", 1))
    total = sum(macs.values())
    chosen, judged = samples[::2], samples[1::2]
    few = chosen[:: max(1, len(chosen) // given.few)]
    errors = measure_layers(session, name, few)
    result: dict[str, Any] = {**circumstances(["trtq"]), "samples": [len(few), len(judged)], "mixtures": []}
    result["layers"] = {
        layer: {"macs": macs.get(layer, 0) / total, "error": own} for layer, own in errors.items()
    }
    reference = run(session, name, judged, {})
    for share in _SHARES:
        forms = choose(result["layers"], share)
        found = run(session, name, judged, forms)
        result["mixtures"].append(
            {
                "macs": sum(macs.get(layer, 0) for layer in forms) / total,
                "layers": len(forms),
                "expected": sum(errors[layer][form] for layer, form in forms.items()),
                "error": distance(found, reference),
                "score": score(task, list(found[:, None]), list(reference[:, None])),
            }
        )
        print(json.dumps(result["mixtures"][-1]), flush=True)
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")


def measure_layers(session: Switchable, name: str, samples: NDArray[Any]) -> dict[str, dict[str, float]]:
    """Returns the error of the scores with each layer alone in each of its formats."""
    reference = run(session, name, samples, {})
    return {
        layer: {form: distance(run(session, name, samples, {layer: form}), reference) for form in forms}
        for layer, forms in session.layers.items()
    }


def choose(layers: Mapping[str, Any], share: float) -> dict[str, str]:
    """Returns the formats of the layers with the least error for their MACs, up to this share of all."""
    best = {layer: min(item["error"], key=item["error"].get) for layer, item in layers.items()}

    def error_per_mac(layer: str) -> float:
        return float(layers[layer]["error"][best[layer]] / max(layers[layer]["macs"], 1e-9))

    forms: dict[str, str] = {}
    left = share
    for layer in sorted(best, key=error_per_mac):
        if layers[layer]["macs"] <= left:
            forms[layer] = best[layer]
            left -= layers[layer]["macs"]
    return forms


def run(session: Switchable, name: str, samples: NDArray[Any], forms: Forms) -> NDArray[np.float32]:
    """Returns the output with these layers in 8 bits: shape (samples, boxes and classes, anchors)."""
    found = []
    with session.runner("mixture", forms) as runner:
        for start in range(0, len(samples), _AT_A_TIME):
            outputs = runner.infer({name: samples[start : start + _AT_A_TIME]})
            found.append(np.array(next(iter(outputs.values()))))
    return np.concatenate(found)


def distance(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Returns the power of the error of the scores, relative to theirs."""
    mine, wanted = (item[:, _BOXES:].astype(np.float64) for item in (ours, theirs))
    return float(((mine - wanted) ** 2).sum() / (wanted**2).sum())


if __name__ == "__main__":
    main()
