"""An output that draws random numbers is told, and compared with nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtq.calibrators.batches import Batches, Feed
from trtq.models.spec import AccuracySpec
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.drawn import doubt_drawn, find_drawn
from trtq.pipeline.judge.gate import judge

_HEAD = '<ir_version: 8, opset_import: ["": 17]> g'


@pytest.mark.parametrize(
    ("body", "drawn"),
    [
        ("[n] r = RandomNormalLike(x) s = Add(x, r) y = Relu(s)", "node 'n' (RandomNormalLike)"),
        ("[d] y = Dropout(x, ratio, yes)", "node 'd' (Dropout)"),
        ("y = Dropout(x, ratio, no)", None),
        ("y = Dropout(x)", None),
        ("[n] r = RandomNormalLike(x) y = Relu(x)", None),
        (
            """[if] y = If(yes) <then_branch = t () => (float[N,4] a) { [b] a = RandomUniformLike(x) },
                              else_branch = e () => (float[N,4] c) { c = Neg(x) }>""",
            "node 'b' (RandomUniformLike)",
        ),
    ],
)
def test_what_reads_random_numbers_is_drawn(body: str, drawn: str | None) -> None:
    weights = "<float ratio = {0.5}, bool yes = {1}, bool no = {0}>"
    proto = onnx.parser.parse_model(f"{_HEAD} (float[N,4] x) => (float[N,4] y) {weights} {{ {body} }}")
    assert find_drawn(ir.from_proto(proto)).get("y") == drawn


@pytest.mark.parametrize(("weight", "outcome"), [(1.0, "unverified"), (0.0, "pass")])
def test_noise_that_shows_is_not_compared(tmp_path: Path, weight: float, outcome: str) -> None:
    body = "r = RandomNormalLike(x) n = Mul(r, k) y = Add(x, n) z = Neg(x)"
    text = f"{_HEAD} (float[N,4] x) => (float[N,4] y, float[N,4] z) <float k = {{{weight}}}> {{ {body} }}"
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    batches = Batches(lambda: iter([Feed({"x": x}, "a feed", 8)]), "data", 8)
    models = {"fp32": tmp_path / "m.onnx", "int8": tmp_path / "m.onnx"}
    found = compare_models(models, [("int8", "fp32")], batches)
    verdict = judge(found, AccuracySpec(), candidate="int8")
    assert verdict.outcome == outcome
    assert [item.output for item in found.outputs] == (["z"] if weight else ["y", "z"])
    if weight:
        assert verdict.reasons == tuple(doubt_drawn({"y": "node '' (RandomNormalLike)"}, ()))


def test_a_metric_vouches_for_what_is_drawn() -> None:
    assert doubt_drawn({"y": "node 'n' (Bernoulli)"}, ("y",)) == []
    assert doubt_drawn({"y": "node 'n' (Bernoulli)"}, ()) == [
        "output 'y' differs from run to run, since node 'n' (Bernoulli) draws random numbers, so it was not "
        "compared; make them an input of the model, or give a metric of your own"
    ]
