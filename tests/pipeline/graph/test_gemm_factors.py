"""The alpha and beta of a Gemm become part of its constants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.gemm_factors import fold_factors
from trtq.pipeline.graph.load import load

GEMM = """g (float[N,8] x) => (float[N,8] y) {{
    [fc] y = Gemm <alpha = {alpha}, beta = {beta}, transB = 1> (x, w, b) }}"""


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _find_gemm(model: ir.Model) -> ir.Node:
    (node,) = (node for node in model.graph if node.op_type == "Gemm")
    return node


@pytest.mark.parametrize(("alpha", "beta"), [(0.25, 1.0), (-3.0, 0.5), (1.0, 2.0)])
def test_constants_take_the_factors(path_of: Callable[..., Path], alpha: float, beta: float) -> None:
    path = path_of(GEMM.format(alpha=alpha, beta=beta), w=_random(8, 8), b=_random(8))
    graph = load(path, min_opset=19)
    assert "multiplied the constants of 1 Gemm node by alpha and beta" in graph.notes
    attributes = _find_gemm(graph.model).attributes
    assert [attributes.get_float(name, 1.0) for name in ("alpha", "beta")] == [1.0, 1.0]
    feed = {"x": _random(4, 8)}
    (ours,) = run(open_session(graph.model, optimize=False), ["y"], feed)
    (theirs,) = run(open_session(path, optimize=False), ["y"], feed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 0.0, 1e-30])
def test_other_factors_stay(path_of: Callable[..., Path], alpha: float) -> None:
    graph = load(path_of(GEMM.format(alpha=alpha, beta=1.0), w=_random(8, 8), b=_random(8)), min_opset=19)
    assert _find_gemm(graph.model).attributes["alpha"].as_float() == pytest.approx(alpha)


def test_what_no_constant_takes_stays(model_of: Callable[..., ir.Model]) -> None:
    text = """g (float[N,8] x, float[8,8] v) => (float[N,8] y) { [fc] y = Gemm <alpha = 2.0> (x, v) }"""
    model = model_of(text)
    assert [*fold_factors(model)] == []
    assert _find_gemm(model).attributes["alpha"].as_float() == 2


@pytest.mark.parametrize("turned", [0, 1])
def test_what_a_gemm_of_two_activations_reads_takes_alpha(path_of: Callable[..., Path], turned: int) -> None:
    text = f"""g (float[8,8] x, float[8,8] v) => (float[8,8] y) {{
        [fc] y = Gemm <alpha = 0.01, beta = 3.0, transA = {turned}> (x, v, v) }}"""
    path = path_of(text)
    graph = load(path, min_opset=19)
    assert "multiplied what 1 Gemm node of two activations read by alpha" in graph.notes
    assert _find_gemm(graph.model).attributes.get_float("alpha", 1.0) == 1
    feed = {"x": 3000 * _random(8, 8), "v": _random(8, 8)}
    (ours,) = run(open_session(graph.model, optimize=False), ["y"], feed)
    (theirs,) = run(open_session(path, optimize=False), ["y"], feed)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_product_overflows_no_more_before_alpha(path_of: Callable[..., Path], tmp_path: Path) -> None:
    """TensorRT computes the product first: it overflows FP16 where a hundredth of it does not."""
    weight = 300 * np.sign(_random(8, 8))
    path = path_of(GEMM.format(alpha=0.01, beta=1.0), w=weight, b=_random(8))
    rows = np.sign(_random(64, 8)) * np.random.default_rng(1).uniform(200, 300, (64, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=rows)
    spec = ModelSpec(calibration=CalibrationSpec(str(tmp_path / "x.npz")))
    target = Target(precision="fp16", backend="onnxruntime")
    report = build(path, spec=spec, target=target, output=tmp_path / "o")
    assert report.verdict == "pass"
    made = load(tmp_path / "o/model.fp16.onnx", min_opset=19)
    assert "alpha" not in _find_gemm(made.model).attributes
