"""The action of the repository: its steps run in a repository with a base branch, as GitHub runs them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from command_line import trtq

from trtq.cli import main

ROOT = Path(__file__).resolve().parents[2]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


def environment(step: Mapping[str, Any], contexts: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of a step, its expressions filled in."""

    def fill(found: re.Match[str]) -> str:
        return contexts[found[1]]

    given = step.get("env", {}).items()
    return {name: re.sub(r"\$\{\{ ([\w.]+) \}\}", fill, text) for name, text in given}


def run_step(name: str, repository: Path, variables: Mapping[str, str], contexts: Mapping[str, str]) -> None:
    """Runs the script of a step as GitHub does."""
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEPS[name]["run"]]
    own = environment(STEPS[name], contexts)
    subprocess.run(script, cwd=repository, env={**os.environ, **variables, **own}, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a model on the branch main, whose work tree has another."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "model.onnx").write_text("of main")
    for arguments in (
        ("init", "--quiet", "--initial-branch", "main"),
        ("add", "--all"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "Add"),
        ("clone", "--quiet", "--bare", ".", str(tmp_path / "origin.git")),
        ("remote", "add", "origin", str(tmp_path / "origin.git")),
    ):
        subprocess.run(["git", *arguments], cwd=work, check=True)
    (work / "model.onnx").write_text("of the change")
    return work


@pytest.fixture
def recorded(demo_onnxruntime: Path, tmp_path: Path) -> Path:
    """A file to which a `trtq` on the PATH adds its words and the model; its builds are copies of one."""
    program = tmp_path / "bin" / "trtq"
    program.parent.mkdir()
    record = f'printf "%s\\n" "$(cat "$2" 2>/dev/null)" "$#" "$@" >> {tmp_path}/words'
    copy = f'while [ "$1" != --output ]; do shift; done; cp -r {demo_onnxruntime}/model.trtq "$2"'
    program.write_text(f"#!/bin/bash\n{record}\nif [ $1 = build ]; then {copy}; fi\n")
    program.chmod(0o755)
    return tmp_path / "words"


def test_the_steps_build_both_branches_and_put_them_side_by_side(
    repository: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts = {f"inputs.{name}": str(item.get("default", "")) for name, item in ACTION["inputs"].items()}
    contexts |= {"github.base_ref": "main", "inputs.model": "model.onnx"}
    contexts["inputs.options"] = "--int8 --skip '^stem .*'"
    path = os.pathsep.join([str(recorded.with_name("bin")), os.environ["PATH"]])
    common = {"RUNNER_TEMP": str(tmp_path), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "PATH": path}
    for name in ("Build the base branch", "Build the engine and judge it", "Compare it with the base branch"):
        run_step(name, repository, common, contexts)
    models, commands = read_words(recorded)
    assert models[:2] == ["of main", "of the change"]
    base, output, summary = f"{tmp_path}/base.trtq", "engine.trtq", ["--summary", f"{tmp_path}/trtq.md"]
    build = ["build", "model.onnx", "--int8", "--skip", "^stem .*", "--output"]
    junit = ["--junit", f"{tmp_path}/trtq.xml"]
    assert commands == [
        [*build, base], [*build, output, *summary, *junit], ["report", base, output, *summary],
        ["bench", base, output, *summary],
    ]  # fmt: skip
    for name, *words in commands:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, words)
    monkeypatch.chdir(repository)
    assert trtq(*commands[2]).exit_code == 0
    shown = (tmp_path / "trtq.md").read_text()
    assert shown.startswith("### PASS: engine.trtq beside base.trtq\n")
    assert re.search(r"^\| accuracy of int8 \| (\S+%) \| \1 \|  \|$", shown, re.MULTILINE)


def test_a_second_use_in_a_job_begins_anew(repository: Path, recorded: Path, tmp_path: Path) -> None:
    contexts = {f"inputs.{name}": str(item.get("default", "")) for name, item in ACTION["inputs"].items()}
    contexts |= {"github.base_ref": "main", "inputs.model": "model.onnx"}
    path = os.pathsep.join([str(recorded.with_name("bin")), os.environ["PATH"]])
    common = {"RUNNER_TEMP": str(tmp_path), "PATH": path}
    run_step("Build the base branch", repository, common, contexts)
    (tmp_path / "trtq.md").write_text("of the first")
    for model, is_there in (
        ("model.onnx", True),
        ("other.onnx", False),
    ):  # which the base branch does not have
        run_step("Remove what an earlier use in this job left", repository, common, contexts)
        assert not (tmp_path / "trtq.md").exists()
        run_step("Build the base branch", repository, common, {**contexts, "inputs.model": model})
        assert (tmp_path / "base.trtq").is_dir() == is_there


def read_words(path: Path) -> tuple[list[str], list[list[str]]]:
    """Returns what the model held for each command, and its words."""
    lines = iter(path.read_text().splitlines())
    models, commands = [], []
    for model in lines:
        models.append(model)
        commands.append([next(lines) for _ in range(int(next(lines)))])
    return models, commands


@pytest.mark.parametrize("name", STEPS)
def test_the_scripts_of_the_action_are_scripts_and_use_what_is_given(name: str) -> None:
    step = STEPS[name]
    subprocess.run(["bash", "-n", "-c", step["run"]], check=True)
    assert "${{" not in step["run"]  # an expression in a script is code of whoever writes the input
    assert all(
        f"${variable}" in step["run"] or f"${{{variable}}}" in step["run"]
        for variable in step.get("env", {})
        if not variable.startswith("GH_")
    )
    used = re.findall(r"inputs\.(\w+)", str(step))
    assert {*used} <= {*ACTION["inputs"]}
