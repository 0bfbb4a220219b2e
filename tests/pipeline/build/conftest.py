"""The demo and its build, to be looked at: nobody writes there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trtq.pipeline.deliver.report import Report, read_report


@pytest.fixture(scope="module")
def demo(demo_build: tuple[Path, Any]) -> Path:
    return demo_build[0]


@pytest.fixture(scope="module")
def built(demo: Path) -> Report:
    return read_report(demo / "model.trtq" / "report.json")
