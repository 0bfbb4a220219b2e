"""What several cases start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest

_SMALL = """
    <ir_version: 9, opset_import: ["" : 19]>
    small (float[N,4] x) => (float[N,16] y) { [fc] y = MatMul (x, w) }"""


@pytest.fixture
def small_model() -> Callable[[Path], None]:
    """Writes m.onnx, one MatMul, and x.npz, 32 samples for it, into a folder."""

    def write(folder: Path) -> None:
        rng = np.random.default_rng(0)
        model = onnx.parser.parse_model(_SMALL)
        weight = rng.standard_normal((4, 16)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        onnx.save(model, folder / "m.onnx")
        np.savez(folder / "x.npz", x=rng.standard_normal((32, 4)).astype(np.float32))

    return write
