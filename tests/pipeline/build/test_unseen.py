"""What is said of inputs whose data shows too little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import trtq

_Run = Callable[..., trtq.Report]


def _draw(seed: int, factor: float = 1.0) -> NDArray[np.float32]:
    return (factor * np.random.default_rng(seed).standard_normal((16, 32))).astype(np.float32)


@pytest.fixture
def run(path_of: Callable[..., Path], tmp_path: Path) -> _Run:
    text = """g (float[N,32] x, float[N,32] h) => (float[N,32] y) {
        [fc] a = MatMul (x, w) [cell] b = MatMul (h, v) y = Add (a, b)
    }"""
    model = path_of(text, w=np.ones((32, 32), np.float32) / 32, v=np.eye(32, dtype=np.float32))

    def build(h: NDArray[Any], evaluation: dict[str, NDArray[Any]] | None = None) -> trtq.Report:
        np.savez(tmp_path / "x.npz", x=_draw(0), h=h)
        options: dict[str, Any] = {}
        if evaluation is not None:
            np.savez(tmp_path / "e.npz", **evaluation)  # type: ignore[arg-type]
            options = {"eval_data": str(tmp_path / "e.npz")}
        return trtq.build(
            model, str(tmp_path / "x.npz"), output=tmp_path / "o", backend="onnxruntime",
            calib_method="minmax", repair=("none",), **options,
        )  # fmt: skip

    return build


def test_an_input_that_is_always_zero_proves_nothing(run: _Run) -> None:
    zeros = np.zeros((16, 32), np.float32)
    assert (report := run(zeros)).verdict == "unverified"
    assert report.reasons[0].startswith("input 'h' is zero in every sample, so its range is a guess and")


def test_evaluation_data_shows_what_a_guessed_range_does(run: _Run) -> None:
    report = run(np.zeros((16, 32), np.float32), {"x": _draw(1), "h": _draw(2, 9)})
    assert report.verdict == "fail"
    assert not any("prepared" in item for item in report.warnings)  # x is alike in both


def test_an_input_that_never_changes_is_told(run: _Run) -> None:
    warnings = run(np.full((16, 32), 0.5, np.float32)).warnings
    assert any(
        item.startswith("input 'h' was 0.5 in every sample, and its range is made") for item in warnings
    )


@pytest.mark.parametrize("factor", [255.0, 1 / 255])
def test_evaluation_data_of_another_scale_is_told(run: _Run, factor: float) -> None:
    warnings = run(_draw(3), {"x": _draw(1, factor), "h": _draw(2)}).warnings
    (told,) = (item for item in warnings if "check that both are prepared as the model was trained" in item)
    assert told.startswith("input 'x' reaches ")
