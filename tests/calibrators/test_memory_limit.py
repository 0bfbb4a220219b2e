"""A test of the memory bound under a hard limit of the address space, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, onnx, onnx.parser, onnx_ir as ir
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.observe import PassControl, observe
from trtq.models.session import SessionOptions, open_session, run

MB = 1 << 20
nodes = " ".join(f"t{i + 1} = Sigmoid(t{i})" for i in range(24))
text = f'<ir_version: 8, opset_import: ["" : 17]> wide (float[N,M] t0) => (float[N,1] y) {{ {nodes} '
proto = onnx.parser.parse_model(text + "y = ReduceMax <axes=[1]> (t24) }")
model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
feeds = [Feed({"t0": np.full((1, 4 * MB), i, np.float32)}, str(i), 1) for i in range(2)]  # 16 MB a tensor
batches = Batches(lambda: iter(feeds), "memory", 2)
tensors = [f"t{i + 1}" for i in range(24)]
plain = open_session(model, optimize=True, engine=SessionOptions(num_threads=1))
run(plain, ["y"], feeds[0].arrays)  # the plain inference stays open: what follows comes on top
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
allowed = int(sys.argv[1]) * MB
resource.setrlimit(resource.RLIMIT_AS, (taken + 330 * MB, taken + 330 * MB))  # all takes 384
notes = []
seen = observe(model, tensors, batches, control=PassControl(memory_bytes=allowed, note=notes.append))
print(len(seen.histograms), min(h.total for h in seen.histograms.values()), notes)
"""


def _observed(memory_mb: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CHILD, str(memory_mb)]
    # An arena of malloc for every thread would take 64 MB of addresses each, and no memory.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_what_does_not_fit_at_once_is_observed_in_passes_under_a_hard_limit() -> None:
    process = _observed(80)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"24 {8 << 20} ['the observed tensors take 384 MiB at a time, ")


def test_all_at_once_would_not_fit() -> None:
    process = _observed(4000)
    assert process.returncode != 0
    assert "ModelError: ONNX Runtime cannot run the model" in process.stderr or pytest.fail(process.stderr)
