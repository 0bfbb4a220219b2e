"""A report, its manifest and what was seen of its tensors, all made up, and a browser to look at the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, find_chromium

from trtq.calibrators.entropy import Entropy
from trtq.calibrators.estimate import estimate
from trtq.calibrators.statistics import Histogram, Statistics, find_bins
from trtq.kept import Fallback, KeptNode
from trtq.pipeline.deliver.html.page_data import LayerSummary, PageData
from trtq.pipeline.deliver.html.tensors import summarize_tensors
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import SCHEMA_VERSION, CalibrationReport, EngineReport, Report
from trtq.records import OutputComparison, WorstSample

Observe = Callable[[list[str]], PageData]


@pytest.fixture
def report() -> Report:
    """A build whose gate failed."""
    worst = (WorstSample(0.9, 7), WorstSample(0.95, 1))
    compared = OutputComparison("int8", "fp32", "logits", 0.9, 7.5, 0.5, 0.1, 0.62, 0, worst)
    return Report(
        schema_version=SCHEMA_VERSION,
        verdict="fail",
        reasons=("accuracy falls from 98.00% (fp32) to 62.00%, by 36.00 points; the gate allows 1",),
        model="models/model.onnx",
        output="models/model.trtq",
        backend="tensorrt-rtx 1.7.1",
        precision="int8",
        high_precision="fp16",
        calibration=CalibrationReport("entropy()", "calibration.npz", 512, 1.25, 1 << 30, False),
        engine=EngineReport(
            "model.engine",
            1 << 20,
            3,
            {"int8": 2},
            (Fallback("layer 1", "Conv", "Half", "no kernel"),),
            {},
            (),
            (),
        ),
        comparison=(compared, replace(compared, candidate="fp16", cosine=1.0, sqnr_db=70.0)),
        evaluated_samples=600,
        evaluation_data="evaluation.npz",
        accuracy={"fp32": 0.98, "fp16": 0.98, "int8": 0.62},
        kept_float=(KeptNode("lstm", "LSTM", "stays float"),),
        kept_fp32=(),
        notes=("a note",),
        warnings=("a warning",),
        timings_s={"calibrate": 1.25, "build": 20.0},
        sizes_bytes={"model": 4_000_000, "model.int8.onnx": 1_000_000, "model.engine": 1 << 20},
    )


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        inputs={"model.onnx": "ab" * 32},
        outputs={},
        versions={"trtq": "0.1.0"},
        settings={"model": {"accuracy": {"min_cosine": 0.99, "max_drop": 1.0, "metric": "top-1"}}},
        layers={"layer 0": "Int8", "layer 1": "Half", "lstm": "Float"},
        commands={"engine": "trtexec --onnx=model.int8.onnx", "trtq": "trtq build model.onnx --int8"},
    )


@pytest.fixture
def observe() -> Observe:
    """Observes normal values in tensors of these names, each read by one layer."""

    def observed(names: list[str]) -> PageData:
        rng = np.random.default_rng(0)
        histograms = {name: histogram_of(rng.standard_normal(4096) * rng.uniform(0.5, 9)) for name in names}
        statistics = Statistics(histograms, {}, {}, 32)
        seen = summarize_tensors(statistics, estimate(statistics, Entropy()), Entropy())
        layers = tuple(
            LayerSummary(f"layer {number}", "Conv", "weighted-input", (name,), 43.0)
            for number, name in enumerate(names)
        )
        return replace(seen, layers=layers)

    return observed


@pytest.fixture
def seen(observe: Observe) -> PageData:
    return observe(["image", "hidden", "last"])


def histogram_of(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Histogram:
    """Returns the histogram of values, the slow way."""
    values = values.astype(np.float32).astype(np.float64)
    bins, counts = np.unique(find_bins(values), return_counts=True)
    return Histogram(bins, counts.astype(np.int64), float(values.min()), float(values.max()))


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """A browser without a window."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    browser = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], str]:
    """Writes a page and gives its address."""

    def written(page: bytes) -> str:
        path = tmp_path / "report.html"
        path.write_bytes(page)
        return path.as_uri()

    return written
