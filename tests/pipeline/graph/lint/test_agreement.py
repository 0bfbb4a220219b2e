"""Lint against the real builder, on a part of the graphs of benchmarks/lint.py, which judges all of them."""

from __future__ import annotations

import importlib
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

_BENCHMARKS = Path(__file__).resolve().parents[4] / "benchmarks"
_COUNT, _SEED = 40, 7


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module, with those beside it."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    monkeypatch.syspath_prepend(_BENCHMARKS)
    return importlib.import_module("lint")


def test_lint_says_what_the_builder_does(benchmark: ModuleType, tmp_path: Path) -> None:
    graphs = {**benchmark.singles(), **benchmark.mixes(30, _SEED), **benchmark.structures()}
    valid = {name: model for name, model in graphs.items() if benchmark.is_valid(model)}
    names = random.Random(_SEED).sample(sorted(valid), _COUNT)
    judged = benchmark.judge({name: valid[name] for name in names}, tmp_path)
    assert judged["disagreements"] == []
    assert 5 < judged["refused"] < _COUNT - 10
    assert judged["in int8"] > 5


def test_a_repaired_graph_is_what_lint_says_of_it(benchmark: ModuleType, tmp_path: Path) -> None:
    names = ("weight: concat", "bound of a clip", "LSTM, batch N", "table of codes", "operator format")
    chosen = {name: model for name, model in benchmark.structures().items() if name in names}
    assert len(chosen) == len(names)
    before = benchmark.judge(chosen, tmp_path)
    after = benchmark.judge(benchmark.repaired_graphs(chosen, tmp_path), tmp_path)
    assert before["refused"] == len(names)
    assert (after["refused"], after["disagreements"]) == (0, [])
