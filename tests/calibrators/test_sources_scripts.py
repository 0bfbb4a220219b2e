"""Tests of calibration data that a script of the user yields."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import join, sizes_of

from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.signature import TensorSpec

OPEN = [TensorSpec("x", "float32", ("N", 2))]


def _script(path: Path, text: str) -> str:
    path.write_text("import numpy as np\n" + text)
    return f"{path}:feeds"


def test_a_script_yields_feeds(tmp_path: Path) -> None:
    source = _script(
        tmp_path / "calib.py",
        "def feeds():\n    for size in (3, 1):\n        yield {'x': np.ones((size, 2), np.float32)}\n",
    )
    batches = open_batches(source, OPEN, 8)
    for _ in range(2):
        assert [(feed.source, feed.num_samples) for feed in batches] == [
            (f"{source}, item 0", 3),
            (f"{source}, item 1", 1),
        ]
    assert (batches.origin, batches.num_samples, batches.digest) == (source, None, None)


def test_a_script_may_yield_one_array_again_and_again(tmp_path: Path) -> None:
    source = _script(
        tmp_path / "calib.py",
        "def feeds():\n    x = np.zeros((1, 2), np.float32)\n    for _ in range(3):\n        x += 1\n"
        "        yield {'x': x}\n",
    )
    assert join(open_batches(source, OPEN, 8))[:, 0].tolist() == [1, 2, 3]


def test_a_script_may_return_a_list_of_lists(tmp_path: Path) -> None:
    source = _script(tmp_path / "calib.py", "feeds = lambda: [{'n': [[1, 2]]}]\n")
    assert join(open_batches(source, [TensorSpec("n", "int64", ("N", 2))], 8), "n").tolist() == [[1, 2]]


def test_a_script_imports_what_lies_beside_it_early_and_late(tmp_path: Path) -> None:
    (tmp_path / "early_neighbour.py").write_text("SIZE = 3\n")
    (tmp_path / "late_neighbour.py").write_text("VALUE = 5\n")
    source = _script(
        tmp_path / "calib.py",
        "from early_neighbour import SIZE\n"
        "def feeds():\n"
        "    from late_neighbour import VALUE\n"
        "    yield {'x': np.full((SIZE, 2), VALUE, np.float32)}\n",
    )
    before = list(sys.path)
    assert (join(open_batches(source, OPEN, 8)) == 5).all()
    assert sys.path == before


def test_a_script_may_tidy_up_the_path_itself(tmp_path: Path) -> None:
    source = _script(
        tmp_path / "calib.py",
        "import sys\ndel sys.path[0]\n"
        "def feeds():\n    del sys.path[0]\n    yield {'x': np.ones((1, 2), np.float32)}\n",
    )
    before = list(sys.path)
    assert sizes_of(open_batches(source, OPEN, 8)) == [1]
    assert sys.path == before


def test_a_script_may_have_dataclasses_and_the_name_of_a_library(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text(
        "from __future__ import annotations\nimport dataclasses, math\n"
        "@dataclasses.dataclass\nclass Item:\n    value: float\n"
        "def feeds():\n    yield {'x': [[Item(1.0).value, math.e]]}\n"
    )
    batches = open_batches(f"{tmp_path / 'numpy.py'}:feeds", [TensorSpec("x", "float64", ("N", 2))], 8)
    assert join(batches).shape == (1, 2)
    assert sys.modules["numpy"] is np


def test_a_script_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^there is no script .*gone.py$"):
        open_batches(f"{tmp_path / 'gone.py'}:feeds", OPEN, 8)


@pytest.mark.parametrize("text", ["", "feeds = 3\n"])
def test_a_function_that_is_not_there_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"calib.py has no function 'feeds'$"):
        open_batches(_script(tmp_path / "calib.py", text), OPEN, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def feeds(:\n", "SyntaxError: "),
        ("import absent_library\n", "ModuleNotFoundError: No module named 'absent_library'"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    ],
)
def test_a_script_that_cannot_be_run_is_told_in_its_own_words(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=rf"calib.py cannot be run: {message}"):
        open_batches(_script(tmp_path / "calib.py", text), OPEN, 8)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('cat')", "KeyError: 'cat'"),
        ("return None", "TypeError: 'NoneType' object is not iterable"),
        ("yield {'x': [[1], [1, 2]]}", "ValueError: .*inhomogeneous"),
        ("raise SystemExit('enough')", "SystemExit: enough"),
    ],
)
def test_a_function_that_fails_is_told_in_its_own_words(tmp_path: Path, body: str, message: str) -> None:
    source = _script(tmp_path / "calib.py", f"def feeds():\n    {body}\n")
    with pytest.raises(DataError, match=rf"calib.py:feeds(, item 0)? failed: {message}"):
        list(open_batches(source, OPEN, 8))


def test_items_that_are_no_dicts_are_told(tmp_path: Path) -> None:
    source = _script(
        tmp_path / "calib.py", "def feeds():\n    yield {'x': X}\n    yield X\nX = np.ones((1, 2), 'f4')\n"
    )
    stream = iter(open_batches(source, OPEN, 8))
    next(stream)
    with pytest.raises(DataError, match=r"calib.py:feeds must yield dicts of arrays, item 1 is ndarray$"):
        next(stream)


def test_names_that_are_no_texts_are_told(tmp_path: Path) -> None:
    source = _script(tmp_path / "calib.py", "def feeds():\n    yield {0: [[1.0]]}\n")
    with pytest.raises(DataError, match=r"feeds, item 0: arrays have the names of inputs, got \[0\]$"):
        list(open_batches(source, OPEN, 8))


def test_a_script_that_yields_nothing_is_told(tmp_path: Path) -> None:
    source = _script(tmp_path / "calib.py", "def feeds():\n    return []\n")
    with pytest.raises(
        DataError, match=r"calib.py:feeds yields no samples; give at least one, and from a script a"
    ):
        list(open_batches(source, OPEN, 8))


def test_a_script_that_returns_one_iterator_is_told(tmp_path: Path) -> None:
    source = _script(
        tmp_path / "calib.py",
        "made = iter([{'x': np.ones((1, 2), np.float32)}] * 3)\ndef feeds():\n    return made\n",
    )
    batches = open_batches(source, OPEN, 8)
    next(iter(batches))
    with pytest.raises(
        DataError, match=r"calib\.py:feeds returns the iterator of an earlier pass again; return"
    ):
        list(batches)
