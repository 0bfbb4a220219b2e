"""A calibration method is one class and one entry: options, keys and commands follow from its fields."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import click
import pytest
from click.testing import CliRunner

from trtq.calibrators import METHODS, create_method
from trtq.calibrators.estimate import describe
from trtq.calibrators.levels import INT8_LEVELS
from trtq.calibrators.settings import read_spec
from trtq.cli import options
from trtq.models.option import setting
from trtq.models.spec import CalibrationSpec, ModelSpec
from trtq.models.toml import format_spec
from trtq.pipeline.build.command import format_command
from trtq.pipeline.engine.target import Target

if TYPE_CHECKING:
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram
    from trtq.pipeline.build.job import Job


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the largest magnitude.

    Attributes:
        share: How much of the largest magnitude.
        rounds: Rounds of nothing.
    """

    share: float = setting(0.5)
    rounds: int = setting(3, is_hidden=True)

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the share."""
        return self.share * histogram.amax


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "share", Share)


def _command() -> click.Command:
    @click.command()
    @options.model_argument
    @options.spec_option
    @options.take_calibration()
    def command() -> None:
        """Does nothing."""

    return command


def test_it_has_options() -> None:
    shown = CliRunner().invoke(_command(), ["--help"]).stdout
    assert "|share|" in shown
    text = " ".join(shown.split())
    assert "--share FLOAT For share: how much of the largest magnitude. [default: 0.5]" in text
    assert "--rounds" not in shown
    arguments = ["net.onnx", "--calib-method", "share", "--share", "0.25", "--rounds", "9"]
    given = _command().make_context("trtq", arguments).ensure_object(options.Given)
    spec = given.read_spec(Path("no-such-folder/net.onnx"))
    assert create_method(spec.calibration) == Share(0.25, 9)


def test_it_has_keys_in_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    spec = ModelSpec(calibration=CalibrationSpec(None, "share", {"share": 0.25}))
    path.write_text(format_spec(spec))
    assert path.read_text() == '[calibration]\nmethod = "share"\nshare = 0.25\n'
    assert read_spec(path) == spec


def test_the_command_of_a_build_names_its_parameters() -> None:
    job = SimpleNamespace(
        graph=SimpleNamespace(path=Path("net.onnx")),
        spec=ModelSpec(calibration=CalibrationSpec("d.npz", "share", {"share": 0.25, "rounds": 9})),
        target=Target(),
        folder=Path("out"),
        ranges=None,
        sources={},
        is_random=False,
    )
    assert format_command(cast("Job", job)) == (
        "trtq build net.onnx --int8 --calib-data d.npz --calib-method share --share 0.25 --rounds 9 "
        "--output out"
    )


def test_ranges_say_by_what_they_were_taken() -> None:
    assert describe(create_method(CalibrationSpec(None, "share"))) == "share(share=0.5, rounds=3)"
