"""A weight of several matrices (mixture of experts) has one scale only if none is lost by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from trtq.models.session import open_session
from trtq.models.spec import CalibrationSpec, LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.html.layers import weight_sqnr_db
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.granularity import PerChannel, PerToken
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.placement import place
from trtq.pipeline.quantize import quantize
from trtq.pipeline.rewrite.qparams import choose_weight_qparams, choose_weight_qparams_mse
from trtq.pipeline.rewrite.weights.choose import choose_weights
from trtq.pipeline.sensitivity import sensitivity

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
    for placement in (place(model), choose_weights(model, WeightScheme("int8"), by_matrix=False)):
        assert [(node.name, node.reason.partition(":")[0]) for node in placement.kept] == [
            ("moe", "unequal matrices")
        ]
        assert placement.quantized == ()
    assert "one scale for all, which would wipe out the small ones" in place(model).kept[0].reason
    assert [node.name for node in place(model, force=["moe"]).quantized] == ["moe"]


def test_weights_alone_of_unequal_experts_have_scales_of_their_own(tmp_path: Path) -> None:
    path = _write(tmp_path, (1, 0.1, 0.01, 0.001))
    quantize(
        path, None, tmp_path / "q.onnx", target=Target(precision="weights", weights=WeightScheme("int8"))
    )
    built = onnx.load(tmp_path / "q.onnx")
    assert [list(item.dims) for item in built.graph.initializer if "scale" in item.name] == [[4, 1, 64]]
    x = np.load(tmp_path / "x.npz")["x"][0]
    ours, theirs = (
        open_session(tmp_path / name, optimize=False).run(None, {"x": x})[0] for name in ("q.onnx", "m.onnx")
    )
    for expert in range(4):
        error = np.linalg.norm(ours[expert] - theirs[expert]) / np.linalg.norm(theirs[expert])
        assert error < 0.01


@pytest.mark.parametrize("sizes", [(1, 0.9, 0.5, 0.3), (1, 1, 0, 1)])
def test_like_experts_share_a_scale(tmp_path: Path, sizes: tuple[float, ...]) -> None:
    model = _load(tmp_path / "m.onnx", sizes).model
    for placement in (place(model), choose_weights(model, WeightScheme("int8"))):
        assert [node.name for node in placement.quantized] == ["moe"]


def _write(folder: Path, sizes: tuple[float, ...]) -> Path:
    """Writes experts of these sizes in one weight, with outputs of alike size, and 32 samples of each."""
    weight = _RNG.uniform(-1, 1, (len(sizes), 64, 64)).astype(np.float32)
    weight *= np.array(sizes, np.float32)[:, None, None]
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[4,N,64] x) => (float[4,N,64] y) { [moe] h = MatMul(x, w) y = Mul(h, back) }""")
    back = (1 / np.array(sizes, np.float32))[:, None, None]
    proto.graph.initializer.extend(
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(back, "back")]
    )
    onnx.save(proto, folder / "m.onnx")
    np.savez(folder / "x.npz", x=_RNG.standard_normal((8, 4, 32, 64)).astype(np.float32))
    (folder / "feeds.py").write_text(
        "import numpy as np\ndef feeds():\n    for x in np.load('x.npz')['x']:\n        yield {'x': x}\n"
    )
    return folder / "m.onnx"


def _spec(folder: Path, **quantization: Any) -> ModelSpec:
    data = CalibrationSpec(data=f"{folder / 'feeds.py'}:feeds", method="mse")
    own = QuantizationSpec(repair=("none",), **quantization)
    return ModelSpec(calibration=data, quantization=own, layers=LayerSpec())


@pytest.mark.slow
def test_the_experts_of_a_build_are_measured_as_they_were_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no builder was named, which decides on the scales."""
    monkeypatch.chdir(tmp_path)
    model = _write(tmp_path, (1, 0.1, 0.01, 0.001))
    report = build(model, spec=_spec(tmp_path), target=Target(compute_capabilities=("8.9",)))
    assert report.backend.startswith("tensorrt-rtx ")
    found = sensitivity(report.output, spec=_spec(tmp_path))
    assert [layer.name for layer in found.layers] == ["moe"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt-rtx"])
def test_every_expert_has_scales_of_its_own_where_the_backend_runs_them(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = _write(tmp_path, (1, 0.1, 0.01, 0.001))
    capability = ("8.9",) if backend == "tensorrt-rtx" else ()
    target = Target(backend=backend, compute_capabilities=capability)
    report = build(model, spec=_spec(tmp_path), target=target)
    assert (report.verdict, report.engine.layers_quantized, report.kept_float) == ("pass", 1, ())
    assert all(item.sqnr_db > 35 for item in report.comparison if item.candidate == "int8")
    if backend == "tensorrt-rtx":
        assert report.engine.num_realized == 1
    built = onnx.load(Path(report.output) / "model.int8.onnx")
    (scale,) = [item for item in built.graph.initializer if item.name.startswith("w_scale")]
    assert tuple(scale.dims) == (4, 1, 64)
    assert built.opset_import[0].version == 21


def test_one_scale_a_weight_keeps_unequal_experts_float(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = _write(tmp_path, (1, 0.1, 0.01, 0.001))
    spec = _spec(tmp_path, weight_granularity="per-tensor")
    report = build(model, spec=spec, target=Target(backend="onnxruntime"))
    assert [item.reason.partition(":")[0] for item in report.kept_float] == ["unequal matrices"]


@pytest.mark.parametrize(("place_of_weight", "axis"), [(1, 1), (0, 2)])
def test_the_scales_of_experts_are_along_the_axis_that_is_summed(
    place_of_weight: int, axis: int, tmp_path: Path
) -> None:
    graph = _load(tmp_path / "m.onnx", (1, 1, 1, 1))
    node = next(node for node in graph.model.graph if node.op_type == "MatMul")
    if place_of_weight == 0:
        x, w = node.inputs
        node.replace_input_with(0, w)
        node.replace_input_with(1, x)
    (layer,) = place(graph.model, by_matrix=True).quantized
    assert layer.scheme.weight == Encoding(INT8, PerToken(axis))
    values = np.arange(4 * 8 * 6, dtype=np.float32).reshape(4, 8, 6)
    qparams = choose_weight_qparams(values, Encoding(INT8, PerToken(axis)), "float32")
    assert np.allclose(qparams.scale, values.max(axis, keepdims=True) / 127)
    finer = choose_weight_qparams_mse(values, Encoding(INT8, PerToken(axis)), "float32")
    assert finer.scale.shape == qparams.scale.shape


def test_the_page_knows_the_scales_of_experts() -> None:
    weight = _RNG.uniform(-1, 1, (4, 64, 64)) * np.array([1, 0.1, 0.01, 0.001])[:, None, None]
    by_matrix = weight_sqnr_db(weight.astype(np.float32), Encoding(INT8, PerToken(1)))
    assert by_matrix is not None
    each = [weight_sqnr_db(item.astype(np.float32), Encoding(INT8, PerChannel(1))) for item in weight]
    assert by_matrix == pytest.approx(each[0], abs=0.1)  # the largest has most of the signal
