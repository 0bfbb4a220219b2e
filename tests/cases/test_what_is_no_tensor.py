"""Sequences and optional tensors inside a model are built, where no tensor could be cast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq

_WRAPPED = {
    "optional": "o = Optional (a) b = OptionalGetElement (o)",
    "sequence": "s = SplitToSequence <axis = 1> (a, sizes) b = ConcatFromSequence <axis = 1> (s)",
    "one": "s = SequenceConstruct (a, a) b = SequenceAt (s, zero)",
}


@pytest.mark.parametrize("nodes", _WRAPPED.values(), ids=_WRAPPED)
def test_what_is_no_tensor_stays_as_it_is(path_of: Callable[..., Path], tmp_path: Path, nodes: str) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) / 8 for name in "wv"}
    sizes = {"sizes": np.array([16, 48]), "zero": np.array(0)}
    used = {name: value for name, value in sizes.items() if name in nodes}
    model = path_of(
        f"g (float[N,64] x) => (float[N,64] y) {{ a = MatMul (x, w) {nodes} y = MatMul (b, v) }}",
        opset=18, **weights, **used,
    )  # fmt: skip
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((32, 64)).astype(np.float32))
    report = trtq.build(
        model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime", high_precision="fp16",
        calib_method="minmax", repair=("none",),
    )  # fmt: skip
    assert report.verdict == "pass"
