"""Tests of the choice of the data to compare on, and of labels from a file."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches, Feed
from trtq.calibrators.sources import make_random_batches
from trtq.errors import DataError, UsageError
from trtq.models.spec import CalibrationSpec, EvaluationSpec, InputSpec, ModelSpec
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.judge.evaluate import filter_by_profiles, find_labels, open_evaluation_data, with_labels
from trtq.pipeline.judge.score import Labels


@pytest.fixture
def graph(graph_of: Callable[..., Graph]) -> Graph:
    return graph_of("g (float[N, 3] x) => (float[N, 3] y) { y = Neg (x) }")


def _stream(num_samples: int | None, size: int = 4, *, total: int = 300, digest: str | None = "d") -> Batches:
    def read() -> Iterator[Feed]:
        for start in range(0, total, size):
            stop = min(start + size, total)
            yield Feed(
                {"x": np.arange(start, stop, dtype=np.float32)[:, None].repeat(3, 1)},
                f"{start}",
                stop - start,
            )

    return Batches(read, "stream", num_samples, digest)


def _count(batches: Batches | None) -> int:
    assert batches is not None
    return sum(feed.num_samples for feed in batches)


def _spec(**evaluation: Any) -> ModelSpec:
    return ModelSpec(evaluation=EvaluationSpec(**evaluation), calibration=CalibrationSpec(batch_size=32))


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "evaluation.npz"
    np.savez(path, x=np.ones((200, 3), np.float32), right=np.arange(200) % 3)
    return str(path)


def test_without_any_data_there_is_nothing_to_compare_on(graph: Graph) -> None:
    assert open_evaluation_data(graph, ModelSpec(), None) is None


def test_an_output_that_the_model_does_not_have_is_refused_without_labels_too(graph: Graph) -> None:
    spec = ModelSpec(evaluation=EvaluationSpec(output="logits"))
    with pytest.raises(UsageError, match=r"the model has no output 'logits'; its outputs are "):
        open_evaluation_data(graph, spec, None)


def test_the_calibration_data_stands_in_with_128_samples(graph: Graph) -> None:
    assert _count(open_evaluation_data(graph, ModelSpec(), _stream(300))) == 128


def test_the_calibration_data_stands_in_with_as_many_samples_as_are_wanted(graph: Graph) -> None:
    assert _count(open_evaluation_data(graph, _spec(samples=20), _stream(300))) == 20


def test_random_calibration_data_stays_random(graph: Graph) -> None:
    batches = open_evaluation_data(graph, ModelSpec(), make_random_batches(graph.inputs, {}, 200))
    assert batches is not None
    assert batches.is_random
    assert _count(batches) == 128


@pytest.mark.parametrize("calibration", [None, _stream(300)])
def test_labels_without_evaluation_data_are_refused(graph: Graph, calibration: Batches | None) -> None:
    with pytest.raises(
        DataError, match=r"^labels 'right' are named without evaluation data; give --eval-data$"
    ):
        open_evaluation_data(graph, _spec(labels="right"), calibration)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 128),
        ({"samples": 40}, 64),
        ({"labels": "right"}, 200),
        ({"labels": "right", "samples": 33}, 64),
        ({"samples": 1000}, 200),
    ],
)
def test_evaluation_data_goes_before_the_calibration_data(
    settings: dict[str, Any], count: int, graph: Graph, tmp_path: Path
) -> None:
    path = tmp_path / "evaluation.npz"
    samples = np.ones((200, 3), np.float32)
    if "labels" in settings:
        np.savez(path, x=samples, right=np.arange(200) % 3)
    else:
        np.savez(path, x=samples)
    batches = open_evaluation_data(graph, _spec(data=str(path), **settings), _stream(300))
    assert batches is not None
    assert batches.origin == str(path)
    assert _count(batches) == count
    assert all(("right" in feed.arrays) == ("labels" in settings) for feed in batches)


def test_an_array_of_labels_that_is_not_named_is_refused_as_unknown(graph: Graph, data: str) -> None:
    batches = open_evaluation_data(graph, _spec(data=data), None)
    with pytest.raises(DataError, match=r"has an array 'right' that the model does not take"):
        _count(batches)


def test_the_labels_of_a_file_come_with_the_feeds_in_their_order(graph: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((100, 3), np.float32))
    np.save(tmp_path / "right.npy", np.arange(100))
    settings = _spec(data=str(tmp_path / "x.npy"), labels=str(tmp_path / "right.npy"))
    batches = open_evaluation_data(graph, settings, None)
    labels = find_labels(settings.evaluation)
    assert batches is not None
    assert labels is not None
    assert labels.array is not None
    feeds = list(batches)
    assert [feed.num_samples for feed in feeds] == [32, 32, 32, 4]
    np.testing.assert_array_equal(
        np.concatenate([feed.arrays[labels.array] for feed in feeds]), np.arange(100)
    )
    assert feeds[1].source == f"{tmp_path / 'x.npy'} (samples 32 to 63)"


def test_labels_are_an_array_or_a_file_or_none() -> None:
    assert find_labels(EvaluationSpec()) is None
    assert find_labels(EvaluationSpec(labels="right", output="logits")) == Labels("right", "logits")
    assert find_labels(EvaluationSpec(labels="a/right.npy")) == Labels("labels", None)
    assert find_labels(EvaluationSpec(labels="right"), "top-5") == Labels("right", None, "top-5")


def test_only_a_metric_of_ones_own_scores_without_labels() -> None:
    assert find_labels(EvaluationSpec(), "top-5") is None
    assert find_labels(EvaluationSpec(), "m.py:f1") == Labels(None, None, "m.py:f1")


def _labels(tmp_path: Path, labels: NDArray[Any]) -> Path:
    np.save(tmp_path / "labels.npy", labels)
    return tmp_path / "labels.npy"


def test_labels_are_cut_anew_on_every_pass(tmp_path: Path) -> None:
    batches = with_labels(_stream(10, total=10), _labels(tmp_path, np.arange(10)))
    for _ in range(2):
        assert [feed.arrays["labels"].tolist() for feed in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (batches.num_samples, batches.origin, batches.is_random) == (10, "stream", False)


def _in_parts(batches: Batches) -> Batches:
    """Returns the stream as one of pictures is: it can skip feeds without reading them."""
    return replace(batches, part=lambda start, step: islice(batches.read(), start, None, step))


def test_every_second_feed_has_its_own_labels(tmp_path: Path) -> None:
    batches = with_labels(_in_parts(_stream(10, total=10)), _labels(tmp_path, np.arange(10)))
    assert [feed.arrays["labels"].tolist() for feed in batches.every(1, 2)] == [[4, 5, 6, 7]]


def test_the_digest_is_that_of_data_and_labels(tmp_path: Path) -> None:
    first = with_labels(_stream(10), _labels(tmp_path, np.arange(10))).digest
    second = with_labels(_stream(10), _labels(tmp_path, np.arange(10)[::-1])).digest
    assert first is not None
    assert first.startswith("d/")
    assert first != second
    assert with_labels(_stream(10, digest=None), tmp_path / "labels.npy").digest is None


def test_labels_and_what_fits_are_opened_again_with_the_data(tmp_path: Path) -> None:
    stream = replace(_stream(10, total=10), reopen=partial(_stream, 10, total=10))
    labelled = with_labels(stream, _labels(tmp_path, np.arange(10)))
    fitting = filter_by_profiles(labelled, {"x": InputSpec((1, 3), (3, 3), (3, 3))}, [])
    again = pickle.loads(pickle.dumps(fitting))
    assert [feed.arrays["labels"].tolist() for feed in again] == [[8, 9]]
    assert again.digest == labelled.digest


@pytest.mark.parametrize("labels", [np.arange(9), np.arange(11), np.arange(10)[:, None]])
def test_another_number_of_labels_is_refused(labels: NDArray[Any], tmp_path: Path) -> None:
    shape = str(labels.shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        DataError,
        match=rf"labels\.npy has labels of shape {shape}, stream has 10 samples; give one label per sample$",
    ):
        with_labels(_stream(10), _labels(tmp_path, labels))


@pytest.mark.parametrize("labels", [np.array(3), np.arange(10)[:, None]])
def test_labels_of_another_rank_are_refused_for_data_of_unknown_length(
    labels: NDArray[Any], tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"stream has an unknown number of samples; give one label per sample$"
    ):
        with_labels(_stream(None), _labels(tmp_path, labels))


def test_labels_for_data_of_unknown_length_are_taken_as_they_come(tmp_path: Path) -> None:
    batches = with_labels(_stream(None, total=6), _labels(tmp_path, np.arange(5)))
    assert [feed.arrays["labels"].tolist() for feed in batches] == [[0, 1, 2, 3], [4]]


def _archive() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, labels=np.arange(10))
    return buffer.getvalue()


def _pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, {}]), allow_pickle=True)
    return buffer.getvalue()


def _header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"0 1 2 3",
        _archive(),
        _pickled(),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10,), }\n") + b"\0" * 79,
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10,\n"),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (10 10), }\n"),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }\n"),
    ],
    ids=["empty", "text", "npz", "objects", "cut short", "open bracket", "no comma", "huge"],
)
def test_a_file_that_holds_no_labels_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.npy"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"^cannot read the labels .*labels\.npy: ."):
        with_labels(_stream(10), path)


def test_a_missing_file_of_labels_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^cannot read the labels .*absent\.npy: .*No such file"):
        with_labels(_stream(10), tmp_path / "absent.npy")


def test_labels_of_samples_that_fill_no_batch_are_left_out_with_them(
    graph_of: Callable[..., Graph], tmp_path: Path
) -> None:
    graph = graph_of("g (float[4, 3] x) => (float[4, 3] y) { y = Neg (x) }")
    np.savez(tmp_path / "e.npz", x=np.ones((10, 3), np.float32))
    np.save(tmp_path / "labels.npy", np.arange(10))
    spec = _spec(data=str(tmp_path / "e.npz"), labels=str(tmp_path / "labels.npy"))
    batches = open_evaluation_data(graph, spec, None)
    assert batches is not None
    assert (batches.num_samples, batches.left_out) == (8, 2)
    assert "without the last 2 of 10 samples, which do not fill a batch of 4" in batches.origin
    assert [feed.arrays["labels"].tolist() for feed in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("smallest", "largest", "samples", "others"),
    [(1, 4, 10, []), (4, 4, 8, [2]), (1, 3, 2, [4, 4]), (5, 9, 0, [4, 4, 2])],
)
def test_feeds_outside_of_the_profiles_are_left_out_and_told(
    smallest: int, largest: int, samples: int, others: list[int]
) -> None:
    left_out: list[int] = []
    profile = InputSpec((smallest, 3), (largest, 3), (largest, 3))
    inside = filter_by_profiles(_stream(10, total=10), {"x": profile}, left_out)
    assert _count(inside) == samples
    assert left_out == others
    assert _count(inside) == samples
    assert left_out == others  # once, however often the data is read


def test_of_every_second_feed_those_outside_of_the_profiles_are_left_out_too() -> None:
    left_out: list[int] = []
    profile = InputSpec(min=(4, 3), opt=(4, 3), max=(4, 3))
    batches = filter_by_profiles(_in_parts(_stream(6, total=6)), {"x": profile}, left_out)
    assert list(batches.every(1, 2)) == []
    assert left_out == [2]


def test_without_open_shapes_everything_fits() -> None:
    left_out: list[int] = []
    assert _count(filter_by_profiles(_stream(10, total=10), {}, left_out)) == 10
    assert left_out == []
