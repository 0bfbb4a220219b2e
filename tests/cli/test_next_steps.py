"""The command that is advised: it is what was given with the change, and trtq takes it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

from trtq.cli import build, main
from trtq.cli.next_steps import _change_given, _shorten
from trtq.cli.options import Given
from trtq.cli.targets import read_target
from trtq.files import as_argument
from trtq.pipeline.deliver.advice import Advice, _advise_weights, advise
from trtq.pipeline.deliver.report import AutoReport, WeightsReport, read_report
from trtq.pipeline.judge.speed import SpeedVerdict


def change(given: str, advice: Advice) -> str:
    """Returns what the advice makes of a command line, which trtq then parses."""
    words = shlex.split(given)
    root = click.Context(main, info_name="trtq")
    root.meta["trtq.words"] = ("build", *words)
    with build.command.make_context("build", [*words], parent=root):
        changed = _change_given(advice)
    if changed:
        assert changed[:2] == ("trtq", "build")
        read_target(build.command.make_context("build", [*changed[2:]]).ensure_object(Given))
    return shlex.join(changed[2:])


AUTO, DATA = Advice("", ("--auto",)), Advice("", ("--calib-data", "MORE"))
FP32 = Advice("", ("--high-precision", "fp32"), ("--fp16",))


@pytest.mark.parametrize(
    ("given", "advice", "wanted"),
    [
        ("m.onnx --keep-fp32 a", Advice("", ("--keep-fp32", "b")), "m.onnx --keep-fp32 a --keep-fp32 b"),
        ("m.onnx --skip a --skip=-b", AUTO, "m.onnx --skip a --skip=-b --auto"),
        ("--int8 --fp16 m.onnx", FP32, "m.onnx --int8 --high-precision fp32"),
        ("--compute-dtype fp16 m.onnx", FP32, "m.onnx --high-precision fp32"),
        ("--auto m.onnx --auto", AUTO, "m.onnx --auto"),
        ("-q m.onnx -oout --calib-data x", DATA, "m.onnx -q -o out --calib-data MORE"),
        ("--repair none m.onnx", Advice("", ("--repair", "auto"), ("--repair",)), "m.onnx --repair auto"),
        ("m.onnx --weights int4 --weight-method gptq --block-size 32",
         _advise_weights(WeightsReport("int4", "gptq", 32, 1, 4, 1, 4.0, "")), "m.onnx --weights int8"),
        ("m.onnx --fp16", AUTO, ""),  # there is nothing to choose
        ("m.onnx --random-data", DATA, ""),
    ],
)  # fmt: skip
def test_the_advised_command_is_the_given_one_with_the_change(
    given: str, advice: Advice, wanted: str
) -> None:
    assert change(given, advice) == wanted


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {"verdict": "fail", "speed": SpeedVerdict("fail", ("slow",), 1.0, "int8"), "reasons": ("slow",)},
            "bench",
        ),
        ({"verdict": "fail", "reasons": ("the repairs that round again may be the cause",)}, "lint"),
        ({"verdict": "fail", "reasons": ("bad",), "auto": AutoReport("found")}, "sensitivity"),
        ({"verdict": "pass", "quantized_macs": 0.1}, "inspect"),
    ],
)
def test_other_commands_that_are_advised_are_taken(changes: dict[str, Any], name: str) -> None:
    kept = read_report(Path(__file__).parents[1] / "data" / "kept" / "report-2.json")
    advice = advise(replace(kept, **changes))
    assert advice is not None
    assert advice.command[:2] == ("trtq", name)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    command.make_context(name, [*advice.command[2:]])


def test_only_paths_that_are_there_are_shortened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").touch()
    assert _shorten(str(tmp_path / "m.onnx")) == "m.onnx"
    assert _shorten(str(tmp_path / "head")) == str(tmp_path / "head")  # a regular expression


def test_a_name_that_begins_with_a_dash_is_no_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-out").touch()
    assert _shorten(str(tmp_path / "-out")) == "./-out"
    assert change("-q -- -m.onnx", AUTO) == "./-m.onnx -q --auto"
    assert as_argument("m-.onnx") == "m-.onnx"
