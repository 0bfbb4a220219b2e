"""A good model and good data in the current folder, and what a refused build leaves there: nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import command_line
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import Result

_SMALL = """
    <ir_version: 9, opset_import: ["" : 19]>
    small (float[N,3,8,8] x) => (float[N,4,8,8] y) {
      [first] h = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
      [act] r = Relu (h)
      [second] y = Conv <kernel_shape = [1,1]> (r, w2)
    }"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a good model and good data."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(_SMALL)
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (4, 8, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, "model.onnx")
    np.savez("data.npz", x=rng.standard_normal((20, 3, 8, 8)).astype(np.float32))
    return tmp_path


@pytest.fixture
def trtq(folder: Path) -> Callable[..., Result]:
    """Runs the command line there."""

    return command_line.trtq


@pytest.fixture
def plain(folder: Path) -> Callable[[str], str]:
    """Returns output without what differs from run to run; the folder is DIR."""
    return lambda text: command_line.plain(text, folder)


@pytest.fixture(scope="session")
def model(quick_demo: Path) -> Path:
    """The model of the demo with settings by which a build searches for nothing; nobody writes beside it."""
    return quick_demo / "model.onnx"


@pytest.fixture
def content(folder: Path) -> Callable[[], dict[str, bytes | None]]:
    """Returns what lies in the folder."""

    def read() -> dict[str, bytes | None]:
        return {
            str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
            for path in folder.rglob("*")
        }

    return read


@pytest.fixture
def check_refused(
    trtq: Callable[..., Result], content: Callable[[], dict[str, bytes | None]]
) -> Callable[[str, str], None]:
    """Checks that a build with such arguments says so in one line, with exit code 2, and leaves nothing."""

    def check(arguments: str, message: str) -> None:
        before = content()
        result = trtq("build", *arguments.split())
        assert result.exit_code == 2
        assert result.stdout == ""
        *notes, error = result.stderr.splitlines()
        assert error.startswith(f"error: {message}")
        assert all(line.startswith(("note: ", "warning: ")) for line in notes)
        assert content() == before

    return check
