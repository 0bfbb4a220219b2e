"""The tables hold what NVIDIA's own bindings lost, no more and no less."""

from __future__ import annotations

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from trtq.pipeline.migrate.removed import names
from trtq.pipeline.migrate.removed.names import MEMBERS, REMOVED

_RECORD = Path(__file__).parents[3] / "data" / "tensorrt_removed.txt"
_NOT_CHECKED = {  # methods for the user to override, or of no use to a script
    "IGpuAllocator.free",
    "IOutputAllocator.notify_shape",
    "IOutputAllocator.reallocate_output",
    "IOutputAllocator.tensorrt_version",
    "IPluginCreator.tensorrt_version",
}
_OF_BINDINGS = {name: removed for name, removed in REMOVED.items() if re.fullmatch(r"[\w.]+", name)}
_SECTIONS = {"11.0": "10.16.1.11 -> 11.0.0.114", "10.0": "8.6.1 -> 10.0.1"}


@cache
def _record(section: str) -> list[str]:
    text = _RECORD.read_text(encoding="utf-8")
    lines = text.split(f"[{section}]\n")[1].split("[")[0].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _removed_names(since: str) -> set[str]:
    names = set()
    for line in _record(_SECTIONS[since]):
        owner, members = line.split(": ")
        names |= {member if owner == "tensorrt" else f"{owner}.{member}" for member in members.split()}
    return names


def _said_elsewhere(name: str) -> bool:
    """Returns whether the class itself is removed, or it is a layer, and ILayer lost the member."""
    every = {name for since in _SECTIONS for name in _removed_names(since)}
    owner, _, member = name.rpartition(".")
    a_layer = re.fullmatch(r"I\w+Layer", owner) is not None
    return owner in every or (a_layer and f"ILayer.{member}" in every)


def test_the_record_is_whole() -> None:
    assert len(_removed_names("11.0")) == 477
    assert len(_removed_names("10.0")) == 194


@pytest.mark.parametrize("since", ["11.0", "10.0"])
def test_the_table_is_the_recorded_difference(since: str) -> None:
    wanted = {name for name in _removed_names(since) if not _said_elsewhere(name)}
    written = {name for name, removed in _OF_BINDINGS.items() if removed.since == since}
    assert written == wanted - _NOT_CHECKED
    assert _removed_names("10.0") >= _NOT_CHECKED


def test_members_of_other_classes_that_11_keeps_are_ambiguous() -> None:
    kept = set(_record("kept elsewhere in 11.4.0.106")[0].split())
    assert all(removed.ambiguous for name in kept & set(MEMBERS) for removed in MEMBERS[name].values())


def test_every_row_gives_advice() -> None:
    lines = (Path(names.__file__).parent / "removed.txt").read_text(encoding="utf-8").splitlines()
    assert all(len(removed.advice) > 4 for removed in REMOVED.values())
    assert {removed.advice for removed in REMOVED.values()} <= set(lines)
    assert {removed.since for removed in REMOVED.values()} == {"10.0", "11.0"}


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("trtexec --int8", "11.0"),
        ("trtexec --workspace", "10.0"),
        ("polygraphy --calibration-cache", "11.0"),
        ("polygraphy Calibrator", "11.0"),
        ("CreateConfig(int8=)", "11.0"),
        ("INetworkDefinition.add_quantize without output_type", "11.0"),
    ],
)
def test_tools_and_polygraphy_are_in_the_table(name: str, since: str) -> None:
    assert REMOVED[name].since == since


def test_the_table_has_as_many_names_as_the_tools_lost() -> None:
    owners = [name.partition(" ")[0] for name in REMOVED if " " in name or "(" in name]
    assert (owners.count("trtexec"), owners.count("polygraphy")) == (31, 19)


def _installed() -> Any:
    """Returns TensorRT's bindings; skips where there are none that load."""
    for module in ("tensorrt_bindings", "tensorrt"):
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            reason = str(error)
    pytest.skip(f"the bindings of TensorRT are not here: {reason}")


def test_the_installed_bindings_agree() -> None:
    trt = _installed()
    major, minor = map(int, trt.__version__.split(".")[:2])
    for name, removed in _OF_BINDINGS.items():
        owner, _, member = name.rpartition(".")
        there = hasattr(getattr(trt, owner, None) if owner else trt, member)
        since = int(removed.since.split(".")[0])
        if major >= since:
            assert not there, name
        elif (major, minor) == (10, 16):  # the last of its line has all that 11 removed
            assert there, name
