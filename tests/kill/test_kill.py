"""A command that is killed at any moment: what was there stays whole, and the same command then succeeds.

In `make test` a few kills; `make kill` does 60, at new moments each time. Killed is the process alone, as by
the kernel when memory runs out: what it started must end by itself.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

import trtq
from trtq.pipeline.deliver.integrity import read_intact_manifest

_COUNT = int(os.environ.get("TRTQ_KILL", "0"))
_SECONDS = 120
"""What a command may take, and what its children may outlive it."""
_BUILDS = """
[defaults]
backend = "onnxruntime"
eval-samples = 16
calib-samples = {samples}
[[build]]
model = "model.onnx"
output = "first.trtq"
[[build]]
model = "model.onnx"
output = "second.trtq"
skip = ["conv"]
"""


@dataclass(frozen=True, slots=True)
class Work:
    """A command that is killed.

    Attributes:
        arguments: Of `trtq` in a folder, for an odd and for an even run: what is there is never up to date.
        made: What it writes there.
        check: Refuses what is not whole; it is called for what is there.
    """

    arguments: Callable[[Path, int], Sequence[str | Path]]
    made: Sequence[str]
    check: Callable[[Path], object]


def _build(folder: Path, turn: int) -> Sequence[str | Path]:
    return (
        "build",
        folder / "model.onnx",
        "--int8",
        "--calib-samples",
        str(64 + 8 * turn),
        "-o",
        folder / "b.trtq",
    )


def _calibrate(folder: Path, turn: int) -> Sequence[str | Path]:
    options = (
        "--calib-samples",
        str(64 + 8 * turn),
        "--checkpoint",
        folder / "c.npz",
        "--checkpoint-seconds",
        "0",
    )
    return ("calibrate", folder / "model.onnx", *options, "--output", folder / "r.json")


def _quantize(folder: Path, turn: int) -> Sequence[str | Path]:
    options = ("--high-precision", ("fp16", "fp32")[turn])
    return (
        "quantize",
        folder / "model.onnx",
        "--ranges",
        folder / "ranges.json",
        *options,
        "-o",
        folder / "q.onnx",
    )


def _package(folder: Path, turn: int) -> Sequence[str | Path]:
    return ("package", folder / f"{turn}.trtq", "--triton", folder / "repository", "--name", "net")


def _build_all(folder: Path, turn: int) -> Sequence[str | Path]:
    (folder / "trtq.toml").write_text(_BUILDS.format(samples=16 + 8 * turn))
    return ("build-all", folder / "trtq.toml", "--jobs", "2")


def _sign(folder: Path, turn: int) -> Sequence[str | Path]:
    return ("sign", folder / "0.trtq", "--key", folder / ("private", "other-private")[turn])


def _check_repository(repository: Path) -> None:
    """Refuses versions without their model, and those that come after a gap."""
    assert (repository / "net" / "config.pbtxt").is_file()
    versions = sorted(int(path.name) for path in (repository / "net").iterdir() if path.name.isdecimal())
    assert versions == [*range(1, len(versions) + 1)]
    for version in versions:
        onnx.load(repository / "net" / str(version) / "model.onnx")
    assert not [path for path in repository.iterdir() if path.name != "net"]


WORKS = {
    "build": Work(_build, ("b.trtq",), read_intact_manifest),
    "calibrate": Work(_calibrate, ("r.json",), trtq.read_ranges),
    "quantize": Work(_quantize, ("q.onnx",), onnx.load),
    "package": Work(_package, ("repository",), _check_repository),
    "build-all": Work(_build_all, ("first.trtq", "second.trtq"), read_intact_manifest),
    "sign": Work(_sign, ("0.trtq",), trtq.verify),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, quick_demo: Path, keys: Callable[[str], Path]) -> Path:
    """A model with settings, data, ranges, keys and two builds."""
    home = shutil.copytree(quick_demo, tmp_path_factory.mktemp("kill") / "home")
    for turn in (0, 1):
        spec = trtq.read_spec(home / "model.toml")
        target = trtq.Target(backend="onnxruntime", high_precision=("fp16", "fp32")[turn])
        trtq.build(home / "model.onnx", spec=spec, target=target, output=home / f"{turn}.trtq")
    shutil.copy(home / "0.trtq" / "ranges.json", home)
    for name in ("private", "other-private"):
        shutil.copy(keys(name), home)
    trtq.sign(home / "0.trtq", home / "private")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS if _COUNT else ["calibrate", "quantize", "package"])
def test_a_killed_command_loses_nothing_and_succeeds_again(
    name: str, home: Path, tmp_path: Path, torchless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, folder, scratch = WORKS[name], tmp_path / "home", tmp_path / "scratch"
    shutil.copytree(home, folder)
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setenv("PYTHONPATH", torchless)
    monkeypatch.setenv("COLUMNS", "200")
    seed = random.randrange(1 << 30) if _COUNT else 1
    moments = random.Random(seed)
    began = time.monotonic()
    _run(work.arguments(folder, 0))
    seconds = time.monotonic() - began
    expected = _list_names(folder)
    for number in range(1, 1 + (_COUNT // len(WORKS) or 1)):
        arguments, moment = work.arguments(folder, number % 2), seconds * moments.uniform(0.3, 1.05)
        where = f"seed {seed}, kill {number} after {moment:.2f} s"
        _kill(arguments, moment)
        for made in work.made:  # the one before, or the new one
            assert (folder / made).exists(), where
            work.check(folder / made)
        _run(arguments)
        for made in work.made:
            work.check(folder / made)
        assert _list_names(folder) == expected, where
        assert list(scratch.iterdir()) == [], where


def _list_names(folder: Path) -> list[str]:
    """Returns what lies in a folder; of a repository, which gets versions, only the top."""
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    return sorted(str(path) for path in paths if len(path.parts) < 3)


def _run(arguments: Sequence[str | Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trtq", *map(str, arguments)], capture_output=True, text=True, timeout=_SECONDS
    )
    assert done.returncode == 0, done.stderr


def _kill(arguments: Sequence[str | Path], seconds: float) -> None:
    """Runs a command and kills it after so long, if it runs as long, and waits for its children."""
    command = [sys.executable, "-m", "trtq", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
    deadline = time.monotonic() + _SECONDS
    while family := _list_family():
        assert time.monotonic() < deadline, f"its children {family} live on"
        time.sleep(0.05)


def _list_family() -> list[str]:
    """Returns the processes, other than this one, that have our folder for temporary files."""
    mark = f"TMPDIR={os.environ['TMPDIR']}".encode()
    entries = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    return [
        entry.name for entry in entries if entry.name != str(os.getpid()) and _has(entry / "environ", mark)
    ]


def _has(path: Path, mark: bytes) -> bool:
    try:
        return mark in path.read_bytes().split(b"\0")
    except OSError:  # it ended, or is another user's
        return False
