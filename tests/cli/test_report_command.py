"""`trtq report`: where the page goes, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import Result
from command_line import trtq

FEW = ("--calib-samples", "16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_build: tuple[Path, Result]) -> Path:
    """A copy of the demo's build, the demo beside it."""
    return shutil.copytree(demo_build[0], tmp_path_factory.mktemp("report") / "demo") / "model.trtq"


def test_the_page_is_written_beside_the_folder(folder: Path) -> None:
    result = trtq("report", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"written to {folder.parent / 'model.trtq.html'}\n"
    assert (folder.parent / "model.trtq.html").read_bytes() == (folder / "report.html").read_bytes()


def test_it_goes_where_it_is_told_to(folder: Path, tmp_path: Path) -> None:
    result = trtq("report", folder, "-o", tmp_path / "r.html", "-q")
    assert (result.exit_code, result.stdout) == (0, "")
    assert (tmp_path / "r.html").stat().st_size > 10_000


@pytest.mark.slow
def test_it_shows_what_was_measured(folder: Path, tmp_path: Path) -> None:
    found = tmp_path / "s.json"
    assert (
        trtq(
            "sensitivity", folder.parent / "model.onnx", "--eval-samples", "8", *FEW, "-q", "-o", found
        ).exit_code
        == 0
    )
    assert trtq("report", folder, "--sensitivity", found, "-o", tmp_path / "r.html").exit_code == 0
    assert "with this layer alone in its format, on 8 samples" in (tmp_path / "r.html").read_text()


def test_a_folder_keeps_what_its_manifest_knows(folder: Path) -> None:
    result = trtq("report", folder, "-o", folder / "report.html")
    assert result.exit_code == 2
    assert "model.trtq, which is read by this command; choose another file with --output" in result.stderr


def test_what_is_no_build_is_told(tmp_path: Path) -> None:
    result = trtq("report", tmp_path / "no")
    assert result.exit_code == 2
    assert f"{tmp_path / 'no'} is no build folder" in result.stderr


def test_layers_are_listed_with_v_and_by_inspect(folder: Path) -> None:
    shown = trtq("inspect", folder).stdout
    (row,) = (line.split() for line in shown.splitlines() if line.strip().startswith("stem.conv/Conv  "))
    header = next(line.split() for line in shown.splitlines() if "weight dB" in line)
    assert header[-5:] == ["minmax", "percentile", "entropy", "mse", "cosine"]
    assert row[1] == "Conv"
    assert float(row[-1]) > 0
    assert "SQNR of what the layer reads, predicted" in shown
    for text in ("sizes  model.onnx ", "times  calibrate "):
        assert text in shown
