"""Workers find what one process finds: a feed each, and sums in their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from made_up import batches_of
from numpy.typing import NDArray
from pickled_workers import Pickled

from trtq.calibrators.batches import Batches
from trtq.errors import DataError
from trtq.models.runner import create_runner
from trtq.models.session import open_session
from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.judge.compare import compare_models
from trtq.pipeline.judge.score import Labels
from trtq.workers import Processes

_PAIR = [("int8", "fp32")]
_LINEAR = "g (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }"
_WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)
_MANY = """g (float[N, 4] x) => (float[N, 6] y, int64[N] best, float[N, 3] s) <float big = {640}> {
    a = MatMul (x, w) loud = Mul (a, big) c = MatMul (x, v) s = Sigmoid (c)
    y = Concat <axis = 1> (loud, s) best = ArgMax <axis = 1, keepdims = 0> (c) }"""
_TEXT = "g (int64[N, T] input_ids) => (float[N, T, 9] logits) { logits = Gather (w, input_ids) }"


def _make(feeds: list[dict[str, NDArray[Any]]]) -> Batches:
    """Returns feeds that another process makes as well."""
    return replace(batches_of(feeds), reopen=partial(batches_of, feeds))


def test_workers_find_what_one_process_finds(path_of: Callable[..., Path], tmp_path: Path) -> None:
    """Joined outputs, classes, samples that are not finite, labels and a metric of the user's own."""
    rng = np.random.default_rng(3)
    first, second = (rng.standard_normal((4, 3)).astype(np.float32) for _ in range(2))
    models = {"fp32": path_of(_MANY, w=first, v=second), "int8": path_of(_MANY, w=second, v=first)}
    feeds: list[dict[str, NDArray[Any]]] = [
        {"x": rng.standard_normal((size, 4)).astype(np.float32), "labels": rng.integers(0, 3, size)}
        for size in (3, 1, 1, 2)
    ]
    feeds[1]["x"][0, 0] = np.inf
    (tmp_path / "own.py").write_text(
        "def score(outputs, labels):\n    return float((outputs['best'] == labels).mean())\n"
    )
    for metric in ("top-1", f"{tmp_path / 'own.py'}:score"):
        labels, workers = Labels("labels", "s", metric), Pickled()
        told: list[int] = []
        found = compare_models(models, _PAIR, _make(feeds), labels, told.append, workers=workers)
        assert repr(found) == repr(compare_models(models, _PAIR, _make(feeds), labels))
        assert (told, len(workers.done) > 4) == ([3, 1, 1, 2], True)
    assert any(item.part for item in found.outputs)


def test_workers_find_the_same_of_texts_of_any_length_and_of_steady_values(
    path_of: Callable[..., Path],
) -> None:
    rng = np.random.default_rng(4)
    weights = [rng.standard_normal((12, 9)).astype(np.float32) for _ in range(2)]
    for weight in weights:
        weight[:, 2] = -1e9
    models = dict(zip(("fp32", "int8"), (path_of(_TEXT, w=weight) for weight in weights), strict=True))
    feeds = [{"input_ids": rng.integers(0, 9, shape)} for shape in ((2, 4), (1, 5), (1, 4))]
    found = compare_models(models, _PAIR, _make(feeds), workers=Pickled())
    assert repr(found) == repr(compare_models(models, _PAIR, _make(feeds)))
    assert (len(found.logits), found.outputs[0].apart > 0) == (1, True)


def test_a_comparison_with_what_runs_here_alone_is_not_shared(path_of: Callable[..., Path]) -> None:
    path, workers = path_of(_LINEAR, w=_WEIGHT), Pickled()
    engine = create_runner(open_session(path, optimize=False), "engine")
    batches = batches_of([{"x": np.ones((2, 4), np.float32)}])
    found = compare_models({"fp32": path}, [("engine", "fp32")], batches, engines=[engine], workers=workers)
    assert (found.num_samples, workers.done) == (2, [])


def test_a_model_with_its_weights_in_another_file_is_compared_by_processes(
    path_of: Callable[..., Path], tmp_path: Path
) -> None:
    path = path_of(_LINEAR, w=_WEIGHT)
    onnx.save(
        onnx.load(path), tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0
    )
    models = {"int8": tmp_path / "b.onnx", "fp32": path}
    feeds = [{"x": np.full((2, 4), value, np.float32)} for value in (1, 2, 3)]
    found = compare_models(models, _PAIR, _make(feeds), workers=Processes(1))
    assert repr(found) == repr(compare_models(models, _PAIR, _make(feeds)))


def test_what_onnx_runtime_runs_as_an_engine_is_compared_by_workers(path_of: Callable[..., Path]) -> None:
    path, workers = path_of(_LINEAR, w=_WEIGHT), Pickled()
    engine, pairs = OnnxRuntime().model_runner(path, "engine"), [("engine", "fp32")]
    data = _make([{"x": np.full((2, 4), value, np.float32)} for value in (1, 2)])
    found = compare_models({"fp32": path}, pairs, data, engines=[engine], workers=workers)
    assert repr(found) == repr(compare_models({"fp32": path}, pairs, data, engines=[engine]))
    assert workers.done


def test_data_of_this_process_alone_is_told(path_of: Callable[..., Path]) -> None:
    path = path_of(_LINEAR, w=_WEIGHT)
    with pytest.raises(
        DataError, match=r"^made up is known to this process alone, so that no other can read"
    ):
        compare_models({"fp32": path}, [], batches_of([_WEIGHT.T]), workers=Pickled())
