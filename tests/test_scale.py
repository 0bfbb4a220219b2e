"""The files for schedulers in docs/scale: they fit their schemas, and their commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from trtq.cli import main

FOLDER = Path(__file__).parents[1] / "docs" / "scale"
FILES = sorted(FOLDER.iterdir())
_KUBERNETES = "1.30"


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def _commands(text: str) -> list[list[str]]:
    joined = re.sub(r"\\\n|\n\s+--", lambda found: " --" if "--" in found[0] else " ", text)
    return [shlex.split(found) for found in re.findall(r"trtq [a-z-]+ [^'\n]*--[^'\n]*", joined)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_options_of_the_commands_exist(path: Path) -> None:
    found = _commands(path.read_text())
    assert found
    for _, name, *words in found:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


def test_the_job_of_kubernetes_fits_its_schema() -> None:
    job = _read("calibrate-job.yml")
    kubernetes_validate.validate(job, _KUBERNETES, strict=True)
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["env"] == [{"name": "JOB_COMPLETIONS", "value": str(job["spec"]["completions"])}]


def test_the_pods_of_the_ray_job_fit_their_schema() -> None:
    spec = _read("rayjob.yml")["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert len(groups) == 2
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes_validate.validate(pod, _KUBERNETES, strict=True)


def test_the_script_for_slurm_is_a_script() -> None:
    path = FOLDER / "calibrate.sbatch"
    subprocess.run(["bash", "-n", path], check=True)
    directives = re.findall(r"^#SBATCH --([a-z-]+)=\S+$", path.read_text(), re.MULTILINE)
    assert directives == ["job-name", "array", "cpus-per-task", "mem", "time"]
