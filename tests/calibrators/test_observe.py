"""Tests of the pass over the data, with the real ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators import METHODS, plan
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.estimate import estimate
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.ranges import FP16_LIMIT, Shapes
from trtq.calibrators.statistics import Statistics
from trtq.errors import DataError, ModelError

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SMALL = f"""{HEAD} small (float[N,2] x) => (float[N,2] y)
<float[2] two = {{2, 2}}> {{ h = Mul(x, two)  y = Relu(h) }}"""


def _model(text: str, **weights: NDArray[Any]) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, check_type=True))


def _batches(*feeds: dict[str, Any]) -> Batches:
    made = []
    for index, feed in enumerate(feeds):
        arrays = {name: np.asarray(v, None if hasattr(v, "dtype") else "f4") for name, v in feed.items()}
        made.append(Feed(arrays, f"feed {index}", len(next(iter(arrays.values())))))
    return Batches(lambda: iter(made), "memory", sum(feed.num_samples for feed in made))


def _extremes(observation: Statistics) -> dict[str, tuple[float, float, int]]:
    return {
        name: (histogram.minimum, histogram.maximum, histogram.total)
        for name, histogram in observation.histograms.items()
    }


def test_tensors_are_seen_over_all_feeds() -> None:
    seen = observe(_model(SMALL), ["h", "y"], _batches({"x": [[1, -2]]}, {"x": [[3, 0], [0.5, 0]]}))
    assert _extremes(seen) == {"h": (-4.0, 6.0, 6), "y": (0.0, 6.0, 6)}
    assert seen.num_samples == 3


def test_a_graph_input_is_seen_as_it_is() -> None:
    seen = observe(_model(SMALL), ["x"], _batches({"x": [[1, -2]]}))
    assert _extremes(seen) == {"x": (-2.0, 1.0, 2)}
    both = observe(_model(SMALL), ["x", "h"], _batches({"x": [[1, -2]]}))
    assert _extremes(both) == {"x": (-2.0, 1.0, 2), "h": (-4.0, 2.0, 2)}


def test_the_model_stays_as_it_is() -> None:
    model = _model(SMALL)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    observe(model, ["h"], _batches({"x": [[1, -2]]}))
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_arrays_beside_the_inputs_are_not_given_to_the_model() -> None:
    feed = {"x": [[1, -2]], "labels": np.array([3])}
    assert set(observe(_model(SMALL), ["h"], _batches(feed)).shapes) == {"x"}


def test_the_progress_is_told_after_every_feed() -> None:
    told: list[int] = []
    observe(_model(SMALL), ["h"], _batches({"x": [[1, 2]] * 3}, {"x": [[1, 2]]}), told.append)
    assert told == [3, 1]


def test_half_precision_is_seen() -> None:
    model = _model(f"{HEAD} half (float16[N,2] x) => (float16[N,2] y) {{ y = Relu(x) }}")
    seen = observe(model, ["y"], _batches({"x": np.array([[1.5, -2]], np.float16)}))
    assert _extremes(seen) == {"y": (0.0, 1.5, 2)}
    assert seen.magnitudes == {"x": 2.0, "y": 1.5}


def test_shapes_are_summed_up_in_the_order_of_the_inputs() -> None:
    names = [f"in{index}" for index in range(9, -1, -1)]
    arguments = ", ".join(f"float[N,M] {name}" for name in names)
    model = _model(f"{HEAD} many ({arguments}) => (float[N,M] y) {{ y = Sum({', '.join(names)}) }}")
    sizes = [(1, 4), (2, 3), (2, 3), (5, 2)]
    seen = observe(model, ["y"], _batches(*({name: np.ones(s, "f4") for name in names} for s in sizes)))
    assert list(seen.shapes) == names
    assert set(seen.shapes.values()) == {Shapes((1, 2), (2, 3), (5, 4))}


def test_nan_inside_the_model_names_tensor_and_feed() -> None:
    model = _model(f"{HEAD} log (float[N,2] x) => (float[N,2] y) {{ [log] h = Log(x)  y = Relu(h) }}")
    with pytest.raises(
        DataError,
        match=r"^tensor 'h' of the float model, made by node 'log' \(Log\), has 1 NaN or infinite "
        r"value on feed 1; leave this data out or repair the model$",
    ):
        observe(model, ["x", "h"], _batches({"x": [[1, 2]]}, {"x": [[1, -1]]}))


def test_infinity_inside_the_model_names_tensor_and_feed() -> None:
    model = _model(f"{HEAD} exp (float[N,2] x) => (float[N,2] y) {{ h = Exp(x)  y = Relu(h) }}")
    with pytest.raises(DataError, match=r"tensor 'h' .* has 2 NaN or infinite values on feed 0;"):
        observe(model, ["h"], _batches({"x": [[100, 100]]}))


def test_a_tensor_that_the_model_lacks_is_named() -> None:
    with pytest.raises(ModelError, match=r"^the model has no tensor 'absent' to observe$"):
        observe(_model(SMALL), ["h", "zebra", "absent"], _batches({"x": [[1, 2]]}))


def test_a_model_that_cannot_be_run_is_told_in_the_words_of_onnxruntime() -> None:
    model = _model(
        f"""{HEAD} bad (float[N,2] x) => (float[3] y)
        <int64[1] shape = {{3}}> {{ h = Reshape(x, shape)  y = Relu(h) }}"""
    )
    with pytest.raises(ModelError, match=r"^ONNX Runtime cannot run the model: .*Reshape"):
        observe(model, ["h"], _batches({"x": [[1, 2]]}))


def test_magnitudes_find_what_fp16_cannot_hold_in_any_tensor() -> None:
    model = _model(
        f"""{HEAD} hot (float[N,2] x) => (float[N,2] y)
        <float big = {{100000}}> {{ square = Mul(x, big)  back = Div(square, big)  y = Relu(back) }}"""
    )
    batches = _batches({"x": [[-1.5, 1]]})
    seen = observe(model, ["y"], batches)
    assert seen.magnitudes == {"x": 1.5, "y": 1.0, "square": 150000.0, "back": 1.5}
    ranges = estimate(seen, METHODS["minmax"]())
    assert ranges.beyond_fp16 == {"square": 150000.0}


def _scaled(feeds: Sequence[Sequence[Sequence[float]]], tensors: Sequence[str]) -> Mapping[str, float]:
    model = _model(
        f"""{HEAD} scaled (float[N,2] x) => (float[N,2] y)
        <float ten = {{10}}, float small = {{0.001}}> {{ h = Mul(x, ten)  s = Mul(h, small)  y = Relu(s) }}"""
    )
    return observe(model, tensors, _batches(*({"x": feed} for feed in feeds))).magnitudes


def test_a_tensor_that_nobody_observes_is_seen_wherever_it_grows_loud() -> None:
    start, end = FP16_LIMIT / 10 + 1, FP16_LIMIT + 1
    quiet: list[list[list[float]]] = [[[1, 0]]] * 3
    for feeds in ([[[start, 0]]] * 40 + [[[end, 0]]], [*quiet, [[end, 0]], *quiet], [[[end, 0]], *quiet]):
        for observed in (["y"], ["x", "y"], ["s"]):
            assert _scaled(feeds, observed)["h"] == pytest.approx(10 * end)


def test_a_tensor_that_others_prove_to_be_quiet_is_not_looked_at_again() -> None:
    assert _scaled([[[1, 0]]] * 40 + [[[9, 0]]], ["y"])["h"] == 10


def test_a_tensor_that_is_tiny_in_the_first_feed_is_watched_in_all_the_data() -> None:
    assert _scaled([[[1e-7, 0]], [[1e-3, 0]], [[1e-6, 0]]], ["y"])["h"] == pytest.approx(1e-2)


def test_magnitudes_below_one_are_told() -> None:
    assert observe(_model(SMALL), ["x"], _batches({"x": [[-0.25, 0.125]]})).magnitudes == {
        "x": 0.25,
        "h": 0.5,
        "y": 0.25,
    }


def test_magnitudes_pass_over_what_is_no_float_tensor() -> None:
    model = _model(
        f"""{HEAD} sequence (float[N,2] x) => (float[N,1] y, int64[2] n)
        <int64 one = {{1}}> {{
            pieces = SplitToSequence <axis=1> (x, one)
            y = SequenceAt(pieces, one)
            n = Shape(x)
        }}"""
    )
    assert observe(model, ["y"], _batches({"x": [[1, -2]]})).magnitudes == {"x": 2.0, "y": 2.0}


@pytest.mark.parametrize(("mask", "told"), [([0, -1e9], False), ([0, -np.inf], False), ([1, -1e9], True)])
def test_a_mask_may_be_as_large_as_it_likes(mask: list[float], told: bool) -> None:
    model = _model(f"{HEAD} masked (float[N,2] x, float[N,2] m) => (float[N,2] y) {{ y = Add(x, m) }}")
    seen = observe(model, ["x"], _batches({"x": [[1, -2]], "m": [mask]}))
    assert ("m" in seen.magnitudes) == told


def test_a_model_without_floats_inside_has_only_the_magnitudes_of_its_inputs() -> None:
    model = _model(f"{HEAD} shape (float[N,2] x) => (int64[2] n) {{ n = Shape(x) }}")
    assert observe(model, ["x"], _batches({"x": [[1, -2]]})).magnitudes == {"x": 2.0}


def test_magnitudes_pass_over_empty_tensors_and_nan() -> None:
    model = _model(
        f"""{HEAD} odd (float[N,2] x) => (float[N,2] y, float[2,M] found)
        {{ log = Log(x)  where = NonZero(x)  found = Cast <to=1> (where)  y = Relu(x) }}"""
    )
    seen = observe(model, ["y", "found"], _batches({"x": [[0, 0]]}, {"x": [[-1, 1]]}))
    assert seen.magnitudes == {"x": 1.0, "y": 1.0, "log": float("inf"), "found": 1.0}
    assert _extremes(seen)["found"] == (0.0, 1.0, 4)


def _network() -> ir.Model:
    rng = np.random.default_rng(0)
    shapes = {"w1": (24, 3, 3, 3), "w2": (24, 24, 3, 3), "w3": (24, 10)}
    weights = {name: (rng.normal(size=s) * 0.2).astype(np.float32) for name, s in shapes.items()}
    text = f"""{HEAD} residual (float[N,3,12,12] x) => (float[N,10] y) {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w1)
        b = Relu(a)
        c = Conv <pads = [1, 1, 1, 1]> (b, w2)
        d = Add(c, b)
        e = Relu(d)
        f = GlobalAveragePool(e)
        g = Flatten(f)
        y = Gemm(g, w3)
    }}"""
    return _model(text, **weights)


CONVOLVED = ["x", "b", "d", "e"]
MULTIPLIED = ["g", "y"]


def _observed(samples: NDArray[np.float32], size: int, order: Sequence[int]) -> Statistics:
    data = samples[list(order)]
    feeds = [{"x": data[start : start + size]} for start in range(0, len(data), size)]
    return observe(_network(), CONVOLVED + MULTIPLIED, _batches(*feeds))


@pytest.mark.parametrize(("size", "step"), [(1, 1), (5, 1), (24, 1), (8, -1), (7, 5)])
def test_batch_size_and_order_do_not_change_the_ranges(size: int, step: int) -> None:
    samples = np.random.default_rng(1).normal(size=(24, 3, 12, 12)).astype(np.float32)
    order = [index * step % 24 for index in range(24)]
    first, other = _observed(samples, 8, range(24)), _observed(samples, size, order)
    assert first.num_samples == other.num_samples == 24
    for name in CONVOLVED:  # ONNX Runtime computes each sample of a convolution alone: bit for bit the same
        assert first.histograms[name] == other.histograms[name]
        for method in METHODS.values():
            assert method().amax(first.histograms[name]) == method().amax(other.histograms[name])
    for name in MULTIPLIED:  # its matrix kernels may sum in another order for another number of rows
        amax = [METHODS["minmax"]().amax(seen.histograms[name]) for seen in (first, other)]
        assert amax[0] == pytest.approx(amax[1], rel=1e-6)


def test_without_tensors_only_the_shapes_are_seen() -> None:
    told: list[int] = []
    seen = observe(_model(SMALL), (), _batches({"x": [[1, 2]] * 3}, {"x": [[1, 2]]}), told.append)
    assert (seen.num_samples, told, dict(seen.histograms)) == (4, [3, 1], {})
    assert seen.shapes == {"x": Shapes((1, 2), (3, 2), (3, 2))}
    part = observe(
        _model(SMALL), (), _batches({"x": [[1, 2]] * 3}, {"x": [[1, 2]]}), control=PassControl(shard=(2, 2))
    )
    assert (part.num_samples, part.shards) == (1, frozenset({2}))


def test_no_data_is_nothing_seen() -> None:
    seen = observe(_model(SMALL), ["h"], _batches())
    assert (seen.num_samples, seen.histograms["h"].total, seen.shapes) == (0, 0, {})


def test_a_feed_that_may_be_cut_is_seen_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(2).normal(size=(20, 3, 12, 12)).astype(np.float32)
    whole = _batches({"x": samples[:12]}, {"x": samples[12:]})
    cut = replace(whole, feed_samples=12)
    monkeypatch.setattr(plan, "_PART_BYTES", 1 << 17)
    told: list[int] = []
    seen = observe(_network(), CONVOLVED, cut, told.append)
    assert seen == replace(observe(_network(), CONVOLVED, whole), magnitudes=seen.magnitudes)
    assert told == [12, 8]


def test_a_sample_of_a_feed_that_is_cut_is_named_by_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(f"{HEAD} log (float[N,2] x) => (float[N,2] y) {{ [log] h = Log(x)  y = Relu(h) }}")
    monkeypatch.setattr(plan, "_PART_BYTES", 16)
    feed = {"x": [[1, 2]] * 7 + [[1, -1]]}
    with pytest.raises(DataError, match=r"has 1 NaN or infinite value on feed 0, in its sample 7; leave"):
        observe(model, ["h"], replace(_batches(feed), feed_samples=8))


def test_a_model_that_runs_at_its_batch_size_only_is_observed() -> None:
    model = _model(
        f"""{HEAD} fixed (float[N,4,4] x) => (float[8,16] y)
        <int64[2] shape = {{8, 16}}> {{ h = Reshape(x, shape)  y = Relu(h) }}"""
    )
    samples = np.arange(256, dtype=np.float32).reshape(16, 4, 4)
    batches = replace(_batches({"x": samples[:8]}, {"x": samples[8:]}), feed_samples=8)
    seen = observe(model, ["x", "h", "y"], batches)
    assert set(_extremes(seen).values()) == {(0.0, 255.0, 256)}


@pytest.mark.parametrize("sizes", [(2, 0, 2), (0, 2, 2), (2, 2, 0)])
@pytest.mark.parametrize("feed_samples", [None, 2])
def test_a_feed_without_samples_is_passed_over(sizes: Sequence[int], feed_samples: int | None) -> None:
    feeds = [{"x": np.full((size, 2), index, np.float32)} for index, size in enumerate(sizes, 1)]
    seen = observe(_model(SMALL), ["h"], replace(_batches(*feeds), feed_samples=feed_samples))
    assert (seen.num_samples, seen.histograms["h"].total) == (4, 8)
    assert seen.histograms["h"].maximum == 2 * max(index for index, size in enumerate(sizes, 1) if size)


def test_without_a_guard_only_what_is_observed_is_looked_at() -> None:
    feeds = [{"x": np.random.default_rng(place).normal(size=(4, 2)).astype(np.float32)} for place in range(3)]
    batches = replace(_batches(*feeds), feed_samples=4)
    guarded, alone = (
        observe(_model(SMALL), ["h"], batches, control=PassControl(guards=guards)) for guards in (True, False)
    )
    assert alone.histograms == guarded.histograms
    assert alone.magnitudes == {"h": guarded.magnitudes["h"]}
    assert {*guarded.magnitudes} > {"h"}
