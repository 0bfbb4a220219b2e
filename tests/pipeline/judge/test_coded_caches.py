"""Comparisons with models that hold caches in codes: what the data has to show of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_up import batches_of, random_array
from pickled_workers import Pickled

from trtq.pipeline.engine.onnxruntime import OnnxRuntime
from trtq.pipeline.graph.kv_cache import find_coded_caches
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.judge.compare import compare_models

_FLOAT = """g (float[N, S, 4] x, float[N, P, 4] past_0) => (float[N, T, 4] y, float[N, T, 4] present_0) {
    present_0 = Concat <axis = 1> (past_0, x) y = Mul (present_0, two) }"""
_CODED = """g (float[N, S, 4] x, int8[N, P, 4] past_0) => (float[N, T, 4] y, int8[N, T, 4] present_0)
<int8 zero = {0}> {
    new = QuantizeLinear (x, scale, zero) present_0 = Concat <axis = 1> (past_0, new)
    read = DequantizeLinear (present_0, scale, zero) y = Mul (read, two) }"""


@pytest.mark.parametrize(
    ("past", "is_seen"),
    [(random_array(2, 3, 4), True), (np.full((2, 3, 4), 0.01), False), (np.zeros((2, 0, 4)), False)],
)
def test_a_past_without_codes_proves_nothing(
    path_of: Callable[..., Path], past: np.ndarray, is_seen: bool
) -> None:
    two, scale = np.float32(2), np.float32(0.03)
    models = {"fp32": path_of(_FLOAT, two=two), "int8": path_of(_CODED, two=two, scale=scale)}
    feed = {"x": random_array(2, 2, 4), "past_0": past.astype(np.float32)}
    data = replace(batches_of([feed, feed]), reopen=partial(batches_of, [feed, feed]))
    engine = OnnxRuntime().model_runner(models["int8"], "engine")
    pairs = [("int8", "fp32"), ("engine", "fp32")]
    coded = {"engine": find_coded_caches(read_runnable(models["int8"])[0])}
    found = compare_models(models, pairs, data, engines=[engine], coded=coded)
    assert {item.candidate for item in found.outputs} == {"int8", "engine"}
    assert 0.99 < min(item.cosine for item in found.outputs) < 1
    told = "no sample has a past with a code other than 0 in cache 'past_0', so nothing shows that a past"
    assert [item.startswith(told) for item in found.doubts] == [True] * (not is_seen)
    workers = Pickled()
    again = compare_models(models, pairs, data, engines=[engine], coded=coded, workers=workers)
    assert (repr(again), bool(workers.done)) == (repr(found), True)
