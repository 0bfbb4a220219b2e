"""How large the engines of a decoder are, beside what `trtq plan` says: weights in 8 and 4 bits.

    .venv/bin/python benchmarks/decoder_engines.py --output benchmarks/results/decoder-engines-2026-11-29.json

TensorRT-RTX builds each from a decoder of 0.3 billion parameters with random FP16 weights, which is made
first. `off_plan` is the size of the engine file over the planned one, less 1, and may be 5 % at most; what an
engine holds beside its weights is in both. No engine is run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from decoder import Shape, write_decoder
from process import run
from tools import circumstances, read_plan, trtq_command

FORMATS = ("int8", "fp8", "int4", "nf4")
SHAPE = Shape(1536, 4096, 8, 16, 4, vocabulary=32_000)
MOST_OFF = 0.05
_MEMORY_MB = 24e3


def main() -> None:
    """Measures; all is written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-decoder-") as place:
        model = Path(place) / "model" / "model.onnx"
        model.parent.mkdir()
        result: dict[str, Any] = {**circumstances(["trtq"]), "shape": asdict(SHAPE), "most_off": MOST_OFF}
        result["weights"] = write_decoder(SHAPE, model)
        result["formats"] = {}
        planned = read_plan(model, "engine_bytes", "--seq", "1")
        for form in FORMATS:
            result["formats"][form] = measured = measure(model, form, planned[form])
            print(form, json.dumps(measured), flush=True)
            given.output.write_text(json.dumps(result, indent=1) + "\n")
    off = [form for form, found in result["formats"].items() if abs(found["off_plan"]) > MOST_OFF]
    sys.exit(f"off the plan: {', '.join(off)}" if off else 0)


def measure(model: Path, form: str, planned_bytes: int) -> dict[str, Any]:
    """Returns the size of one engine and of its model."""
    with tempfile.TemporaryDirectory(prefix="out-", dir=model.parent.parent) as place:
        folder = Path(place) / "built"
        options = ["--weights", form, "--compute-capability", "8.9", "--random-data"]
        command = [*trtq_command("build", model), *options, "-o", folder]
        cost = run(command, {}, _MEMORY_MB)
        engine = folder / "model.engine"
        if not engine.exists():
            sys.exit(f"{form}: {cost.status}: {cost.words}")
        size = engine.stat().st_size
    return {
        "wall_s": cost.wall_s,
        "peak_mb": cost.peak_mb,
        "engine_bytes": size,
        "planned_bytes": planned_bytes,
        "off_plan": round(size / planned_bytes - 1, 4),
    }


if __name__ == "__main__":
    main()
