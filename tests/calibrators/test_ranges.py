"""Tests of the ranges and their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtq.calibrators.ranges import Channels, Range, Ranges, Shapes, ranges_to_json, read_ranges
from trtq.errors import ArtifactError, UsageError

RANGES = Ranges(
    tensors={"images": Range(2.5, -1.0, 2.75), "dead": Range(0.0, 0.0, 0.0)},
    method="percentile(percentile=99.99)",
    model_sha256="ab" * 32,
    data="calib.npz",
    num_samples=512,
    is_random=True,
    shapes={"images": Shapes((1, 3), (8, 3), (16, 3))},
    beyond_fp16={"hot": 1e6},
)
JSON = b"""{
 "schema_version": 1,
 "kind": "ranges",
 "method": "percentile(percentile=99.99)",
 "model_sha256": "abababababababababababababababababababababababababababababababab",
 "data": "calib.npz",
 "num_samples": 512,
 "is_random": true,
 "shapes": {
  "images": {
   "min": [
    1,
    3
   ],
   "opt": [
    8,
    3
   ],
   "max": [
    16,
    3
   ]
  }
 },
 "beyond_fp16": {
  "hot": 1000000.0
 },
 "tensors": {
  "images": {
   "amax": 2.5,
   "min": -1.0,
   "max": 2.75
  },
  "dead": {
   "amax": 0.0,
   "min": 0.0,
   "max": 0.0
  }
 }
}
"""
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_ranges_as_json_are_known_to_the_byte() -> None:
    assert ranges_to_json(RANGES) == JSON


def test_ranges_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_bytes(JSON)
    assert read_ranges(tmp_path / "ranges.json") == RANGES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(st.text(), st.tuples(FLOATS.map(abs), FLOATS, FLOATS)))
def test_every_number_comes_back_exactly(
    tmp_path: Path, tensors: dict[str, tuple[float, float, float]]
) -> None:
    ranges = Ranges(
        {name: Range(amax, *sorted(ends)) for name, (amax, *ends) in tensors.items()}, "minmax()", "", "", 1
    )
    (tmp_path / "ranges.json").write_bytes(ranges_to_json(ranges))
    assert read_ranges(tmp_path / "ranges.json") == ranges


def test_the_amax_of_a_dead_tensor_is_one() -> None:
    assert RANGES.amax("images") == 2.5
    assert RANGES.amax("dead") == 1.0
    assert [item.is_dead for item in RANGES.tensors.values()] == [False, True]


def test_a_tensor_without_range_is_named() -> None:
    with pytest.raises(
        UsageError,
        match=r"^the ranges hold nothing for tensor 'other'; they were calibrated for another model or "
        r"with other skipped layers: calibrate again$",
    ):
        RANGES.amax("other")


@pytest.mark.parametrize(
    ("item", "ends"),
    [
        (Range(4.0, -1.0, 6.0), (-1.0, 4.0)),  # clipped above
        (Range(4.0, -6.0, 0.5), (-4.0, 0.5)),  # clipped below
        (Range(4.0, 1.0, 3.0), (0.0, 3.0)),  # 0 is always in it
        (Range(4.0, -3.0, -1.0), (-3.0, 0.0)),
        (Range(4.0, -9.0, 9.0), (-4.0, 4.0)),
        (Range(0.0, 0.0, 0.0), (-1.0, 1.0)),  # dead
    ],
)
def test_asymmetric_ends_are_the_extremes_clipped_at_the_amax(item: Range, ends: tuple[float, float]) -> None:
    ranges = replace(RANGES, tensors={"x": item}, activations="asymmetric")
    assert ranges.ends("x") == ends
    amax = ranges.amax("x")
    assert replace(ranges, activations="symmetric").ends("x") == (-amax, amax)


# Repairs

REPAIRED = replace(
    RANGES,
    channels={
        "images": Channels((0.5, -1.0), (1.0, 0.25), (0.0, 3.5), 2.0),
        "dead": Channels(mean=(0.0, 1e-9)),
    },
    weight_scales="mse",
    activations="asymmetric",
)


def test_repairs_come_back_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(ranges_to_json(REPAIRED))
    assert read_ranges(tmp_path / "r.json") == REPAIRED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["tensors"]["images"].update(amax=float("nan")),
            "amax must be a finite .*, got nan",
        ),
        (lambda d: d["tensors"]["images"].update(amax=-1.0), "amax must be a finite number .*, got -1.0"),
        (
            lambda d: d["tensors"]["images"].update(min=float("-inf")),
            "max must be finite, got -inf and",
        ),
        (
            lambda d: d["tensors"]["images"].update(max=float("inf")),
            "max must be finite, got .* and inf",
        ),
        (
            lambda d: d["tensors"]["images"].update(min=2.0, max=1.0),
            "min must be at most max, got 2.0",
        ),
        (lambda d: d["tensors"]["images"].update(max=True), "Expected `float`, got `bool`"),
        (lambda d: d["tensors"]["images"].pop("max"), "missing required field `max`"),
        (lambda d: d["beyond_fp16"].update(hot=-1.0), "amax must be a finite number of at least 0, got -1.0"),
        (
            lambda d: d["tensors"]["images"].update(amax=127 * (2.0**128 - 2.0**103)),
            "amax must have a scale that FP32 holds, got",
        ),
        (lambda d: d["channels"]["images"].update(scale=[1.0, 0.0]), "scales of channels must be positive"),
        (lambda d: d["channels"]["images"].update(scale=[-1.0, 1.0]), "scales of channels must be positive"),
        (lambda d: d["channels"]["images"].update(shift=[1.0]), "as many as the shifts"),
        (lambda d: d["channels"]["images"].update(scale=[]), "as many as the shifts"),
        (lambda d: d["channels"]["images"].update(mean=[1.0]), "as many as the means"),
        (lambda d: d["channels"]["images"].update(mean=[1.0, float("inf")]), "means and shifts .* finite"),
        (lambda d: d["channels"]["images"].update(amax=-1.0), "amax must be a finite number .*, got -1.0"),
        (lambda d: d.update(weight_scales="min"), "Invalid enum value 'min' - at `[$].weight_scales`"),
        (lambda d: d.update(activations="any"), "Invalid enum value 'any' - at `[$].activations`"),
    ],
)
def test_numbers_that_make_no_sense_are_told(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = json.loads(ranges_to_json(REPAIRED))
    change(document)
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=f"is not a complete ranges file: .*{message}"):
        read_ranges(tmp_path / "r.json")


def test_a_range_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="amax must be a finite number of at least 0, got inf"):
        ranges_to_json(Ranges({"x": Range(float("inf"), 0, 0)}, "minmax()", "", "", 1))
