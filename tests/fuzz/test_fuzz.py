"""Files that are damaged, or hold what nobody means: they are taken or refused in one line, never a fault.

In `make test` a few dozen inputs a surface, always the same; `make fuzz` draws new ones, 10,000 a surface.
The files that were read before a fault lie in .fuzz, or in the folder of the test.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from isolated import Reader
from seeds import write_home
from surfaces import list_surfaces

_COUNT = int(os.environ.get("TRTQ_FUZZ", "0"))
_FEW = 15
_FAULTS = Path(__file__).parents[2] / ".fuzz"
SURFACES = (
    "model", "built model", "external data", "npz", "npy", "labels", "feeds", "images", "tar", "parquet",
    "dataset", "video", "polygraphy", "settings", "builds", "ranges", "statistics", "cache", "keys", "index",
    "folder", "sensitivity", "pbtxt", "scripts", "checkpoint", "program", "bench-1.json", "manifest-1.json",
    "migration-1.json", "report-1.json", "sensitivity-1.json", "tensors-1.json",
)  # fmt: skip


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The valid files."""
    home = tmp_path_factory.mktemp("fuzz") / "home"
    write_home(home)
    return home


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """The process that reads."""
    reader = Reader(tmp_path_factory.mktemp("reader") / "log")
    yield reader
    reader.close()


@pytest.mark.slow
def test_all_surfaces_are_tried(home: Path) -> None:
    assert tuple(list_surfaces(home)) == SURFACES


@pytest.mark.slow
@pytest.mark.property
@pytest.mark.parametrize("name", SURFACES)
def test_what_is_broken_is_refused_in_one_line(
    name: str, home: Path, reader: Reader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    surface, folder = list_surfaces(home)[name], tmp_path / "home"
    shutil.copytree(home, folder)
    assert reader.read(surface.calls, folder).kind == "taken"
    kept = (_FAULTS if _COUNT else tmp_path / "faults") / name
    counts, faults = Counter[str](), dict[str, str]()

    @settings(
        max_examples=_COUNT or _FEW,
        derandomize=not _COUNT,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(surface.files)
    def read(files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            (folder / path).write_bytes(content)
        answer = reader.read(surface.calls, folder)
        counts[answer.kind] += 1
        if answer.kind == "fault" and answer.place not in faults:
            faults[answer.place] = answer.words
            for path, content in files.items():
                target = kept / str(len(faults)) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            (kept / str(len(faults)) / "words").write_text(
                f"{answer.place}\n{answer.words}", errors="replace"
            )
        for path in files:
            (folder / path).unlink()
            if (home / path).exists():
                shutil.copy(home / path, folder / path)

    read()
    with capsys.disabled():
        if _COUNT:
            print(f"{name}: {dict(counts)}, faults of {len(faults)} kinds", flush=True)
    assert not faults, f"{kept}: {faults}"
