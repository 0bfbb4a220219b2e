"""What images and CI are made with, as far as it can be judged unbuilt: `make docker-cpu` builds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = ("docker/Dockerfile", "docker/Dockerfile.cpu")


def _tool(name: str) -> str:
    """Returns the path of a linter that the extra `dev` installs where there is a wheel of it."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        pytest.skip(f"{name} is not installed here")
    return str(path)


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_dockerfiles_pass_the_linter(dockerfile: str) -> None:
    _run(_tool("hadolint"), "--no-color", dockerfile)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("github-workflows", ".github/workflows/test.yml"),
        ("github-workflows", ".github/workflows/release.yml"),
        ("github-workflows", "docs/ci/github-actions.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/accuracy.yml"),
        ("github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
        ("github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("dependabot", ".github/dependabot.yml"),
        ("github-actions", "action.yml"),
        ("gitlab-ci", "docs/ci/gitlab-ci.yml"),
        ("compose-spec", "docker/compose.yaml"),
    ],
)
def test_workflows_and_services_fit_their_schemas(schema: str, path: str) -> None:
    _run(_tool("check-jsonschema"), "--builtin-schema", f"vendor.{schema}", path)


def test_actions_are_pinned_by_the_digest_of_a_named_version() -> None:
    workflows = [*(ROOT / ".github" / "workflows").iterdir(), ROOT / "docs" / "ci" / "github-actions.yml"]
    uses = re.findall(r"uses: *(.*)", "".join(path.read_text(encoding="utf-8") for path in workflows))
    assert len(uses) > 5
    foreign = [use for use in uses if use != "./.trtq"]  # this repository, at the tag that was checked out
    assert [use for use in foreign if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+", use)] == []


def test_the_lowest_dependencies_are_the_bounds_of_the_project() -> None:
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("images", "data", "video")]
    bounds = [*project["dependencies"], *chain.from_iterable(extras)]
    named = dict(re.sub(r"\[\w+\]", "", bound).split(";")[0].split(">=") for bound in bounds)
    assert {name: _numbers(version) for name, version in lowest.items()} == {
        name: _numbers(version) for name, version in named.items()
    }


def _numbers(version: str) -> list[int]:
    """Returns the numbers of a version, without zeros at its end: 10.0 is 10.0.0."""
    return [int(part) for part in re.sub(r"(\.0)+$", "", version).split(".")]


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_images_run_trtq_as_a_user_without_rights(dockerfile: str) -> None:
    lines = (ROOT / dockerfile).read_text(encoding="utf-8").splitlines()
    assert 'ENTRYPOINT ["trtq"]' in lines
    users = [line for line in lines if line.startswith("USER ")]
    assert users[-1] == "USER 10001"


def test_the_context_of_an_image_holds_what_the_wheel_is_made_of(tmp_path: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    names = {line.rstrip("/") for line in ignored if line and not line.startswith("#")}
    needed = {"pyproject.toml", "setup.py", "LICENSE", "README.md", "src"}
    needed |= {"pipeline", "calibrators", "models"}
    assert not names & needed
    assert {".git", ".venv", "tests", "benchmarks"} <= names
    assert all(re.fullmatch(r"[\w./*-]+", name) for name in names)


def test_the_image_script_has_no_syntax_error() -> None:
    _run("bash", "-n", "docker/cpu_image.sh")
    if shutil.which("shellcheck"):
        _run("shellcheck", "docker/cpu_image.sh")
