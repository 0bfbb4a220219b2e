"""Tests of running a model that is held in memory, with the real ONNX Runtime."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.errors import ModelError
from trtq.models import session
from trtq.models.packed import pack
from trtq.models.session import SessionOptions, count_weight_bytes, open_session, run, save

SCALE = """<ir_version: 8, opset_import: ["" : 17]> scale (float[N,2] x) => (float[N,2] y, float[N,2] z)
<float[2] two = {2, 2}, int64[1] unused = {1}> { h = Mul(x, two)  y = Relu(h)  z = Neg(h) }"""


def _model(text: str = SCALE) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


def _x(*rows: tuple[float, float]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {"x": np.array(rows, np.float32)}


@pytest.mark.parametrize("optimize", [True, False])
def test_a_model_in_memory_is_run(*, optimize: bool) -> None:
    opened = open_session(_model(), optimize=optimize)
    assert [array.tolist() for array in run(opened, ["z", "y"], _x((1, -2)))] == [[[-2, 4]], [[2, 0]]]


def test_no_names_are_all_outputs() -> None:
    assert len(run(open_session(_model(), optimize=False), [], _x((1, 2)))) == 2


@pytest.mark.parametrize(("optimize", "level"), [(True, "ORT_ENABLE_ALL"), (False, "ORT_DISABLE_ALL")])
def test_the_graph_is_rewritten_only_if_it_may_be(level: str, *, optimize: bool) -> None:
    options = open_session(_model(), optimize=optimize).get_session_options()
    assert options.graph_optimization_level.name == level


@pytest.mark.parametrize("packs", [True, False])
def test_weights_are_packed_unless_memory_matters_more(*, packs: bool) -> None:
    engine = SessionOptions(packs_weights=packs)
    options = open_session(_model(), optimize=False, engine=engine).get_session_options()
    if packs:
        with pytest.raises(RuntimeError, match="disable_prepacking"):
            options.get_session_config_entry("session.disable_prepacking")
    else:
        assert options.get_session_config_entry("session.disable_prepacking") == "1"


@pytest.mark.parametrize("fuses_qdq", [True, False])
def test_no_run_plans_memory_beside_that_of_the_first_but_in_sessions_as_users_have_them(
    *, fuses_qdq: bool
) -> None:
    engine = SessionOptions(fuses_qdq=fuses_qdq)
    options = open_session(_model(), optimize=True, engine=engine).get_session_options()
    assert options.enable_mem_pattern is fuses_qdq


def _weighted(dtype: ir.DataType) -> tuple[ir.Model, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    """Returns y = x w, with w in a dtype and more than ONNX Runtime gets in the model, and w itself."""
    weight = np.random.default_rng(0).integers(-8, 8, (64, 64)).astype(np.float32)
    model = _model(
        """<ir_version: 10, opset_import: ["" : 19]> g (float[N,64] x) => (float[N,64] y)
        <float16[1] w = {0}, float16[1] spare = {0}> { c = Cast <to = 1> (w)  y = MatMul(x, c) }"""
    )
    for name in ("w", "spare"):
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(weight.astype(dtype.numpy()), name=name, dtype=dtype)
        value.type, value.shape = ir.TensorType(dtype), ir.Shape((64, 64))
    return model, weight


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_weights_are_handed_over_and_live_as_long_as_the_session(
    dtype: ir.DataType, *, optimize: bool
) -> None:
    model, weight = _weighted(dtype)
    opened = open_session(model, optimize=optimize)
    del model
    gc.collect()
    _ = [np.full((64, 64), 7, np.float32) for _ in range(100)]  # where freed weights would be
    x = np.ones((2, 64), np.float32)
    np.testing.assert_array_equal(run(opened, ["y"], {"x": x})[0], x @ weight)


def test_only_weights_that_numpy_knows_and_a_node_reads_are_handed_over() -> None:
    packed = pack(_weighted(ir.DataType.FLOAT16)[0], session._stays_inside)
    assert list(packed.weights) == ["w"]
    assert len(packed.proto) < 2 * 64 * 64 * 2  # which holds one of the two
    assert not pack(_weighted(ir.DataType.BFLOAT16)[0], session._stays_inside).weights


def test_opening_a_session_leaves_the_model_as_it_is() -> None:
    model, _ = _weighted(ir.DataType.FLOAT)
    before = dict(model.graph.initializers)
    tensors = [value.const_value for value in before.values()]
    open_session(model, optimize=True)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors


def test_a_file_is_run(tmp_path: Path) -> None:
    save(_model(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    (y,) = run(open_session(tmp_path / "model.onnx", optimize=True), ["y"], _x((1, 2), (3, -4)))
    assert y.tolist() == [[2, 4], [6, 0]]


def test_the_size_of_the_weights_is_known() -> None:
    assert count_weight_bytes(_model()) == 2 * 4 + 8


def test_a_large_model_keeps_its_weights_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 15)
    model = ir.from_proto(onnx.parser.parse_model(SCALE.replace("two", "weight")))
    model.graph.initializers["weight"].const_value = ir.tensor(np.full(1000, 2, np.float32), name="weight")
    save(model, tmp_path / "big.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert (tmp_path / "big.onnx").stat().st_size < 1000 < (tmp_path / "big.onnx.data").stat().st_size


def test_a_large_model_in_memory_is_run_and_stays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 15)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = _model()
    (y,) = run(open_session(model, optimize=True), ["y"], _x((1, 2)))
    assert y.tolist() == [[2, 4]]
    assert list(tmp_path.iterdir()) == []
    weight = model.graph.initializers["two"].const_value
    assert weight is not None
    assert weight.numpy().tolist() == [2, 2]


@pytest.mark.parametrize("large", [False, True])
def test_a_model_that_cannot_be_loaded_is_told(monkeypatch: pytest.MonkeyPatch, *, large: bool) -> None:
    if large:
        monkeypatch.setattr(session, "INLINE_LIMIT_BYTES", 0)
    with pytest.raises(
        ModelError, match=r"^ONNX Runtime cannot load the model: \d+ : \w+ : .*Frobnicate"
    ) as caught:
        open_session(_model(SCALE.replace("Relu", "Frobnicate")), optimize=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "NO_SUCHFILE : .*gone.onnx"), (b"not a model", "INVALID_PROTOBUF : ")]
)
def test_a_file_that_cannot_be_loaded_is_told(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "gone.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=rf"^ONNX Runtime cannot load the model: \d+ : {message}"):
        open_session(tmp_path / "gone.onnx", optimize=True)


def test_an_input_of_another_kind_is_told() -> None:
    opened = open_session(_model(), optimize=True)
    with pytest.raises(
        ModelError, match=r"^ONNX Runtime cannot run the model: 2 : INVALID_ARGUMENT : .*x.*float"
    ):
        run(opened, ["y"], {"x": np.zeros((1, 2), np.int64)})


def test_a_failure_in_the_middle_of_the_graph_is_told() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> bad (float[N,2] x) => (float[3] y)
    <int64[1] shape = {3}> { y = Reshape(x, shape) }"""
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: .*Reshape"):
        run(open_session(_model(text), optimize=False), ["y"], _x((1, 2)))


def test_long_complaints_are_cut() -> None:
    name = "x" * 2000
    with pytest.raises(ModelError) as caught:
        open_session(_model(SCALE.replace("Relu(h)", f"{name}(h)")), optimize=True)
    assert len(str(caught.value)) <= 650
