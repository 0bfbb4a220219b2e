"""A weight of several matrices (mixture of experts) has one scale only if none is lost by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.weights.choose import choose_weights

_RNG = np.random.default_rng(4)


def _load(path: Path, sizes: tuple[float, ...]) -> Graph:
    weight: NDArray[np.float32] = _RNG.uniform(-1, 1, (len(sizes), 64, 64)).astype(np.float32)
    weight *= np.array(sizes, np.float32)[:, None, None]
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[4,N,64] x) => (float[4,N,64] y) { [moe] y = MatMul(x, w) }""")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, path)
    return load(path, min_opset=13)


@pytest.mark.parametrize("sizes", [(1, 0.1, 0.01, 0.001), (1, 1, 1, 1e-6)])
def test_unequal_experts_stay_float(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    model = _load(tmp_path / "m.onnx", sizes).model
    for placement in (place(model), choose_weights(model, WeightScheme("int8"))):
        assert [(node.name, node.reason.partition(":")[0]) for node in placement.kept] == [
            ("moe", "unequal matrices")
        ]
        assert placement.quantized == ()
    assert "one scale for all, which would wipe out the small ones" in place(model).kept[0].reason
    assert [node.name for node in place(model, force=["moe"]).quantized] == ["moe"]


@pytest.mark.parametrize("sizes", [(1, 0.9, 0.5, 0.3), (1, 1, 0, 1)])
def test_like_experts_share_a_scale(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    model = _load(tmp_path / "m.onnx", sizes).model
    for placement in (place(model), choose_weights(model, WeightScheme("int8"))):
        assert [node.name for node in placement.quantized] == ["moe"]
