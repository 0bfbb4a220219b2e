"""Perplexity of a small decoder by the format of its weights, and of its cache; language.py trains it.

    .venv/bin/python benchmarks/perplexity.py benchmarks/.work/language --output FILE.json

Each model is what `trtq quantize --weights` writes, with blocks of 64, and computes in FP16. The text was
held back from training and calibration; a window of 128 tokens slides over it by 64. Bounds: INT8 within
0.5 % of FP16, INT4 by AWQ and GPTQ and NF4 within 3 %. lm_head stays FP16 unless `--quantize-sensitive` is
given.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from process import run
from tools import circumstances, trtq_command

from trtq.models.session import save
from trtq.pipeline.compare import compare_reading
from trtq.pipeline.graph.load import load
from trtq.pipeline.plan import plan_model
from trtq.pipeline.plan.sizes import DynamicSizes
from trtq.pipeline.rewrite.precision import to_fp16

FORMATS = {
    "int8": ("int8",),
    "int4 rtn": ("int4", "--weight-method", "rtn"),
    "int4 mse": ("int4", "--weight-method", "mse"),
    "int4 awq": ("int4", "--weight-method", "awq"),
    "int4 gptq": ("int4", "--weight-method", "gptq"),
    "nf4": ("nf4",),
    "nf4 double": ("nf4", "--double-quant"),
}
BOUNDS = {"int8": 0.005, "int4 awq": 0.03, "int4 gptq": 0.03, "nf4": 0.03}
ALL = "--quantize-sensitive"
WINDOW, STRIDE, TOKENS = 128, 64, 32_768


def main() -> None:
    """Measures; all is written as it is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    result: dict[str, Any] = {
        **circumstances(["trtq"]),
        "model": json.loads((given.models / "about.json").read_text()),
        "evaluation": {"tokens": TOKENS, "window": WINDOW, "stride": STRIDE},
        "bounds": BOUNDS,
        "formats": {},
    }
    with tempfile.TemporaryDirectory(prefix="bench-perplexity-") as place:
        for name, found in measure(given.models.resolve(), Path(place)):
            found["off_fp16"] = round(
                found["perplexity"] / result["formats"].get("fp16", found)["perplexity"] - 1, 5
            )
            result["formats"][name] = found
            print(name, json.dumps(found), flush=True)
            if given.output is not None:
                given.output.write_text(json.dumps(result, indent=1) + "\n")
    missed = [name for name, bound in BOUNDS.items() if result["formats"][name]["off_fp16"] > bound]
    sys.exit(f"further off FP16 than the bound: {', '.join(missed)}" if missed else 0)


def measure(models: Path, place: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields what is found of each format, FP16 first."""
    plain, cached = models / "decoder.onnx", models / "decoder.cached.onnx"
    tokens, half = place / "text.npy", place / "fp16.onnx"
    np.save(tokens, np.load(models / "evaluation.npy")[:, :TOKENS])
    save(to_fp16(load(plain, min_opset=21).model)[0], half)
    yield "fp16", compare(plain, half, tokens)
    for more in ((), (ALL,)):
        for name, options in FORMATS.items():
            file = quantize(plain, place / f"{name.replace(' ', '-')}.onnx", *options, *more)
            sizes = {"file_bytes": file.stat().st_size, "planned_weights_bytes": plan(plain, *options, *more)}
            yield f"{name}{', lm_head too' if more else ''}", {**compare(plain, file, tokens), **sizes}
    file = quantize(cached, place / "cached.onnx", "int8")
    yield "int8 with a cache", compare(cached, file, tokens)
    for form in ("int8", "fp8"):
        file = hold_cache(cached, place / f"cache-{form}.onnx", form)
        yield f"fp16 with a cache in {form}", compare(cached, file, tokens)


def plan(model: Path, form: str, *options: str) -> int:
    """Returns the size of all weights in a format, as `trtq plan` says."""
    double, everything = ("--double-quant" in options), (ALL in options)
    found = plan_model(
        model, sizes=DynamicSizes(seq=WINDOW), double_quant=double, quantize_sensitive=everything
    )
    return next(item.weights_bytes for item in found.schemes if item.name == form)


def quantize(model: Path, output: Path, *options: str) -> Path:
    """Returns the file that `trtq quantize --weights` writes."""
    needs_data = {"awq", "gptq"} & {*options}
    data = ("--calib-data", model.parent / "calibration.npz") if needs_data else ()
    cost = run([*trtq_command("quantize", model), "--weights", *options, *data, "--output", output], {}, 8e3)
    if cost.status != "done":
        sys.exit(f"{' '.join(options)}: {cost.words}")
    return output


def hold_cache(model: Path, output: Path, form: str) -> Path:
    """Returns the file that `trtq quantize --kv-cache` writes, by the calibration data with empty caches."""
    arrays, data = dict(np.load(model.parent / "calibration.npz")), output.with_suffix(".npz")
    for item in load(model, min_opset=21).inputs:
        if item.name not in arrays:
            shape = (
                len(arrays["input_ids"]),
                *(0 if isinstance(dim, str) else dim for dim in item.shape[1:]),
            )
            arrays[item.name] = np.zeros(shape, item.dtype)
    np.savez(data, **arrays)
    command = [*trtq_command("quantize", model), "--kv-cache", form, "--calib-data", data, "--output", output]
    if (cost := run(command, {}, 8e3)).status != "done":
        sys.exit(f"{form}: {cost.words}")
    return output


def compare(reference: Path, candidate: Path, tokens: Path) -> dict[str, Any]:
    """Returns the perplexity of the candidate, and how far its logits are from those of FP32."""
    found = compare_reading(reference, candidate, tokens, window=WINDOW, stride=STRIDE)
    return {
        "perplexity": round(found.perplexity, 4),
        "fp32_perplexity": round(found.reference_perplexity, 4),
        "kl_nats": round(found.kl_nats, 6),
        "top1": round(found.top1, 5),
        "top5": round(found.top5, 5),
        "kl_by_place": {f"{item.first}-{item.last}": round(item.kl_nats, 6) for item in found.spans},
    }


if __name__ == "__main__":
    main()
