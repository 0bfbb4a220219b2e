"""`trtq report`: where the page goes, and what is refused."""

from __future__ import annotations

import csv
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


def test_a_folder_is_known_from_within(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert trtq("report", ".").stdout == f"written to {folder.parent / 'model.trtq.html'}\n"
    for command in ("init . --force", "quantize . --weights int8", "migrate . calibration.cache"):
        result = trtq(*command.split())
        assert (result.exit_code, result.stderr) == (2, "error: . is a folder; give the .onnx file in it\n")


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
    assert "when only this layer is quantized, on 8 samples" in (tmp_path / "r.html").read_text()


def test_a_folder_keeps_what_its_manifest_knows(folder: Path) -> None:
    result = trtq("report", folder, "-o", folder / "report.html")
    assert result.exit_code == 2
    assert "model.trtq, which is read by this command; choose another file with --output" in result.stderr


def test_what_is_no_build_is_told(tmp_path: Path) -> None:
    result = trtq("report", tmp_path / "no")
    assert result.exit_code == 2
    assert f"{tmp_path / 'no'} is not a build folder" in result.stderr


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


def test_layers_are_a_table_for_other_programs(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "layers.csv"
    assert trtq("report", folder, "-o", tmp_path / "r.html", "--csv", table, "-q").exit_code == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [*rows[0]] == ["layer", "type", "runs_as", "input_db", "weight_db", "tensor", "amax", "reason"]
    stem = next(row for row in rows if row["layer"] == "stem.conv/Conv")
    assert (stem["type"], stem["runs_as"], stem["tensor"], stem["reason"]) == ("Conv", "INT8", "image", "")
    levels = [float(row["input_db"]) for row in rows if row["input_db"]]
    assert len(levels) == 11
    assert float(stem["weight_db"]) > 20
    result = trtq("report", folder, "--csv", folder / "layers.csv")
    assert "which is read by this command; choose another file with --csv" in result.stderr


def test_two_builds_stand_side_by_side(folder: Path, tmp_path: Path) -> None:
    files = ("-o", tmp_path / "both.html", "--summary", tmp_path / "s.md")
    result = trtq("report", folder, folder, *files)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "verdict pass pass" in lines
    assert lines[-1] == f"written to {tmp_path / 'both.html'}"
    assert "Side by side" in (tmp_path / "both.html").read_text()
    assert (tmp_path / "s.md").read_text().startswith("### PASS: ")
    for arguments, told in (
        ((folder, folder, "--csv", tmp_path / "x.csv"), "--sensitivity and --csv are of one build; give one"),
        (
            (folder, "--summary", tmp_path / "s.md"),
            "--summary shows two builds side by side; give two folders",
        ),
        ((folder, tmp_path), "is not a build folder"),
    ):
        result = trtq("report", *arguments)
        assert (result.exit_code, told in result.stderr) == (2, True)
