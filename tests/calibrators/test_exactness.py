"""Statistics against all the values of real activations, kept and sorted: the slow, exact way."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.entropy import Entropy, find_edges, measure_divergences
from trtq.calibrators.levels import INT8_LEVELS
from trtq.calibrators.observe import observe
from trtq.calibrators.sources import open_batches
from trtq.calibrators.statistics import Statistics
from trtq.models.demo import write_demo
from trtq.models.session import open_session, run
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.placement import place

Values = dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Statistics, Values]:
    """What one pass sees of the demo, and the sorted magnitudes of the same activations."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    graph = load(folder / "model.onnx", min_opset=19)
    batches = open_batches(str(folder / "calibration.npz"), graph.inputs, 16).first(128)
    names = place(graph.model).activations
    statistics = observe(graph.model, names, batches)
    tapped = graph.model.clone()
    made = {str(value.name): value for node in tapped.graph for value in node.outputs}
    computed = [name for name in names if name in made]
    tapped.graph.outputs.extend(made[name] for name in computed)
    session = open_session(tapped, optimize=True)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for feed in batches:
        for name, array in [
            *feed.arrays.items(),
            *zip(computed, run(session, computed, feed.arrays), strict=True),
        ]:
            parts[name].append(np.abs(array).reshape(-1))
    return statistics, {name: np.sort(np.concatenate(arrays)) for name, arrays in parts.items()}


def test_every_value_was_counted(seen: tuple[Statistics, Values]) -> None:
    statistics, values = seen
    for name, exact in values.items():
        assert statistics.histograms[name].total == exact.size
        assert statistics.histograms[name].amax == pytest.approx(float(exact[-1]), rel=1e-5)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 99.999])
def test_percentiles_are_within_a_thousandth(seen: tuple[Statistics, Values], percentile: float) -> None:
    statistics, values = seen
    for name, exact in values.items():
        rank = percentile / 100 * (exact.size - 1)
        low, high = float(exact[int(np.floor(rank))]), float(exact[int(np.ceil(rank))])
        # The gap between two neighbours in the tail is wider than a bin; the answer lies in between.
        assert low * 0.999 <= statistics.histograms[name].quantile(percentile / 100) <= high * 1.001, name


def test_entropy_chooses_the_bin_that_it_chooses_of_the_values(seen: tuple[Statistics, Values]) -> None:
    statistics, values = seen
    method = Entropy()
    for name, exact in values.items():
        histogram = statistics.histograms[name]
        counts, width = histogram.exact(method.num_bins)
        assert method.num_bins / 2 < counts.size <= method.num_bins
        edges = np.arange(counts.size + 1) * width
        wanted = np.histogram(exact[exact >= 2.0**-40], edges)[0].astype(np.float64)
        # A value on the border of a bin may fall to either side, for the kernels of a convolution differ.
        assert np.abs(counts - wanted).sum() <= 1e-4 * wanted.sum(), name
        kept = np.cumsum(wanted)[method.num_levels - 1 :] >= (1 - method.max_clipped) * wanted.sum()
        kept[-1] = True
        edges = find_edges(INT8_LEVELS, method.num_levels)
        found = measure_divergences(wanted, edges, method.num_levels)
        best = int(np.argmin(np.where(kept, found, np.inf)))
        amax = min((best + method.num_levels + 0.5) * width, histogram.amax)
        assert method.amax(histogram) == amax, name
