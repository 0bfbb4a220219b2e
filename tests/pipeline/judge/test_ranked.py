"""Outputs whose rows a TopK orders are known, and are left to a metric that reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import trtq
from trtq.pipeline.judge.ranked import find_ranked

_BEST = "best, index = TopK <axis = 1> (x, k)"


@pytest.mark.parametrize(
    ("body", "is_ranked"),
    [
        (f"{_BEST} y = Identity (best)", False),  # sorted values are near each other
        (f"{_BEST} kind = Mod (index, k) y = Cast <to = 1> (kind)", True),  # the class of an anchor
        (f"{_BEST} y = GatherElements <axis = 1> (x, index)", True),
        (f"{_BEST} part = GatherElements <axis = 1> (x, index) y = Relu (part)", True),
        (
            f"{_BEST} p = GatherElements <axis = 1> (x, index) y = ScatterElements <axis = 1> (x, index, p)",
            False,
        ),
        ("y = Gather <axis = 1> (x, k)", False),
    ],
)
def test_what_a_topk_picks_is_ranked(body: str, is_ranked: bool, model_of: Callable[..., ir.Model]) -> None:
    model = model_of(f"g (float[2,8] x) => (float y) {{ {body} }}", k=np.array([3]))
    assert find_ranked(model) == ({"y"} if is_ranked else set())


@pytest.mark.parametrize(
    ("metric", "verdict"),
    [
        ("float(np.tanh(np.abs(outputs['boxes']).mean()))", "pass"),
        ("float((outputs['best'] > 0).mean())", "fail"),
    ],
)
def test_objects_in_another_order_are_left_to_a_metric_that_reads_them(
    metric: str, verdict: str, path_of: Callable[..., Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    w, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 4), (16, 1)))
    text = """g (float[1,64,16] x) => (float[1,32,1] best, float[1,32,4] boxes) {
        [box] all = MatMul (x, w) [score] scores = MatMul (x, v) best, index = TopK <axis = 1> (scores, k)
        each = Expand (index, size) boxes = GatherElements <axis = 1> (all, each)
    }"""
    model = path_of(text, w=w, v=v, k=np.array([32]), size=np.array([1, 32, 4]))
    np.savez(tmp_path / "x.npz", x=rng.standard_normal((8, 64, 16)).astype(np.float32))
    (tmp_path / "metric.py").write_text(
        f"import numpy as np\ndef score(outputs, labels):\n    return {metric}\n"
    )
    report = trtq.build(
        model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime", calib_method="minmax",
        repair=("none",), metric=f"{tmp_path}/metric.py:score", force=(".",),
    )  # fmt: skip
    found = next(item for item in report.comparison if item.output == "boxes" and item.candidate == "engine")
    assert (found.cosine < 0.99, found.is_ranked, report.verdict) == (True, True, verdict)
    words = "its rows are in the order of a TopK: a custom metric that reads it can compare the objects"
    assert any(words in reason for reason in report.reasons) == (verdict == "fail")
