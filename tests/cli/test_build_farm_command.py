"""`trtq build-all` for several kinds of machines, as a user runs it; the cluster is in tests/cluster."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result
from command_line import lines_of, trtq

FARM = """
[defaults]
backend = "onnxruntime"
calib-samples = 16
eval-samples = 16

[[build]]
name = "detector"
model = "model.onnx"
on = ["small", "large"]
"""
Keys = Callable[[str], Path]


@pytest.fixture(scope="module")
def farm(
    quick_demo: Path, torchless: str, tmp_path_factory: pytest.TempPathFactory, keys: Keys
) -> tuple[Path, Result]:
    """One model for two kinds of machines, both of which this one is said to be; nobody writes there."""
    folder = shutil.copytree(quick_demo, tmp_path_factory.mktemp("farm") / "files")
    (folder / "farm.toml").write_text(FARM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", torchless)
        kinds, key = ("--on", "small", "--on", "large"), ("--sign-key", keys("private"))
        result = trtq("build-all", folder / "farm.toml", *kinds, *key, "--jobs", "3")
    assert result.exit_code == 0, result.stderr
    return folder, result


def test_every_kind_gets_the_same_model_by_ranges_that_were_made_once(farm: tuple[Path, Result]) -> None:
    folder, result = farm
    files = [(folder / f"model.{kind}.trtq" / "model.int8.onnx").read_bytes() for kind in ("small", "large")]
    assert files[0] == files[1]
    notes = result.stderr.splitlines()
    assert "note: the calibration of detector has begun" in notes
    assert notes.index("note: detector on large has begun") > notes.index(
        "note: the calibration of detector has begun"
    )
    reports = [
        json.loads((folder / f"model.{kind}.trtq" / "report.json").read_bytes()) for kind in ("small",)
    ]
    assert reports[0]["calibration"]["samples"] == 16
    assert "calibrate" not in reports[0]["timings_s"]


def test_the_table_and_the_summary_have_a_line_for_each_kind(farm: tuple[Path, Result]) -> None:
    folder, result = farm
    lines = lines_of(result.stdout)
    assert lines[0].startswith("build on precision backend")
    assert [line.split()[:3] for line in lines[1:3]] == [
        ["detector", "small", "PASS"], ["detector", "large", "PASS"],
    ]  # fmt: skip
    builds = json.loads((folder / "summary.json").read_bytes())["builds"]
    assert [item["kind"] for item in builds] == ["small", "large"]


def test_the_index_is_verified_shown_and_run(farm: tuple[Path, Result], keys: Keys) -> None:
    folder, index = farm[0], farm[0] / "index.json"
    checked = trtq("verify", index, "--key", keys("public"))
    assert (checked.exit_code, checked.stdout.count("as built")) == (0, 2)
    assert checked.stdout.endswith(f"{index}  signed by the owner of the key\n")
    document = json.loads(trtq("verify", index, "--json").stdout)
    assert (document["intact"], document["signature"]) == (True, "unchecked")
    shown = lines_of(trtq("inspect", index).stdout)
    assert shown[0] == "2 engines of 1 build"
    assert shown[2].startswith("detector small PASS onnxruntime ")
    data = ("--data", folder / "evaluation.npz", "--samples", 8)
    ran = trtq("run", index, *data, "--name", "detector", "--key", keys("public"), "--json")
    assert json.loads(ran.stdout)["folder"] == str(folder / "model.small.trtq")
    unknown = trtq("run", index, *data, "--name", "other")
    assert (unknown.exit_code, "has no build 'other'; it has: detector" in unknown.stderr) == (2, True)


def test_a_folder_of_the_index_that_has_changed_is_told(farm: tuple[Path, Result], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(farm[0], tmp_path / "copy"))
    (folder / "model.large.trtq" / "ranges.json").write_text("{}")
    shutil.rmtree(folder / "model.small.trtq")
    result = trtq("verify", folder / "index.json")
    assert result.exit_code == 2
    assert f"{folder / 'model.large.trtq'}  NOT AS BUILT" in result.stdout
    assert "model.small.trtq  NOT AS BUILT" in result.stdout
    assert "model.large.trtq: changed: ranges.json" in result.stderr


def test_one_kind_is_built_alone_and_the_others_stay_in_the_index(
    farm: tuple[Path, Result], tmp_path: Path, torchless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", torchless)
    folder = Path(shutil.copytree(farm[0], tmp_path / "copy"))
    result = trtq("build-all", folder / "farm.toml", "--on", "small")
    assert result.exit_code == 0, result.stderr
    assert "note: detector on large is skipped: --on names other kinds of machines" in result.stderr
    index = json.loads((folder / "index.json").read_bytes())
    assert [item["kind"] for item in index["engines"]] == ["small", "large"]
    assert not (folder / "index.sig").exists()  # which was of another index


def test_a_kind_that_fails_to_calibrate_fails_on_every_kind(
    farm: tuple[Path, Result], tmp_path: Path, torchless: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", torchless)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    (tmp_path / "farm.toml").write_text('[[build]]\nmodel = "broken.onnx"\non = ["a", "b"]\n')
    files = ("--summary", tmp_path / "ci.md", "--junit", tmp_path / "ci.xml")
    result = trtq("build-all", tmp_path / "farm.toml", "--on", "a", "--on", "b", "-q", *files)
    assert result.exit_code == 2
    told = [line.partition(": bad input")[0] for line in result.stderr.splitlines()]
    assert told[-2:] == ["broken on a", "broken on b"]
    assert json.loads((tmp_path / "index.json").read_bytes())["engines"] == []
    lines = (tmp_path / "ci.md").read_text().splitlines()
    assert lines[2].startswith("| build | on |  | precision |")
    assert [line[:27] for line in lines[4:6]] == [
        "| broken | a | BAD INPUT | ",
        "| broken | b | BAD INPUT | ",
    ]
    cases = ElementTree.parse(tmp_path / "ci.xml").iter("testcase")
    assert [case.attrib["name"] for case in cases] == ["broken on a", "broken on b"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ("--workers", "ray", "--jobs", "2"),
            "--jobs is for the processes of this machine; a cluster",
        ),
        (("--workers", "ray", "--memory", "2G"), "--memory is for the processes of this machine; a cluster"),
        (("--workers", "threads"), "--workers threads builds nothing; use processes (and --jobs N), ray or"),
        (("--autoscaling",), "--autoscaling is for a cluster; add --workers ray, or leave it out"),
        (
            (),
            "detector is for machines of the kind small, and this machine is not known to be one; build on a",
        ),
        (
            ("--on", "small", "--index", "FOREIGN"),
            "foreign.json is not an index of trtq; choose another",
        ),
        (("--on", "small", "--index", "x.txt"), "--index x.txt must end in .json, by which trtq.load knows"),
        (("--on", "small", "--index", "SAME", "--output", "SAME"), "is given as --output and as --index"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(
    words: tuple[str, ...], reason: str, farm: tuple[Path, Result], tmp_path: Path
) -> None:
    (tmp_path / "foreign.json").write_text("{}")
    paths = {"FOREIGN": tmp_path / "foreign.json", "SAME": tmp_path / "same.json"}
    result = trtq("build-all", farm[0] / "farm.toml", *(paths.get(word, word) for word in words))
    assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
    assert "has begun" not in result.stderr
