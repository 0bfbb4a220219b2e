"""Tests of the graph that is read back: it shows the same values without copying them into another order."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators import blocked
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.blocked import is_worth, open_blocked
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.statistics import Statistics
from trtq.calibrators.taps import Taps, open_taps
from trtq.errors import DataError, ModelError
from trtq.models import session as session_module
from trtq.models.session import SessionOptions

ENGINE = SessionOptions(num_threads=1, keeps_order=True)
NAMES = ["hard", "odd", "copy", "sum", "pooled"]
TEXT = """<ir_version: 9, opset_import: ["" : 17]> net (float[N,3,12,12] x) => (float[N,32,1,1] y)
{
    c = Conv <pads=[1,1,1,1]> (x, w1)  hard = HardSwish(c)
    d = Conv <pads=[1,1,1,1]> (hard, w2)  odd = Relu(d)
    e = Conv (odd, w3)  sum = Add(e, e)  copy = Identity(sum)
    pooled = MaxPool <kernel_shape=[2,2]> (copy)  f = Conv (pooled, w4)  y = GlobalAveragePool(f)
}"""
SHAPES = {"w1": (32, 3, 3, 3), "w2": (20, 32, 3, 3), "w3": (32, 20, 1, 1), "w4": (32, 32, 1, 1)}


def _model(text: str = TEXT) -> ir.Model:
    rng, proto = np.random.default_rng(0), onnx.parser.parse_model(text)
    for name, shape in SHAPES.items():
        weight = rng.standard_normal(shape).astype(np.float32) / 8
        proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _batches(*extra: NDArray[Any]) -> Batches:
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((4, 3, 12, 12)).astype(np.float32) for _ in range(3)]
    feeds = [Feed({"x": array}, f"feed {index}", 4) for index, array in enumerate([*arrays, *extra])]
    return Batches(lambda: iter(feeds), "memory", 4 * len(feeds), feed_samples=4)


def _show(taps: Taps) -> dict[str, NDArray[Any]]:
    shown = dict[str, NDArray[Any]]()
    feed = next(iter(_batches())).arrays
    taps.show(feed, lambda name, array: shown.update({name: array.copy()}), lambda *_: None)
    return shown


def _sort(samples: NDArray[Any]) -> NDArray[Any]:
    return np.sort(samples.reshape(len(samples), -1))


@pytest.fixture
def is_always_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "_ENOUGH_BYTES", 0)


def test_every_sample_has_the_same_values_to_the_last_bit() -> None:
    plain = _show(open_taps(_model(), NAMES, (), ENGINE))
    other = _show(open_taps(_model(), NAMES, (), ENGINE, unordered=NAMES))
    assert set(plain) == set(other) == set(NAMES)
    for name in NAMES:
        assert plain[name].shape == other[name].shape
        assert np.array_equal(_sort(plain[name]), _sort(other[name])), name


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other kernels, other blocks")
def test_full_blocks_are_shown_where_they_are_computed_and_activations_are_fused() -> None:
    taps = open_taps(_model(), NAMES, (), ENGINE, unordered=NAMES)
    assert taps.computed["hard"] != "hard"
    assert taps.computed["odd"] == "odd"  # 20 channels: blocks of 8 or 16 end in zeros
    assert taps.computed["sum"] == taps.computed["copy"]
    plain = _show(open_taps(_model(), NAMES, (), ENGINE))
    assert not np.array_equal(plain["hard"], _show(taps)["hard"])


def _observe(control: PassControl, *extra: NDArray[Any]) -> Statistics:
    return observe(_model(), ["x", *NAMES], _batches(*extra), control=control)


def test_statistics_are_the_same_however_much_data_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _observe(PassControl())
    monkeypatch.setattr(blocked, "_ENOUGH_BYTES", 0)
    assert _observe(PassControl()) == plain


@pytest.mark.usefixtures("is_always_worth")
def test_the_sample_that_is_not_finite_is_still_named() -> None:
    wrong = np.ones((4, 3, 12, 12), np.float32)
    wrong[2] = 3e38
    with pytest.raises(DataError, match=r"tensor 'hard' of the float model.* on feed 3, in its sample 2;"):
        _observe(PassControl(), wrong)


def test_a_tensor_that_is_folded_away_is_shown_as_it_is() -> None:
    text = TEXT.replace("c = Conv", "made = Add(w4, w4)  c = Conv")
    with pytest.raises(ModelError, match="ONNX Runtime has folded tensor 'made'"):
        open_blocked(_model(text), (), ["made"], ENGINE)
    taps = open_taps(_model(text), ["made", "hard"], (), ENGINE, unordered=["made", "hard"])
    assert taps.computed == {"made": "made", "hard": "hard"}


def test_a_machine_that_writes_no_files_shows_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> Any:
        raise OSError("read-only")

    monkeypatch.setattr(blocked, "open_temporary_folder", refuse)
    assert open_taps(_model(), NAMES, (), ENGINE, unordered=NAMES).computed == {name: name for name in NAMES}


def test_a_graph_is_read_back_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = _model(), {"hard": 1 << 20, "x": 1 << 30}
    assert is_worth(model, sizes, 1 << 10, "cpu")
    assert not is_worth(model, sizes, 1 << 9, "cpu")
    assert not is_worth(model, sizes, 1 << 10, "cuda")
    assert not is_worth(model, {"copy": 1 << 20}, 1 << 10, "cpu")  # Identity may compute in any order
    assert not is_worth(ir.from_proto(onnx.parser.parse_model(_NO_CONV)), {"y": 1 << 30}, 9, "cpu")
    monkeypatch.setattr(blocked, "_MOST_WEIGHT_BYTES", session_module.count_weight_bytes(model) - 1)
    assert not is_worth(model, sizes, 1 << 10, "cpu")


_NO_CONV = '<ir_version: 9, opset_import: ["" : 17]> net (float[N,3] x) => (float[N,3] y) { y = Relu(x) }'
