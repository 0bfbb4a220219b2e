"""A small decoder with a cache of one layer that grows by Concat, as exporters write it, and its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

PAIRS = {"past_key_values_0_key": "present_0_key", "past_key_values_0_value": "present_0_value"}
_TEXT = """<ir_version: 10, opset_import: ["" : 21]>
g (int64[N, S] input_ids,
   float[N, 2, P, 16] past_key_values_0_key, float[N, 2, P, 16] past_key_values_0_value)
=> (float[N, S, 64] logits, float[N, 2, T, 16] present_0_key, float[N, 2, T, 16] present_0_value) {
    x = Gather (table, input_ids)
    before = Shape <start = 2, end = 3> (past_key_values_0_key) counted = Cast <to = 1> (before)
    small = Mul (counted, tiny) y = Add (x, small)
    k0 = MatMul (y, wk) k1 = Reshape (k0, heads) k = Transpose <perm = [0, 2, 1, 3]> (k1)
    v0 = MatMul (y, wv) v1 = Reshape (v0, heads) v = Transpose <perm = [0, 2, 1, 3]> (v1)
    q0 = MatMul (y, wq) q1 = Reshape (q0, heads) q = Transpose <perm = [0, 2, 1, 3]> (q1)
    [keys] present_0_key = Concat <axis = 2> (past_key_values_0_key, k)
    [values] present_0_value = Concat <axis = 2> (past_key_values_0_value, v)
    kt = Transpose <perm = [0, 1, 3, 2]> (present_0_key)
    scores = MatMul (q, kt) shares = Softmax (scores) mixed = MatMul (shares, present_0_value)
    m = Transpose <perm = [0, 2, 1, 3]> (mixed) flat = Reshape (m, width) z = Add (y, flat)
    [head] logits = MatMul (z, out)
}"""


def write_decoder(path: Path) -> Path:
    """Writes the model: tokens of 64, width 32, two heads of 16."""
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(_TEXT)
    arrays: dict[str, NDArray[np.generic]] = {
        name: (rng.standard_normal((32, width)) / 6).astype(np.float32)
        for name, width in (("wk", 32), ("wv", 32), ("wq", 32), ("out", 64))
    }
    arrays["table"] = rng.standard_normal((64, 32)).astype(np.float32)
    arrays["tiny"] = np.array([0.01], np.float32)
    arrays |= {"heads": np.array([0, 0, 2, 16]), "width": np.array([0, 0, 32])}
    for name, values in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, path)
    return path


def write_data(path: Path, past: int) -> Path:
    """Writes 16 samples of 6 tokens behind so many positions."""
    rng = np.random.default_rng(1)
    caches = {name: rng.standard_normal((16, 2, past, 16)).astype(np.float32) for name in PAIRS}
    np.savez(path, input_ids=rng.integers(0, 64, (16, 6)), **caches)  # type: ignore[arg-type]
    return path
