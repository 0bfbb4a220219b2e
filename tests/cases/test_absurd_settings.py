"""Settings that nobody means end in one clear line: nesting, sizes, numbers and names beyond all machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from trtq.calibrators import create_method
from trtq.calibrators.settings import read_toml
from trtq.cli import main
from trtq.errors import ArtifactError, UsageError
from trtq.models.preprocess import Preprocess
from trtq.models.spec import CalibrationSpec
from trtq.models.toml import read_table
from trtq.pipeline.deliver.folder import refuse_foreign, stage_folder


def test_toml_is_not_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(f"x = {'[' * 3000}{']' * 3000}")
    with pytest.raises(UsageError, match=r"m\.toml is not valid TOML: it is nested too deeply"):
        read_toml(tmp_path / "m.toml", "settings")


@pytest.mark.parametrize(
    ("method", "key", "words"),
    [
        ("entropy", "num_bins", "num_levels <= num_bins <= 1048576 and .*, got 128, 99999999999 and"),
        ("mse", "num_candidates", "mse needs 2 to 65536 candidates and .*, got 99999999999 and"),
        ("cosine", "num_candidates", "cosine needs 2 to 65536 candidates and .*, got 99999999999 and"),
    ],
)
def test_sizes_have_an_end(method: str, key: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        create_method(CalibrationSpec(method=method, parameters={key: 99_999_999_999}))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(UsageError, match="std must be a list of numbers, got "):
        read_table(Preprocess, {"std": [value]}, "[preprocess]")
    with pytest.raises(UsageError, match="scale, mean and std must be finite, got "):
        Preprocess(std=(value,))


@pytest.mark.parametrize(("key", "value"), [("scale", 10**400), ("resize", [1 << 63]), ("std", [-(10**30)])])
def test_whole_numbers_have_64_bits(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=rf"\[preprocess\] {key} must be a .*numbers?, got "):
        read_table(Preprocess, {key: value}, "[preprocess]")


def test_a_name_is_not_too_long(tmp_path: Path) -> None:
    folder, told = tmp_path / ("o" * 300), r"cannot write to .*: File name too long"
    with pytest.raises(ArtifactError, match=told), stage_folder(folder):
        pass
    with pytest.raises(ArtifactError, match=told):
        refuse_foreign(folder)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(36, "File name too long", "long"), "error: File name too long: long\n"),
        (OSError("no drive"), "error: no drive\n"),
        (MemoryError(), "error: there is not enough memory: smaller batches or settings need less\n"),
        (MemoryError("416 GiB"), "error: there is not enough memory: 416 GiB\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("trtq.cli.inspect.command.callback", fail)
    ran = CliRunner().invoke(main, ["inspect", "x"])
    assert (ran.exit_code, ran.output) == (2, words)
