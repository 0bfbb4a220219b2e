"""Tests of running models side by side: real models, in Polygraphy and ONNX Runtime."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from made_up import batches_of
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.errors import DataError, ModelError, UsageError
from trtq.models.session import open_session
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.judge import compare, runs
from trtq.pipeline.judge.compare import Comparison, compare_models
from trtq.pipeline.judge.runs import computes_in_float32, read_typed
from trtq.pipeline.judge.score import Labels

_PAIR = [("int8", "fp32")]
_LINEAR = "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }"
_WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Path:
    return demo_folder


@pytest.fixture(scope="module")
def digits(demo: Path) -> Batches:
    """The first 90 samples of the demo's evaluation data, in batches of 40, with labels."""
    with np.load(demo / "evaluation.npz") as archive:
        return batches_of(_split({name: archive[name][:90] for name in archive.files}, 40))


def _split(arrays: dict[str, NDArray[Any]], size: int) -> list[dict[str, NDArray[Any]]]:
    count = len(next(iter(arrays.values())))
    return [
        {name: array[start : start + size] for name, array in arrays.items()}
        for start in range(0, count, size)
    ]


def _doctored(path: Path, place: Path, *, digits: int) -> Path:
    """Writes the model with its weights rounded to a few decimals."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.round(array, digits), tensor.name))
    onnx.save(proto, place)
    return place


def test_a_model_is_exactly_itself(demo: Path, digits: Batches) -> None:
    model = demo / "model.onnx"
    found = compare_models({"int8": model, "fp32": model}, _PAIR, digits)
    (output,) = found.outputs
    assert (output.candidate, output.reference, output.output) == ("int8", "fp32", "logits")
    assert output.cosine == pytest.approx(1.0, abs=1e-15)
    assert (output.sqnr_db, output.max_abs, output.top1_agreement) == (math.inf, 0.0, 1.0)
    assert (found.num_samples, found.data, found.accuracy) == (90, "made up", {})


def test_each_file_is_read_once(demo: Path, digits: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Mock(wraps=read_runnable)
    for module in (runs, compare):
        monkeypatch.setattr(module, "read_runnable", read)
    model = demo / "model.onnx"
    compare_models({"int8": model, "fp32": model}, _PAIR, digits.first(40))
    assert read.call_count == 2


def test_a_doctored_model_is_farther_the_more_it_is_changed(
    demo: Path, digits: Batches, tmp_path: Path
) -> None:
    models = {
        "fp32": demo / "model.onnx",
        "int8": _doctored(demo / "model.onnx", tmp_path / "a.onnx", digits=1),
        "fp16": _doctored(demo / "model.onnx", tmp_path / "b.onnx", digits=3),
    }
    found = compare_models(models, [("int8", "fp32"), ("int8", "fp16"), ("fp16", "fp32")], digits)
    assert [(item.candidate, item.reference) for item in found.outputs] == [
        ("int8", "fp32"),
        ("int8", "fp16"),
        ("fp16", "fp32"),
    ]
    int8, _, fp16 = found.outputs
    assert int8.cosine < fp16.cosine < 1
    assert int8.sqnr_db < fp16.sqnr_db < math.inf
    assert int8.worst[0].cosine <= int8.cosine


def test_the_numbers_are_those_of_all_outputs_at_once(demo: Path, digits: Batches, tmp_path: Path) -> None:
    models = {
        "fp32": demo / "model.onnx",
        "int8": _doctored(demo / "model.onnx", tmp_path / "a.onnx", digits=1),
    }
    images = np.concatenate([feed.arrays["image"] for feed in digits])
    wanted = np.concatenate([feed.arrays["labels"] for feed in digits])
    ours, theirs = (
        open_session(models[name], optimize=False).run(None, {"image": images})[0]
        for name in ("int8", "fp32")
    )
    found = compare_models(models, _PAIR, digits, Labels("labels"))
    assert found.accuracy["int8"] == (ours.argmax(1) == wanted).mean()
    assert found.accuracy["fp32"] == (theirs.argmax(1) == wanted).mean()
    (output,) = found.outputs
    assert output.max_abs == pytest.approx(np.abs(ours - theirs).max(), rel=1e-4)
    assert output.top1_agreement == (ours.argmax(1) == theirs.argmax(1)).mean()
    apart = np.linalg.norm(ours - theirs)
    assert output.sqnr_db == pytest.approx(20 * np.log10(np.linalg.norm(theirs) / apart), rel=1e-4)


def test_one_batch_is_in_memory_at_a_time(path_of: Callable[..., Path]) -> None:
    path = path_of(_LINEAR, w=_WEIGHT)
    told: list[int] = []
    alive: list[weakref.ref[NDArray[Any]]] = []

    def read() -> Iterator[Feed]:
        for index in range(8):
            assert told == [3] * index, "an earlier batch was not compared yet"
            assert sum(array() is not None for array in alive) <= 1
            arrays = {"x": np.full((3, 4), index, np.float32)}
            alive.append(weakref.ref(arrays["x"]))
            yield Feed(arrays, f"feed {index}", 3)
            del arrays

    batches = Batches(read, "made for a test", None)
    assert (
        compare_models({"int8": path, "fp32": path}, _PAIR, batches, progress=told.append).num_samples == 24
    )
    assert told == [3] * 8


def test_what_saves_memory_changes_no_number(path_of: Callable[..., Path]) -> None:
    models = {"fp32": path_of(_LINEAR, w=_WEIGHT), "int8": path_of(_LINEAR, w=np.round(_WEIGHT / 3))}
    data = batches_of(list(np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32)))
    assert compare_models(models, _PAIR, data, saves_memory=True) == compare_models(models, _PAIR, data)


def test_accuracy_counts_labels_not_the_longest_axis(path_of: Callable[..., Path]) -> None:
    path = path_of(
        "g (float[N, 3] x, float[M] anchors) => (float[N, 3] y) { a = ReduceSum (anchors) y = Mul (x, a) }"
    )
    feed = Feed(
        {"x": np.eye(2, 3, dtype=np.float32), "anchors": np.ones(5, np.float32), "right": np.array([0, 2])},
        "feed",
        5,
    )
    batches = Batches(lambda: iter([feed]), "made for a test", None)
    assert compare_models({"fp32": path}, [], batches, Labels("right")).accuracy == {"fp32": 0.5}


def test_an_output_that_the_candidate_lacks_is_named(path_of: Callable[..., Path]) -> None:
    models = {
        "fp32": path_of("g (float[2] x) => (float[2] y, float[2] z) { y = Neg (x) z = Abs (x) }"),
        "int8": path_of("g (float[2] x) => (float[2] y, float[2] w) { y = Neg (x) w = Abs (x) }"),
    }
    with pytest.raises(ModelError, match=r"^int8 has no output 'z' as fp32 has; its outputs are y, w$"):
        compare_models(models, _PAIR, batches_of([{"x": np.ones(2, np.float32)}]))


def test_an_output_of_any_size_that_the_candidate_lacks_is_named_too(path_of: Callable[..., Path]) -> None:
    models = {
        "fp32": path_of("g (float[N] x) => (float[N] y, int64[1, K] z) { y = Neg (x) z = NonZero (x) }"),
        "int8": path_of("g (float[N] x) => (float[N] y) { y = Neg (x) }"),
    }
    with pytest.raises(ModelError, match=r"^int8 has no output 'z' as fp32 has; its outputs are y$"):
        compare_models(models, _PAIR, batches_of([{"x": np.ones(2, np.float32)}]))


def test_an_output_of_another_shape_is_named(path_of: Callable[..., Path]) -> None:
    models = {
        "fp32": path_of("g (float[2, 3] x) => (float[A, B] y) { y = Neg (x) }"),
        "int8": path_of("g (float[2, 3] x) => (float[A, B] y) { y = Transpose (x) }"),
    }
    with pytest.raises(
        ModelError,
        match=r"^output 'y' has shape \(3, 2\) in int8 and \(2, 3\) in fp32; give models whose",
    ):
        compare_models(models, _PAIR, batches_of([{"x": np.ones((2, 3), np.float32)}]))


def test_a_model_that_cannot_be_loaded_is_told(path_of: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"broken\.onnx is not an ONNX model"):
        compare_models({"fp32": broken}, [], batches_of([{"x": np.ones((2, 3), np.float32)}]))


def test_a_model_that_fails_on_the_data_is_told_with_the_feed(path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N] x) => (float[A, 2] y) { y = Reshape (x, shape) }", shape=np.array([-1, 2]))
    batches = batches_of([{"x": np.ones(4, np.float32)}, {"x": np.ones(5, np.float32)}])
    with pytest.raises(ModelError, match=r"^running the models on feed 1 failed: .*Reshape"):
        compare_models({"int8": path, "fp32": path}, _PAIR, batches)


def test_a_feed_that_polygraphy_refuses_is_told_once(
    path_of: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = path_of(_LINEAR, w=_WEIGHT)
    with pytest.raises(
        ModelError, match=r"^running the models on feed 0 failed: Input tensor: x \| Cannot reuse .*\(2, 5\)"
    ):
        compare_models({"fp32": path}, [], batches_of([{"x": np.ones((2, 5), np.float32)}]))
    assert capfd.readouterr() == ("", "")


def test_an_error_of_the_data_passes_through(path_of: Callable[..., Path]) -> None:
    def read() -> Iterator[Feed]:
        raise DataError("the data is damaged")
        yield

    with pytest.raises(DataError, match=r"^the data is damaged$"):
        compare_models({"fp32": path_of(_LINEAR, w=_WEIGHT)}, [], Batches(read, "made for a test", None))


def _with_labels(path: Path, labels: NDArray[Any] | None, wanted: Labels) -> Comparison:
    arrays: dict[str, NDArray[Any]] = {"x": np.ones((4, 4), np.float32)}
    if labels is not None:
        arrays["labels"] = labels
    return compare_models({"fp32": path}, [], batches_of([arrays]), wanted)


def test_missing_labels_are_told_with_what_is_there(path_of: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"^feed 0 has no labels 'labels'; it has x$"):
        _with_labels(path_of(_LINEAR, w=_WEIGHT), None, Labels("labels"))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (np.zeros(4, np.float32), r"are float32 of shape \(4,\)"),
        (np.zeros(3, np.int64), r"are int64 of shape \(3,\)"),
        (np.zeros((4, 1), np.int64), r"are int64 of shape \(4, 1\)"),
    ],
)
def test_labels_of_another_kind_are_refused(
    labels: NDArray[Any], told: str, path_of: Callable[..., Path]
) -> None:
    with pytest.raises(
        DataError,
        match=rf"^labels 'labels' of feed 0 {told} and output 'y' has shape \(4, 3\); accuracy needs whole",
    ):
        _with_labels(path_of(_LINEAR, w=_WEIGHT), labels, Labels("labels"))


@pytest.mark.parametrize(("label", "sample"), [(3, 1), (-1, 2)])
def test_labels_that_are_no_class_are_refused(label: int, sample: int, path_of: Callable[..., Path]) -> None:
    labels = np.zeros(4, np.int64)
    labels[sample] = label
    with pytest.raises(
        DataError,
        match=rf"^label {label} of sample {sample} of feed 0 is not a class of output 'y', .* 0 to 2$",
    ):
        _with_labels(path_of(_LINEAR, w=_WEIGHT), labels, Labels("labels"))


def test_scores_of_another_rank_are_refused(path_of: Callable[..., Path]) -> None:
    path = path_of(
        "g (float[N, 4] x) => (float[N] y) { y = ReduceMax <axes = [1], keepdims = 0> (x) }", opset=13
    )
    with pytest.raises(DataError, match=r"and output 'y' has shape \(4,\); accuracy needs .*\(N, classes\)$"):
        _with_labels(path, np.zeros(4, np.int64), Labels("labels"))


@pytest.fixture
def two_outputs(path_of: Callable[..., Path]) -> Path:
    return path_of(
        "g (float[N, 4] x) => (float[N, 4] a, float[N, 3] b) { a = Neg (x) b = MatMul (x, w) }", w=_WEIGHT
    )


def test_labels_of_a_model_with_several_outputs_need_a_name(two_outputs: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"^the model has the outputs a, b; name the one with the class scores: `output` in \[eval",
    ):
        _with_labels(two_outputs, np.zeros(4, np.int64), Labels("labels"))


def test_labels_for_an_unknown_output_are_refused(two_outputs: Path) -> None:
    with pytest.raises(UsageError, match=r"^the model has no output 'c'; its outputs are a, b$"):
        _with_labels(two_outputs, np.zeros(4, np.int64), Labels("labels", "c"))


def test_labels_belong_to_the_named_output(two_outputs: Path) -> None:
    labels = np.array([2, 2, 0, 2], np.uint8)
    assert _with_labels(two_outputs, labels, Labels("labels", "b")).accuracy == {"fp32": 0.75}
    assert _with_labels(two_outputs, labels, Labels("labels", "a")).accuracy == {"fp32": 0.25}


def test_an_engine_is_compared_and_counted_by_its_runner(demo: Path, digits: Batches) -> None:
    model = demo / "model.onnx"
    from polygraphy.backend import onnxrt as polygraphy

    engine = polygraphy.OnnxrtRunner(open_session(model, optimize=True), name="engine")
    pairs = [("engine", "fp32")]
    labels = Labels("labels")
    found = compare_models({"fp32": model}, pairs, digits, labels, engines=(engine,))
    assert [(item.candidate, item.max_abs) for item in found.outputs] == [("engine", 0.0)]
    assert found.accuracy["engine"] == found.accuracy["fp32"] > 0.9


def test_comparing_needs_no_pytorch(two_outputs: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32))
    program = f"""
import sys, trtq
trtq.compare({str(two_outputs)!r}, {str(two_outputs)!r}, spec=trtq.ModelSpec(
    evaluation=trtq.EvaluationSpec(data={str(tmp_path / "data.npz")!r})))
print("polygraphy" in sys.modules, "torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (found.stdout.strip(), found.stderr) == ("True False", "")


def test_data_that_is_other_at_every_pass_is_compared_with_itself(demo: Path) -> None:
    rng = np.random.default_rng(0)

    def read() -> Iterator[Feed]:
        for _ in range(3):
            yield Feed({"image": rng.random((4, 1, 8, 8), np.float32)}, "made up", 4)

    found = compare_models(
        {"fp32": demo / "model.onnx", "int8": demo / "model.onnx"},
        _PAIR,
        Batches(read, "script.py:make", None),
    )
    assert [item.max_abs for item in found.outputs] == [0.0]


@pytest.mark.parametrize(
    ("body", "is_exact"),
    [
        ("y = Relu (x)", True),
        ("i = Cast <to = 7> (x) y = Cast <to = 1> (i)", True),
        ("h = Cast <to = 10> (x) y = Cast <to = 1> (h)", False),
        ("b = Cast <to = 16> (x) y = Cast <to = 1> (b)", False),
        ("q = QuantizeLinear (x, one) y = DequantizeLinear (q, one)", False),
        ("q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)", False),
        ("y = If (yes) <then_branch = a () => (p) { h = Cast <to = 10> (x) p = Cast <to = 1> (h) }, "
         "else_branch = b () => (r) { r = Relu (x) }>", False),
    ],
)  # fmt: skip
def test_only_what_rounds_to_no_smaller_type_runs_on_fast_kernels(
    path_of: Callable[..., Path], body: str, is_exact: bool
) -> None:
    path = path_of(f"g (float[N, 4] x) => (float[N, 4] y) <float one = {{1}}, bool yes = {{1}}> {{ {body} }}")
    assert computes_in_float32(read_typed(path)[0]) == is_exact


@pytest.mark.parametrize("unknown", ["type", "domain"])
def test_what_is_not_known_runs_as_it_is_written(path_of: Callable[..., Path], unknown: str) -> None:
    model, _ = read_typed(path_of("g (float[N, 4] x) => (float[N, 4] y) { h = Neg (x) y = Relu (h) }"))
    assert computes_in_float32(model)
    if unknown == "type":
        model.graph[0].outputs[0].type = None
    else:
        model.graph[0].domain = "com.microsoft"
    assert not computes_in_float32(model)
