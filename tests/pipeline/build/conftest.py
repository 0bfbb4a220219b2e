"""The demo and its build, to be looked at: nobody writes there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spoiled import POISONED, weights

from trtq.pipeline.deliver.report import Report, read_report


@pytest.fixture(scope="module")
def demo(demo_build: tuple[Path, Any]) -> Path:
    return demo_build[0]


@pytest.fixture(scope="module")
def built(demo: Path) -> Report:
    return read_report(demo / "model.trtq" / "report.json")


@pytest.fixture
def random_model(path_of: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a model with random weights of these shapes, by name, and samples of `x` beside it in x.npz."""

    def write(text: str, data: Sequence[int], **shapes: Sequence[int]) -> Path:
        rng = np.random.default_rng(0)
        weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        path = path_of(text, **weights)
        np.savez(path.parent / "x.npz", x=rng.standard_normal(data).astype(np.float32))
        return path

    return write


@pytest.fixture
def poisoned(path_of: Callable[..., Path]) -> Path:
    return path_of(POISONED, **weights(spread=300.0))
