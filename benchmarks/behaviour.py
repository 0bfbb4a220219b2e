"""What trtq makes of models, by its command line alone: a record to hold two versions against each other.

    .venv/bin/python benchmarks/behaviour.py benchmarks/.work/models --output before.json
    .venv/bin/python benchmarks/behaviour.py --compare before.json after.json

The folder is one of models.py. Each model is built in INT8; that of `trtq demo` and two others go through
other commands too. Of ranges, codes and scales there are digests, with names and without.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from feeds import part_of

TRTQ = (sys.executable, "-m", "trtq")
_CALIB = "--calib-data {calibration} --calib-samples {samples} --calib-batch-size {batch}"
_EVAL = "--eval-data {evaluation} --eval-samples {compared}"
_RTX = f"{_CALIB} {_EVAL} --backend tensorrt-rtx --compute-capability 8.9"
STEPS = {
    "int8": f"build {{model}} --int8 {_CALIB} {_EVAL} --backend onnxruntime --output int8",
    "int8-rtx": f"build {{model}} --int8 {_RTX} --output int8-rtx",
    "fp16-rtx": f"build {{model}} --fp16 {_RTX} --output fp16-rtx",
    "ranges": f"calibrate {{model}} {_CALIB} --save-statistics statistics.npz --output ranges.json",
    "quantize": "quantize {model} --ranges ranges.json --output quantize.onnx",
    "int8+int4": "quantize {model} --ranges ranges.json --weights int4 --output int8+int4.onnx",
    **{f"weights-{b}": f"quantize {{model}} --weights {b} -o {{step}}.onnx" for b in ("int8", "int4", "nf4")},
    "cache": "cache export ranges.json --tensorrt 8.6.1 --model {model} --output calibration.cache",
    "migrate": f"migrate {{model}} calibration.cache {_EVAL} --backend onnxruntime --output migrate",
    "sensitivity": f"sensitivity {{model}} {_CALIB} {_EVAL} --output sensitivity.json",
}
_VOLATILE = "bytes data data_digest evaluation_data model path peak_rss_bytes seconds sizes_bytes timings_s"
_CODES = ("INT8", "UINT8", "INT4", "UINT4", "FLOAT8E4M3FN")


def main() -> None:
    """Writes the record of a folder of models, or compares two records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of models.py")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", nargs="*", help="these models; demo is one  [all]")
    parser.add_argument("--full", nargs="*", default=["demo", "ppocr_cls", "minilm_l3"], help="all commands")
    parser.add_argument("--samples", type=int, default=32, help="to calibrate with; half to compare on  [32]")
    parser.add_argument("--keep", type=Path, help="a new folder for all that is written  [none]")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="JSON")
    given = parser.parse_args()
    if given.compare:
        old, new = (json.loads(path.read_text()) for path in given.compare)
        keys = sorted(key for key in old | new if not given.only or key.split("/")[0] in given.only)
        lines = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
        print("\n".join(lines) or "no difference")
        sys.exit(bool(lines))
    with tempfile.TemporaryDirectory(prefix="behaviour-") as scratch:
        place = (given.keep or Path(scratch) / "made").resolve()
        subprocess.run([*TRTQ, "demo", place / "demo"], check=True)
        record: dict[str, Any] = {}
        for folder in [place / "demo", *sorted(given.folder.resolve().iterdir())]:
            if (folder / "model.onnx").exists() and (not given.only or folder.name in given.only):
                steps = STEPS if folder.name in given.full else ["int8"]
                record |= one_model(folder, place / f"of-{folder.name}", steps, given.samples)
                given.output.write_text(json.dumps(record, indent=0, sort_keys=True) + "\n")
                print(folder.name, "done", flush=True)


def one_model(folder: Path, place: Path, steps: Iterable[str], samples: int) -> dict[str, Any]:
    """Returns what each command makes of a model."""
    place.mkdir()
    task, record = folder / "task.json", dict[str, Any]()
    batch = 1 if task.exists() and json.loads(task.read_text())["one_by_one"] else 8
    given = {"model": folder / "model.onnx", "samples": samples, "compared": samples // 2, "batch": batch}
    given |= {part: part_of(folder, part) for part in ("calibration", "evaluation")}
    for step in steps:
        before = set(place.iterdir())
        words = [word.format(step=step, **given) for word in STEPS[step].split()]
        done = subprocess.run([*TRTQ, *words], cwd=place, capture_output=True, text=True)
        row: dict[str, Any] = {"exit_code": done.returncode}
        row["words"] = done.stderr.strip().split("\n")[-1] if done.returncode else ""
        for made in sorted(set(place.iterdir()) - before):
            row |= {path.name: content(path) for path in ([made] if made.is_file() else made.iterdir())}
        text = json.dumps(row).replace(f"{folder}", "DATA").replace(f"{place}", "MADE")
        record |= flat(json.loads(text), f"{folder.name}/{step}")
    return record


def content(path: Path) -> Any:
    """Returns what a file holds; of those that are not the same each time only that it is there."""
    if path.suffix == ".onnx":
        return model_facts(ir.load(path))
    if path.suffix == ".npz":
        return {name: digest(a) for name, a in np.load(path).items() if a.dtype != "u1"}  # a text with paths
    if path.suffix != ".json":
        return digest(path.read_text()) if path.suffix == ".cache" else "there"
    document = json.loads(path.read_bytes())
    if path.name == "ranges.json":
        texts = {name: json.dumps(item, sort_keys=True) for name, item in document["tensors"].items()}
        document |= {"named": digest(sorted(texts.items())), "nameless": digest(sorted(texts.values()))}
    kept = ["layers"] if path.name == "manifest.json" else document.keys() - {"key"}  # a digest of paths too
    return {key: document.get(key) for key in kept}


def model_facts(model: ir.Model) -> dict[str, Any]:
    """Returns the operators of a model, which inputs of its nodes take Q/DQ, and digests of its constants."""
    constants, codes, quantized = {}, {}, defaultdict(list)
    for node in model.graph.all_nodes():
        for place, value in enumerate(item for item in node.inputs if item is not None):
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is not None:
                constants[value.name] = digest(tensor.numpy())
                if tensor.dtype.name in _CODES or (place and "uantizeLinear" in node.op_type):
                    codes[value.name] = constants[value.name]
            elif getattr(value.producer(), "op_type", "") == "DequantizeLinear":
                quantized[node.name].append(str(place))
    operators = Counter(node.op_type for node in model.graph.all_nodes())
    facts: dict[str, Any] = {"operators": operators, "constants": digest(sorted(constants.values()))}
    facts |= {"named": digest(sorted(codes.items())), "nameless": digest(sorted(codes.values()))}
    return facts | {"quantized_inputs": {name: " ".join(places) for name, places in quantized.items()}}


def digest(value: Any) -> str:
    """Returns the SHA-256 of an array with its type and shape, or of another value."""
    array = isinstance(value, np.ndarray)
    content = f"{value.dtype}{value.shape}".encode() + value.tobytes() if array else repr(value).encode()
    return hashlib.sha256(content).hexdigest()


def flat(value: Any, where: str) -> dict[str, Any]:
    """Returns each value in a JSON value by the way to it, with six digits; of many numbers a digest."""
    if isinstance(value, list):
        numbers = len(value) > 8 and all(isinstance(item, int | float) for item in value)
        value = digest(value) if numbers else dict(enumerate(value))
    if not isinstance(value, dict):
        return {where: float(f"{value:.6g}") if isinstance(value, float) else value}
    kept = ((key, item) for key, item in value.items() if key not in _VOLATILE.split())
    return {way: leaf for key, item in kept for way, leaf in flat(item, f"{where}/{key}").items()}


if __name__ == "__main__":
    main()
