"""Tests of calibration data that Polygraphy saved, with the real Polygraphy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import join

from trtq import lazy
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.signature import TensorSpec

OPEN = [TensorSpec("x", "float32", ("N", 2))]
FIXED = [TensorSpec("x", "float32", (4, 2))]
X = np.arange(20, dtype=np.float32).reshape(10, 2)


def _save_json(path: Path, feeds: object) -> None:
    lazy.require("polygraphy.json", None, "this test").save_json(feeds, str(path))


def test_inputs_saved_by_polygraphy_are_read(tmp_path: Path) -> None:
    _save_json(tmp_path / "inputs.json", [{"x": X[:3]}, {"x": X[3:4]}])
    batches = open_batches(str(tmp_path / "inputs.json"), OPEN, 8)
    for _ in range(2):
        assert [(feed.source, feed.num_samples) for feed in batches] == [
            (f"{tmp_path / 'inputs.json'}, feed 0", 3),
            (f"{tmp_path / 'inputs.json'}, feed 1", 1),
        ]
    assert np.array_equal(join(batches), X[:4])
    assert batches.num_samples == 4
    assert batches.digest


def test_a_feed_of_polygraphy_that_does_not_fit_is_refused_and_not_left_out(tmp_path: Path) -> None:
    _save_json(tmp_path / "inputs.json", [{"x": X[:4]}, {"x": X[:3]}])
    with pytest.raises(
        DataError, match=r"inputs.json, feed 1 has shape \(3, 2\), the model expects \(4, 2\)"
    ):
        list(open_batches(str(tmp_path / "inputs.json"), FIXED, 8))


def test_a_feed_of_polygraphy_may_have_a_longer_axis_than_the_batch(tmp_path: Path) -> None:
    inputs = [TensorSpec("x", "float32", (1, 2)), TensorSpec("anchors", "float32", (9, 4))]
    _save_json(tmp_path / "inputs.json", [{"x": X[:1], "anchors": np.zeros((9, 4), np.float32)}])
    assert len(list(open_batches(str(tmp_path / "inputs.json"), inputs, 8))) == 1


def test_no_feeds_of_polygraphy_are_told(tmp_path: Path) -> None:
    _save_json(tmp_path / "inputs.json", [])
    with pytest.raises(DataError, match=r"inputs.json yields no samples; give at least one"):
        list(open_batches(str(tmp_path / "inputs.json"), OPEN, 8))


@pytest.mark.parametrize("content", ["{}", "[1]", "null", '"x"'])
def test_json_without_a_list_of_feeds_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(
        DataError,
        match=r"inputs.json contains no list of feeds; save one with `polygraphy run --save-inputs`$",
    ):
        open_batches(str(tmp_path / "inputs.json"), OPEN, 8)


@pytest.mark.parametrize(
    "content", ["", "[", "\0", '[{"x": {"polygraphy_class": "Foo"}}]', '[{"x": [[1], [1, 2]]}]']
)
def test_a_file_that_polygraphy_cannot_read_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "inputs.json").write_text(content)
    with pytest.raises(DataError, match=r"inputs.json is not a file of inputs saved by Polygraphy: \S"):
        open_batches(str(tmp_path / "inputs.json"), OPEN, 8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_saved_inputs_escapes_as_a_foreign_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "inputs.json"
    _save_json(path, [{"x": X}])
    content = bytearray(path.read_bytes())
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=3)):
        content[place] ^= value
    path.write_bytes(content[: data.draw(places)] if data.draw(st.booleans()) else content)
    try:
        found = join(open_batches(str(path), OPEN, 8))
    except DataError:
        found = X
    assert found.shape[1] == 2
