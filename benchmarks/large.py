"""What quantizing a language model that does not fit into memory takes: `trtq quantize --weights`.

    .venv/bin/python benchmarks/large.py --size 10B --output benchmarks/results/large-2026-11-30.json

The model is a decoder of 10 billion parameters with random FP16 weights, 20 GB in shards of 4 GB, which is
made first (some 45 GB of disk in all; `--size 1B` takes a tenth). The bounds: at most 3 GB of memory, at
least 300 MB of FP16 weights a second of one core, sizes within 2 % of what `trtq plan` says, and nothing
half-written or left over by a command that is killed and given again. lm_head is stored in few bits too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoder import SHAPES, write_decoder
from process import run
from tools import circumstances, read_plan, trtq_command

FORMATS = ("int8", "int4", "nf4")
MOST_MEMORY_MB, LEAST_MB_S, MOST_OFF = 3000, 300, 0.02


def main() -> None:
    """Measures; all is written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="10B")
    parser.add_argument("--work", type=Path, help="a folder with room for it; default: that of TMPDIR")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-large-", dir=given.work) as place:
        model = Path(place) / "model" / "model.onnx"
        model.parent.mkdir()
        result = {**circumstances(["trtq"]), "bounds": {
            "peak_mb": MOST_MEMORY_MB, "mb_per_s_and_core": LEAST_MB_S, "off_plan": MOST_OFF,
        }}  # fmt: skip
        result["model"] = make(given.size, model)
        planned = read_plan(model, "weights_bytes", "--seq", "16", "--quantize-sensitive")
        result["formats"] = {}
        for form in FORMATS:
            result["formats"][form] = measured = measure(model, form, planned[form])
            print(form, json.dumps(measured), flush=True)
            _write(given.output, result)
        result["killed"] = kill(model, "int8", result["formats"]["int8"]["wall_s"] / 2)
        print("killed", json.dumps(result["killed"]), flush=True)
        _write(given.output, result)
    missed = find_missed(result)
    sys.exit("; ".join(missed) if missed else 0)


def make(size: str, model: Path) -> dict[str, Any]:
    """Writes the model and returns what it is."""
    start = time.perf_counter()
    num_weights = write_decoder(SHAPES[size], model)
    return {
        "shape": asdict(SHAPES[size]),
        "weights": num_weights,
        "fp16_bytes": 2 * num_weights,
        "files": len(list(model.parent.iterdir())),
        "made_in_s": round(time.perf_counter() - start, 1),
    }


def measure(model: Path, form: str, planned_bytes: int) -> dict[str, Any]:
    """Returns what one format costs, and what is written; that is removed then."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=model.parent.parent) as place:
        output = Path(place) / "model.onnx"
        cost = run(_command(model, form, output), {}, 24e3)
        if cost.status != "done":
            sys.exit(f"{form}: {cost.status}: {cost.words}")
        written = sum(path.stat().st_size for path in Path(place).iterdir())
    read = sum(path.stat().st_size for path in model.parent.iterdir())
    return {
        "wall_s": cost.wall_s,
        "cpu_s": cost.cpu_s,
        "peak_mb": cost.peak_mb,
        "mb_per_s_and_core": round(read / 1e6 / cost.cpu_s, 1),
        "written_bytes": written,
        "planned_bytes": planned_bytes,
        "off_plan": round(written / planned_bytes - 1, 4),
    }


def kill(model: Path, form: str, seconds: float) -> dict[str, Any]:
    """Kills a command in the middle, gives it again, and returns what lay there each time."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=model.parent.parent) as place:
        output = Path(place) / "model.onnx"
        child = subprocess.Popen(
            [str(part) for part in _command(model, form, output)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(seconds)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        killed = sorted(path.name for path in Path(place).iterdir())
        held = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
        again = run(_command(model, form, output), {}, 24e3)
        left = sorted(path.name for path in Path(place).iterdir())
    return {
        "after_s": round(seconds, 1),
        "half_written": [name for name in killed if not name.startswith(".")],
        "temporary_bytes": held,
        "again": again.status,
        "there_at_the_end": left,
    }


def find_missed(result: dict[str, Any]) -> list[str]:
    """Returns the bounds that are not kept."""
    missed = []
    for form, found in result["formats"].items():
        if found["peak_mb"] > MOST_MEMORY_MB:
            missed.append(f"{form} takes {found['peak_mb']} MB of memory")
        if found["mb_per_s_and_core"] < LEAST_MB_S:
            missed.append(f"{form} does {found['mb_per_s_and_core']} MB a second")
        if abs(found["off_plan"]) > MOST_OFF:
            missed.append(f"{form} is {found['off_plan']:.1%} off the plan")
    killed = result["killed"]
    if killed["half_written"] or killed["there_at_the_end"] != ["model.onnx", "model.onnx.data"]:
        missed.append("a killed command left something")
    return missed


def _command(model: Path, form: str, output: Path) -> list[str | Path]:
    return [*trtq_command("quantize", model, "--output", output), "--weights", form, "--quantize-sensitive"]


def _write(output: Path | None, result: dict[str, Any]) -> None:
    if output is not None:
        output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
