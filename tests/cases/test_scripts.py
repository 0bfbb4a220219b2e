"""Scripts of the user's: what they do to their surroundings is their own, and no answer of trtq's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq
from trtq.calibrators import batches as stream
from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.script import load_function
from trtq.models.signature import TensorSpec

X = [TensorSpec("x", "float32", ("N", 2))]


def script(path: Path, text: str) -> Batches:
    path.write_text("import os\nimport numpy as np\n" + text)
    return open_batches(f"{path}:feeds", X, 8)


def test_the_folder_and_environment_of_a_script_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "ours")
    monkeypatch.setenv("GONE", "ours")
    monkeypatch.delenv("NEW", raising=False)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "again").mkdir()
    data = script(
        tmp_path / "calib.py",
        "os.chdir('there')\nos.environ['GIVEN'] = 'theirs'\nos.environ['NEW'] = '1'\ndel os.environ['GONE']\n"
        "def feeds():\n    for i in range(3):\n"
        "        assert os.environ['GIVEN'] == 'theirs' and os.environ['NEW'] and 'GONE' not in os.environ\n"
        "        assert os.path.basename(os.getcwd()) == ('again' if i else 'there'), os.getcwd()\n"
        "        if not i:\n            os.chdir('again')\n"
        "        yield {'x': np.ones((1, 2), 'f')}\n",
    )
    for feed in data:
        assert feed.num_samples == 1
        assert Path.cwd() == tmp_path
        assert (os.environ["GIVEN"], os.environ["GONE"], os.environ.get("NEW")) == ("ours", "ours", None)


def test_a_script_that_removes_its_folder_leaves_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "def feeds():\n    os.mkdir('d')\n    os.chdir('d')\n    os.rmdir('../d')\n"
        "    yield {'x': np.ones((1, 2), 'f')}\n    yield {'x': np.ones((1, 2), 'f')}\n"
    )
    assert [feed.num_samples for feed in script(tmp_path / "calib.py", text)] == [1, 1]
    assert Path.cwd() == tmp_path


def test_a_script_that_is_left_early_goes_back_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    text = (
        "def feeds():\n    os.chdir('there')\n    try:\n        while True:\n"
        "            yield {'x': np.ones((1, 2), 'f')}\n    finally:\n        open('done', 'w').close()\n"
        "        os.chdir('/')\n"
    )
    assert len(list(script(tmp_path / "calib.py", text).first(3))) == 3
    assert (tmp_path / "there" / "done").exists()
    assert Path.cwd() == tmp_path


def test_a_script_that_changes_folder_does_not_move_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_model: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    small_model(tmp_path)
    (tmp_path / "feeds.py").write_text(
        "import os\nimport numpy as np\nos.chdir('/')\ndef feeds():\n    os.chdir('/')\n"
        "    for i in range(4):\n"
        "        yield {'x': np.random.default_rng(i).standard_normal((8, 4)).astype('f')}\n"
    )
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data="feeds.py:feeds", method="minmax"))
    report = trtq.build("m.onnx", spec=spec, target=trtq.Target(backend="onnxruntime"))
    assert report.verdict == "pass"
    assert (tmp_path / "m.trtq" / "report.json").is_file()


def test_a_script_imports_by_relative_names(tmp_path: Path) -> None:
    package = tmp_path / "tools" / "calib"
    package.mkdir(parents=True)
    (tmp_path / "tools" / "__init__.py").write_text("raise RuntimeError('it is not asked for')\n")
    (package / "__init__.py").touch()
    (package / "sizes.py").write_text("from ..scale import SCALE\nSIZE = 3\n")
    (tmp_path / "tools" / "scale.py").write_text("SCALE = 7\n")
    data = script(
        package / "feeds.py",
        "from . import sizes\nfrom .sizes import SIZE\nfrom ..scale import SCALE\n"
        "def feeds():\n    from .sizes import SCALE as late\n"
        "    yield {'x': np.full((SIZE, 2), late, 'f')}\n",
    )
    assert [feed.arrays["x"].tolist() for feed in data] == [[[7, 7]] * 3]


def test_two_scripts_of_one_name_are_two(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "value.py").write_text(f"VALUE = {name!r}\n")
        (tmp_path / name / "own.py").write_text("from .value import VALUE\ndef f():\n    return VALUE\n")
        found.append(load_function(tmp_path / name / "own.py", "f"))
    assert [call() for call in found] == ["a", "b"]


def test_a_generator_without_an_end_is_refused_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MOST_FEEDS", 5)
    text = "def feeds():\n    while True:\n        yield {'x': np.ones((2, 2), 'f')}\n"
    data = script(tmp_path / "calib.py", text)
    assert sum(feed.num_samples for feed in data.first(20)) == 20
    with pytest.raises(
        DataError, match=r"calib.py:feeds has yielded 5 feeds and may never end; .*--calib-samples"
    ):
        list(data.first(None))


def test_a_feed_counts_as_it_was_yielded(tmp_path: Path) -> None:
    text = (
        "def feeds():\n    x = np.ones((1, 2), 'f')\n    yield {'x': x}\n    x[...] = 9\n    yield {'x': x}\n"
    )
    first, second = script(tmp_path / "calib.py", text)
    assert np.array_equal(first.arrays["x"], [[1, 1]])
    assert np.array_equal(second.arrays["x"], [[9, 9]])
