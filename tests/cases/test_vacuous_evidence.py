"""What proves nothing does not pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import trtq

_LABELS = np.arange(64) % 32


def _write_net(path: Path) -> Path:
    rng = np.random.default_rng(7)
    weights = [
        numpy_helper.from_array((rng.standard_normal(shape) / 6).astype(np.float32), name)
        for name, shape in (("w0", (32, 64)), ("w1", (64, 32)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="fc0"),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["y"], name="fc1"),
    ]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 32]) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., tuple[str, tuple[str, ...]]]:
    def run(metric: str = "", *, x: np.ndarray | None = None, labels: bool = False):  # type: ignore[no-untyped-def]
        model = _write_net(tmp_path / "net.onnx")
        x = np.random.default_rng(1).standard_normal((64, 32)).astype(np.float32) if x is None else x
        np.savez(tmp_path / "x.npz", x=x)
        np.savez(tmp_path / "eval.npz", x=x, labels=_LABELS[: len(x)])
        (tmp_path / "metric.py").write_text(
            f"import numpy as np\ndef score(outputs, labels):\n    {metric}\n"
        )
        data = str(tmp_path / "eval.npz") if labels else None
        spec = trtq.ModelSpec(
            calibration=trtq.CalibrationSpec(method="minmax", data=str(tmp_path / "x.npz")),
            evaluation=trtq.EvaluationSpec(data=data, labels="labels" if labels else None),
            accuracy=trtq.AccuracySpec(metric=f"{tmp_path}/metric.py:score" if metric else "top-1"),
        )
        target = trtq.Target(backend="onnxruntime")
        report = trtq.build(model, spec=spec, target=target, output=tmp_path / "out")
        return report.verdict, report.reasons

    return run


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_metric_that_says_the_same_of_nonsense_is_unverified(
    judge: Callable[..., tuple[str, tuple[str, ...]]], value: float, labels: bool
) -> None:
    verdict, (reason,) = judge(f"return {value}", labels=labels)
    assert verdict == "unverified"
    assert f"score says {value:g} of every model, and of outputs that are all zero or of the other" in reason


def test_a_metric_that_sees_nonsense_passes_though_it_says_the_same_of_all_models(
    judge: Callable[..., tuple[str, tuple[str, ...]]],
) -> None:
    assert judge("return float(np.abs(outputs['y']).max() > 0.1)") == ("pass", ())
    assert judge("assert outputs['y'].any(); return 1.0") == ("pass", ())  # it raises at zeros


def test_a_metric_that_is_0_for_the_float_model_too_is_unverified(
    judge: Callable[..., tuple[str, tuple[str, ...]]],
) -> None:
    verdict, reasons = judge("return 0.0 if outputs['y'].any() else 0.5")
    assert verdict == "unverified"
    assert reasons == (
        "score of metric.py is 0 for every model, so none can lose any; see whether the labels belong to the "
        "data",
    )


def test_one_sample_and_equal_samples_are_unverified(
    judge: Callable[..., tuple[str, tuple[str, ...]]],
) -> None:
    x = np.random.default_rng(1).standard_normal((1, 32)).astype(np.float32)
    assert judge(x=x) == ("unverified", ("only one sample was compared; give more data",))
    verdict, (reason,) = judge(x=np.repeat(x, 8, 0))
    assert verdict == "unverified"
    assert reason.startswith("the outputs of fp32 are the same for all 8 samples")


def test_a_metric_that_likes_nonsense_better_is_unverified(
    judge: Callable[..., tuple[str, tuple[str, ...]]],
) -> None:
    verdict, (reason,) = judge("return float((outputs['y'].argmax(1) != labels).mean()) / 2", labels=True)
    assert verdict == "unverified"
    assert "of outputs that are all zero or of the other sign, and less of a model, 0." in reason
