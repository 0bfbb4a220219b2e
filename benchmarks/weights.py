"""How fast weights are quantized, beside bitsandbytes and ONNX Runtime's own quantizers, on one core.

    python3 -m venv .venv-peers
    .venv-peers/bin/pip install --editable . bitsandbytes        # brings PyTorch
    .venv-peers/bin/python benchmarks/weights.py --output benchmarks/results/weights-2026-11-21.json

The bounds: at least 300 MB of FP32 weights a second and core, and faster than both. All quantize
the same weight of 4096 x 4096, in blocks of 64, and pack the codes; they take turns, on one core. That NF4 is
the same bit for bit is checked on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trtq.pipeline.formats import INT4, INT8, NF4
from trtq.pipeline.formats.blocks import pack_nibbles, swap_nibbles
from trtq.pipeline.formats.granularity import PerBlock, PerChannel

BOUND_MB_S = 300
SIZE, BLOCK = 4096, 64


def main() -> None:
    """Measures, prints and, if asked, writes the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE), dtype=np.float32)
    times = turns(calls(weight), given.rounds)
    speeds = {name: round(weight.nbytes / 1e6 / statistics.median(taken), 1) for name, taken in times.items()}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cpu": cpu()},
        "versions": {
            name: version(name) for name in ("trtq", "numpy", "bitsandbytes", "torch", "onnxruntime")
        },
        "weight": {"shape": [SIZE, SIZE], "dtype": "float32", "block_size": BLOCK},
        "rounds": given.rounds,
        "bound_mb_per_s": BOUND_MB_S,
        "mb_per_s": speeds,
        "fastest_mb_per_s": {
            name: round(weight.nbytes / 1e6 / min(taken), 1) for name, taken in times.items()
        },
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")
    ours = {name: speed for name, speed in speeds.items() if name.startswith("trtq")}
    if min(ours["trtq nf4"], ours["trtq int4 rtn"]) < BOUND_MB_S:
        sys.exit("slower than the bound")


def calls(weight: np.ndarray[Any, np.dtype[np.float32]]) -> Mapping[str, Callable[[], object]]:
    """Returns what is measured, by name; `weight` is (in, out), for bitsandbytes it is (out, in)."""
    import torch
    from bitsandbytes import functional
    from onnxruntime.quantization import matmul_bnb4_quantizer, matmul_nbits_quantizer

    torch.set_num_threads(1)
    tensor = torch.from_numpy(weight)
    config = matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True)
    nbits = matmul_nbits_quantizer.DefaultWeightOnlyQuantizer(config)
    bnb4 = matmul_bnb4_quantizer.MatMulBnb4Quantizer.__new__(matmul_bnb4_quantizer.MatMulBnb4Quantizer)
    bnb4.quant_type, bnb4.block_size = 1, BLOCK

    def nf4(axis: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return swap_nibbles(pack_nibbles(NF4.encode(weight, PerBlock(axis, BLOCK))[0]))

    theirs = functional.quantize_4bit(tensor, blocksize=BLOCK, quant_type="nf4")[0].numpy().reshape(-1)
    if not np.array_equal(nf4(1), theirs):
        sys.exit("NF4 codes differ from bitsandbytes")
    return {
        "trtq nf4": lambda: nf4(0),
        "trtq nf4, weight as (out, in)": lambda: nf4(1),
        "bitsandbytes nf4": lambda: functional.quantize_4bit(tensor, blocksize=BLOCK, quant_type="nf4"),
        "onnxruntime MatMulBnb4Quantizer nf4": lambda: bnb4.bnb4_block_quant(weight),
        "trtq int4 rtn": lambda: pack_nibbles(INT4.encode(weight, PerBlock(0, BLOCK))[0]),
        "trtq int4 rtn, weight as (out, in)": lambda: pack_nibbles(
            INT4.encode(weight, PerBlock(1, BLOCK))[0]
        ),
        "onnxruntime MatMul4BitsQuantizer int4": lambda: nbits.qbits_block_quant(weight),
        "trtq int4 mse": lambda: pack_nibbles(INT4.encode(weight, PerBlock(0, BLOCK), method="mse")[0]),
        "trtq int8": lambda: INT8.encode(weight, PerChannel(1)),
    }


def turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each call; they take turns, so that a busy moment hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def cpu() -> str:
    """Returns the name of the processor; empty where Linux does not tell."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
