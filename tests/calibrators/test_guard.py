"""What is watched so that nothing leaves the range of FP16 unseen: little, early, and more where needed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import pytest

from trtq.calibrators import METHODS, taps
from trtq.calibrators import observe as observing
from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.bounds import MagnitudeBounds
from trtq.calibrators.estimate import estimate
from trtq.calibrators.guard import MagnitudeGuard, create_guard
from trtq.calibrators.observe import PassControl, observe
from trtq.calibrators.ranges import FP16_LIMIT
from trtq.calibrators.survey import survey

Feeds = Sequence[Mapping[str, Any]]


def model_of(text: str, **weights: Any) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def arrays_of(feed: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: np.asarray(array, None if isinstance(array, np.ndarray) else np.float32)
        for name, array in feed.items()
    }


def batches_of(*feeds: Mapping[str, Any]) -> Batches:
    items = [Feed(arrays_of(feed), f"feed {place}", 1) for place, feed in enumerate(feeds)]
    return Batches(lambda: iter(items), "memory", len(items))


def guard_of(
    model: ir.Model, observed: Sequence[str], feed: Mapping[str, Any], *, may_widen: bool = True
) -> MagnitudeGuard:
    arrays = arrays_of(feed)
    made = survey(model, (), arrays, "cpu").magnitudes
    return create_guard(model, observed, arrays, made, may_widen=may_widen)


def beyond(model: ir.Model, observed: Sequence[str], *feeds: Mapping[str, Any]) -> Mapping[str, float]:
    """Returns what leaves the range of FP16 on these feeds."""
    seen = observe(model, observed, batches_of(*feeds), control=PassControl(watches_all=True))
    return estimate(seen, METHODS["minmax"]()).beyond_fp16


HIDDEN = model_of(
    """net (float[N,8] x) => (float[N,8] y) <float big = {1000}> {
        root = Sqrt (x)  h = Mul (root, big)  z = Relu (h)  y = Sigmoid (z)
    }"""
)
QUIET = {"x": [[1] * 8]}


@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("loud", [0, 3, 7])
def test_nan_hides_nothing_that_is_too_large(place: int, loud: int) -> None:
    row = np.ones(8, np.float32)
    row[place], row[loud] = -1, 1e4
    feeds: Feeds = [QUIET, {"x": row[None]}, QUIET]
    for order in itertools.permutations(feeds):
        assert beyond(HIDDEN, ["x"], *order) == {"h": 1e5, "z": 1e5}


def test_nan_itself_says_nothing_about_fp16() -> None:
    feeds: Feeds = [QUIET, {"x": [[-1] + [1] * 7]}, {"x": [[-1] * 8]}]
    for order in itertools.permutations(feeds):
        assert beyond(HIDDEN, ["x"], *order) == {}


def test_an_infinite_input_hides_nothing_behind_the_nan_that_it_makes() -> None:
    model = model_of(
        """net (float[N,4] x, float[N,4] k) => (float[N,4] y) <float gain = {1000}> {
            d = Sub (x, x)  g = Mul (k, gain)  s = Add (g, d)  h = Relu (s)  y = Sigmoid (h)
        }"""
    )
    ones = np.ones((1, 4), np.float32)
    loud = {
        "x": np.array([[1, 1, 1, math.inf]], np.float32),
        "k": np.array([[40, 1, 1, 1]], np.float32),
    }
    for feeds in itertools.permutations([{"x": ones, "k": ones}, loud, {"x": loud["x"], "k": ones}]):
        assert beyond(model, ["k"], *feeds) == {"g": 40000.0, "s": 40000.0, "h": 40000.0}


def test_what_cannot_hold_nan_is_reduced_without_looking_for_it() -> None:
    model = model_of(
        """net (float[N,4] x) => (float[N,4] y, float[N,4] z) <float big = {30000}> {
            a = Mul (x, big)  y = Sigmoid (a)  r = Sqrt (x)  b = Mul (r, big)  z = Sigmoid (b)
        }"""
    )
    guard = guard_of(model, ["y", "z"], {"x": [[1] * 4]})
    assert list(guard.watched) == ["a", "b"]
    assert set(guard.doubtful) == {"b"}


POOLED = model_of(
    """net (float[N,T,4] x) => (float[N,4] y) <float gain = {300}> {
        h = Mul (x, gain)  s = ReduceSum <keepdims = 0> (h, one)  y = Sigmoid (s)
    }""",
    one=np.array([1]),
)


def test_what_sizes_prove_is_proven_for_these_sizes_alone() -> None:
    guard = guard_of(POOLED, ["y"], {"x": np.ones((1, 10, 4), np.float32)})
    assert list(guard.watched) == []
    known = {"x": 1.0, "y": 1.0}
    assert guard.proves(known, {"x": np.ones((3, 10, 4), np.float32)})
    longer = {"x": np.ones((1, 200, 4), np.float32)}
    assert not guard.proves(known, longer)
    wider = guard.widen(longer, {"x": 1.0}, survey(POOLED, (), longer, "cpu").magnitudes)
    assert list(wider.watched) == ["s"]
    assert wider.proves({**known, "s": 3000.0}, {"x": np.ones((1, 10, 4), np.float32)})
    assert list(guard_of(POOLED, ["y"], {"x": np.ones((1, 10, 4), np.float32)}, may_widen=False).watched) == [
        "s"
    ]


@pytest.mark.parametrize("lengths", list(itertools.permutations((10, 20, 200))))
def test_a_longer_sample_is_seen_wherever_it_comes(lengths: Sequence[int]) -> None:
    feeds = [{"x": np.ones((1, length, 4), np.float32)} for length in lengths]
    assert beyond(POOLED, ["y"], *feeds) == {"s": 60000.0}


def test_sizes_that_are_taken_from_a_shape_need_not_be_watched() -> None:
    model = model_of(
        """net (float[N,H,W] x) => (float[N,H,W] y) {
            n = Shape (x)  w = Gather (n, two)  f = Cast <to = 1> (w)  h = Div (x, f)  y = Sigmoid (h)
        }""",
        two=np.int64(2),
    )
    assert "f" not in guard_of(model, ["h"], {"x": np.ones((1, 3, 5), np.float32)}).watched


MIXED = 4.5 * np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32)
"""Makes of one value four as large as 4.5 times it; of four, 18 times as large at most."""
CHAIN = model_of(
    """net (float[N,4] x) => (float[N,4] y) {
        a = MatMul (x, w)  b = MatMul (a, w)  c = MatMul (b, w)  d = MatMul (c, w)  y = Sigmoid (d)
    }""",
    w=MIXED,
)


def test_the_earliest_tensor_that_proves_the_rest_is_watched() -> None:
    quiet, loud, louder = ({"x": [[value, 0, 0, 0]]} for value in (0.5, 1, 5))
    assert list(guard_of(CHAIN, ["x"], quiet).watched) == ["a"]
    assert list(guard_of(CHAIN, ["x"], loud).watched) == ["c"]
    assert list(guard_of(CHAIN, ["c"], loud).watched) == []
    for feeds in itertools.permutations([quiet, loud, louder]):
        assert beyond(CHAIN, ["x"], *feeds) == {"d": 5 * 4.5**4 * 16}


@pytest.mark.parametrize("op_type", ["Add", "Exp"])
def test_a_longer_chain_of_what_nothing_bounds_takes_no_more_for_each_node(
    monkeypatch: pytest.MonkeyPatch, op_type: str
) -> None:
    visited: list[int] = []
    visit = MagnitudeBounds.visit

    def count(*args: Any) -> list[str]:
        visited.append(1)
        return visit(*args)

    monkeypatch.setattr(MagnitudeBounds, "visit", count)
    counts = []
    for length in (50, 200):
        steps = "Add(t{0}, t{0})" if op_type == "Add" else "Exp(t{0})"
        nodes = "\n".join(f"t{index + 1} = {steps.format(index)}" for index in range(length))
        model = model_of(f"g (float[N, 2] t0) => (float[N, 2] t{length}) {{ {nodes} }}")
        made = {f"t{index}": 1.0 for index in range(1, length + 1)}
        visited.clear()
        guard = create_guard(model, [], arrays_of({"t0": [[1, 1]]}), made, may_widen=False)
        assert guard.watched
        counts.append(len(visited) / length)
    assert counts[1] < 1.5 * counts[0]


def test_what_was_not_proven_is_watched_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def count(module: ModuleType, name: str) -> None:
        real = getattr(module, name)

        def call(*given: Any) -> Any:
            calls.append(name)
            return real(*given)

        monkeypatch.setattr(module, name, call)

    count(observing, "survey")
    count(taps, "open_taps")
    model = model_of(
        """net (float[N,4] x) => (float[N,4] y) <float gain = {100}> {
            h = MatMul (x, w)  s = Mul (h, gain)  y = Relu (s)
        }""",
        w=MIXED,
    )
    observe(model, ["x"], batches_of({"x": [[1, 0, 0, 0]]}, *[{"x": [[40, 0, 0, 0]]}] * 20))
    assert calls.count("open_taps") == 2
    assert calls.count("survey") < 6  # as many as threads were at it


def test_what_is_always_zero_is_not_watched_and_what_may_not_be_is() -> None:
    model = model_of(
        """net (float[N,4] x) => (float[N,4] y) {
            n = Shape (x)  zeros = ConstantOfShape (n)  none = Mul (x, zeros)  r = Relu (x)
            s = Add (none, r)  y = Sigmoid (s)
        }"""
    )
    assert list(guard_of(model, ["y"], {"x": [[-1] * 4]}).watched) == ["r", "s"]


def test_what_is_bounded_whatever_the_data_is_needs_no_watching_up_to_the_limit() -> None:
    text = """net (float[N,4] x) => (float[N,4] y) <float gain = {%d}> {
        a = Sigmoid (x)  h = Mul (a, gain)  y = Sigmoid (h)
    }"""
    feed = {"x": [[1] * 4]}
    for gain, watched in ((FP16_LIMIT * 0.9, []), (FP16_LIMIT * 1.1, ["h"])):
        assert list(guard_of(model_of(text % gain), ["y"], feed).watched) == watched


def test_another_pass_for_other_tensors_needs_no_other_guard() -> None:
    feeds = [{"x": [[value, 0, 0, 0]]} for value in (0.5, 5, 1)]
    memory = PassControl(memory_bytes=220_000)  # for one histogram at a time
    seen = observe(CHAIN, ["a", "c"], batches_of(*feeds), control=memory)
    assert estimate(seen, METHODS["minmax"]()).beyond_fp16 == beyond(CHAIN, ["a", "c"], *feeds) != {}
