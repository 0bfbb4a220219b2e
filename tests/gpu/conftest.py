"""The model of the demo, with its data beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.models.demo import write_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder / "model.onnx"
