r"""What `trtq build --auto` brings back of the task's score where plain INT8 loses more than a point.

    benchmarks/.work/bench/bin/python benchmarks/models.py --evaluation 128 --folder benchmarks/.work/large \
        --only ppocr_det ppocr_rec vit_s_focus silero_vad_seq
    benchmarks/.work/bench/bin/python benchmarks/models.py --evaluation 256 --folder benchmarks/.work/large \
        --only ddddocr_yolox nudenet_yolo
    .venv/bin/python benchmarks/automatic.py --folder benchmarks/.work/large \
        --output benchmarks/results/automatic-2026-11-21.json
    .venv/bin/python benchmarks/automatic.py --folder benchmarks/.work/large \
        --models nudenet_yolo --formats int8,fp8,fp16 --compute-capability 8.9 --repair auto,pad \
        --output automatic-formats.json

For each model the right answers are the labels where they are known, else the float model's own outputs on
the evaluation data, and the gate is one point of its task's metric alone. Half of the data chooses the
layers, the other half judges: with the 64 samples of the other benchmarks one box or one file is already more
than a point. `make bench-peers` sets up what is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import truth_of
from feeds import part_of
from tools import MODELS, circumstances, models

DEFAULT_MODELS = (
    "nudenet_yolo", "vit_s_focus", "ddddocr_yolox", "ppocr_det", "ppocr_rec", "silero_vad_seq",
)  # fmt: skip
_SCRIPT = """
import json
import sys

sys.path.insert(0, {benchmarks!r})
from tasks import score

TASK = json.loads({task!r})


def metric(outputs, labels):
    found = outputs[TASK["output"]]
    if TASK["answers"] is None:
        return score(TASK, [row[None] for row in found.reshape(labels.shape)], [row[None] for row in labels])
    task = {{**TASK, "answers": [TASK["answers"][index] for index in labels]}}
    return score(task, [row[None] for row in found], [])
"""


def main() -> None:
    """Builds each model; all is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--folder", type=Path, default=MODELS, help="where models.py wrote them")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--formats", help="as `trtq build` takes them  [--int8 --auto]")
    parser.add_argument("--compute-capability", help="the GPU to build for")
    parser.add_argument("--op-types", help="the types of nodes to quantize")
    parser.add_argument("--repair", help="the repairs to try")
    parser.add_argument("--activations", help="symmetric or per-token")
    parser.add_argument("--high-precision", help="what is not quantized runs in this")
    parser.add_argument(
        "--float", nargs="*", default=(), help="layers that stay float: the rest is INT8, without a search"
    )
    given = parser.parse_args()
    asked = ["--formats", given.formats] if given.formats else ["--int8", "--auto"][: 1 if given.float else 2]
    asked += [word for name in given.float for word in ("--skip", f"^{re.escape(name)}$")]
    for option in ("compute_capability", "op_types", "repair", "activations", "high_precision"):
        value = getattr(given, option)
        asked += [f"--{option.replace('_', '-')}", value] if value else []
    result: dict[str, Any] = {**circumstances(["trtq"]), "asked": " ".join(asked), "models": {}}
    for name, folder in models(given.models, given.folder).items():
        result["models"][name] = made = build(folder, asked)
        print(name, json.dumps(made), flush=True)
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")


def build(folder: Path, asked: list[str]) -> dict[str, Any]:
    """Returns the verdict, the scores of both halves and the share of MACs by format."""
    truth = truth_of(folder)
    with tempfile.TemporaryDirectory(prefix="bench-auto-") as place:
        labels, script = Path(place) / "labels.npy", Path(place) / "script.py"
        own = truth.outputs[truth.task["output"]]
        known = truth.task["answers"] is not None
        rows = [row[0] if row.shape[0] == 1 else row for row in own]
        np.save(labels, np.arange(len(own)) if known else np.stack(rows))
        benchmarks = str(Path(__file__).resolve().parent)
        script.write_text(_SCRIPT.format(benchmarks=benchmarks, task=json.dumps(truth.task)))
        command = [
            sys.executable, "-m", "trtq", "build", str(folder / "model.onnx"), *asked,
            "--calib-data", str(part_of(folder, "calibration")),
            "--eval-data", str(part_of(folder, "evaluation")),
            "--labels", str(labels), "--eval-output", truth.task["output"],
            "--metric", f"{script}:metric", "--min-cosine", "-1", "--max-drop", "1",
            "--output", str(Path(place) / "made.trtq"), "--json",
        ]  # fmt: skip
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
        if not done.stdout:
            return {"exit_code": done.returncode, "words": done.stderr.strip().splitlines()[-1]}
        report = json.loads(done.stdout)
        auto = report["auto"] or {}
        return {
            "exit_code": done.returncode,
            "wall_s": round(time.monotonic() - start, 1),
            "verdict": report["verdict"],
            "accuracy": report["accuracy"],
            "outcome": auto.get("outcome"),
            "quantized_macs": auto.get("quantized_macs"),
            "quantized_macs_before": auto.get("quantized_macs_before"),
            "formats": auto.get("formats"),
            "layers": auto.get("layers"),
            "macs": report["quantized_macs"],
            "costs": [auto.get(key) for key in ("cost_before", "cost", "cost_float")],
            "kept": [layer["name"] for layer in auto.get("kept", ())],
            "samples": report["evaluated_samples"],
            "passes": auto.get("evaluation_passes"),
            "times_judged": auto.get("times_judged"),
            "layers_realized": report["engine"]["layers_realized"],
            "layers_quantized": report["engine"]["layers_quantized"],
        }


if __name__ == "__main__":
    main()
