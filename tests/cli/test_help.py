"""What the command line tells of itself, and what it loads to do so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from command_line import trtq

from trtq.cli import main
from trtq.cli.help import _GROUPS
from trtq.models.demo import write_demo
from trtq.models.spec import NAMED_REPAIRS, REPAIRS, SLOW_REPAIRS

COMMANDS = [
    "init", "export", "plan", "build", "build-all", "calibrate", "merge-statistics", "quantize",
    "sensitivity", "compare", "run", "report", "bench", "package", "lint", "cache", "migrate", "verify",
    "sign", "inspect", "doctor", "demo", "completion",
]  # fmt: skip
HEAVY = {"numpy", "onnx", "onnx_ir", "onnxruntime", "polygraphy", "tensorrt_rtx", "torch", "rich", "PIL"}


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_short_and_whole(option: str) -> None:
    result = trtq(option)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout == (
        "Usage: trtq [OPTIONS] COMMAND [ARGS]...\n"
        "\n"
        "  Turn a float ONNX model into a verified INT8 TensorRT engine, with or without\n"
        "  a GPU.\n"
        "\n"
        "    trtq build model.onnx --int8 --calib-data calib.npz\n"
        "\n"
        "  Exit codes: 0 success; 2 bad input or usage; 3 the accuracy or speed gate\n"
        "  failed, or an export differs from PyTorch; 4 a build failed; 5 a required\n"
        "  package is not installed.\n"
        "\n"
        "Options:\n"
        "  -V, --version  Show the version and exit.\n"
        "  -h, --help     Show this message and exit.\n"
        "\n"
        "Commands:\n"
        "  init              Write a commented settings file to start from.\n"
        "  export            Export a PyTorch module to ONNX and check that both agree.\n"
        "  plan              Estimate the GPU memory a model needs in each precision.\n"
        "  build             Build a verified INT8 (or FP8, FP16, ...) engine from an\n"
        "                    ONNX model.\n"
        "  build-all         Build several models, described in one file.\n"
        "  calibrate         Compute the calibration ranges of a model from data.\n"
        "  merge-statistics  Merge the calibration statistics of all shards of the data.\n"
        "  quantize          Write the Q/DQ model from a float model and its ranges.\n"
        "  sensitivity       Measure the accuracy cost of each quantized layer.\n"
        "  compare           Compare the outputs of two models on the same data.\n"
        "  run               Run a build on data and save its outputs.\n"
        "  report            Rewrite the HTML report of a build, or compare two builds.\n"
        "  bench             Measure the speed of models and engines side by side.\n"
        "  package           Add a build to a Triton model repository, or write it for\n"
        "                    DeepStream.\n"
        "  lint              Find Q/DQ that TensorRT rejects or silently runs in float.\n"
        "  cache             Show, convert, compare and write TensorRT calibration\n"
        "                    caches.\n"
        "  migrate           Turn a model and its calibration cache into a Q/DQ model and\n"
        "                    an engine.\n"
        "  verify            Check every file of a build folder, and its signature.\n"
        "  sign              Sign a build folder.\n"
        "  inspect           Show what is in a model, ranges file, cache or build folder.\n"
        "  doctor            Show what is installed and which backends work here.\n"
        "  demo              Write a small trained model with data, for trying out trtq.\n"
        "  completion        Print a completion script for bash, zsh or fish.\n"
    )


def test_the_version_is_that_of_the_package() -> None:
    assert trtq("--version").stdout == trtq("-V").stdout == f"trtq, version {version('trtq')}\n"


def command_of(name: str) -> click.Command:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_shows_every_option(name: str) -> None:
    result = trtq(name, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    words = set(re.findall(r"[\w-]+", result.stdout))
    for parameter in command_of(name).params:
        if isinstance(parameter, click.Option):
            shown = {*parameter.opts, *parameter.secondary_opts}
            assert shown.isdisjoint(words) if parameter.hidden else shown <= words, parameter.name
            assert parameter.help, parameter.name
        else:
            assert str(parameter.name).upper() in words
    assert "--help" in words
    assert "\\b" not in result.stdout
    assert "\b" not in result.stdout


def test_the_help_of_repair_names_every_repair() -> None:
    repair = next(option for option in command_of("build").params if option.name == "repair")
    assert isinstance(repair, click.Option)
    words = re.findall(r"\w+", str(repair.help))
    assert {*REPAIRS, *SLOW_REPAIRS, *NAMED_REPAIRS} <= {*words}


def groups_of(name: str) -> list[str]:
    """Returns the headings in the help of a command."""
    return re.findall(r"^(\w+):$", trtq(name, "--help").stdout, re.MULTILINE)


def test_many_options_are_shown_in_groups_in_the_order_of_the_work() -> None:
    wanted = [
        "Data", "Images", "Ranges", "Repairs", "Precision", "Layers", "Engine", "Gate", "Settings",
        "Workers",
    ]  # fmt: skip
    assert groups_of("build") == [*wanted, "Output"]
    own = ("Data", "Images", "Repairs", "Workers")
    assert groups_of("migrate") == [name for name in (*wanted, "Output") if name not in own]
    assert groups_of("bench") == ["Data", "Engine", "Gate", "Time", "Output"]
    assert groups_of("package") == ["Server", "Settings", "Output"]
    assert groups_of("run") == groups_of("lint") == ["Options"]
    assert groups_of("plan") == ["Memory", "Precision", "Layers", "Engine", "Output"]
    assert groups_of("init") == ["Data", "Images", "Gate", "Settings", "Output"]
    assert groups_of("export") == ["Module", "Data", "Settings", "Output"]


def test_no_option_stands_in_two_groups() -> None:
    names = [name for group in _GROUPS.values() for name in group]
    assert len(names) == len({*names})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_a_shell_and_completes(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = trtq("completion", shell)
    assert (script.exit_code, script.stderr) == (0, "")
    assert f"_TRTQ_COMPLETE={shell}_complete" in script.stdout
    assert f"trtq completion {shell}" in trtq("completion", "--help").stdout
    monkeypatch.setenv("_TRTQ_COMPLETE", f"{shell}_complete")
    for words, count, wanted in (("trtq buil", 1, "build-all"), ("trtq build --calib-da", 2, "--calib-data")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", words.split()[-1] if shell == "fish" else str(count))
        assert wanted in trtq().stdout


def test_completing_a_command_loads_nothing_heavier_than_click(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_TRTQ_COMPLETE", "bash_complete"), ("COMP_WORDS", "trtq b"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(name, value)
    code = "import sys; from trtq.cli import main; main(prog_name='trtq', standalone_mode=False)"
    command = [sys.executable, "-X", "importtime", "-c", f"try: exec({code!r})\nexcept SystemExit: pass"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "build-all" in done.stdout
    assert not {name for name in HEAVY if re.search(rf"\| +{name}$", done.stderr, re.MULTILINE)}


def test_only_parameters_of_methods_and_what_build_all_adds_are_hidden() -> None:
    parameters = command_of("build").params
    hidden = {item.name for item in parameters if isinstance(item, click.Option) and item.hidden}
    of_methods = {"num_bins", "num_levels", "max_clipped", "num_candidates", "smallest"}
    assert hidden == {*of_methods, "share_ranges", "earlier", "take_shared"}


@pytest.mark.parametrize(
    "name",
    [
        "init",
        "export",
        "plan",
        "build",
        "build-all",
        "calibrate",
        "quantize",
        "compare",
        "run",
        "package",
        "lint",
        "demo",
    ],
)
def test_the_help_of_a_command_has_an_example_that_can_be_copied(name: str) -> None:
    lines = trtq(name, "--help").stdout.splitlines()
    assert any(line.startswith(f"    trtq {name} ") for line in lines)


def test_the_commands_stand_in_the_order_of_the_work() -> None:
    assert main.list_commands(click.Context(main)) == COMMANDS


def test_an_unknown_command_is_a_usage_error() -> None:
    result = trtq("biuld")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: No such command 'biuld'. (Did you mean 'build'?); `trtq --help`")
    assert "No such command 'shwo'. (Did you mean 'show'?)" in trtq("cache", "shwo").stderr
    assert "No such command 'x'; `trtq" in trtq("x").stderr
    told = "error: Missing argument 'SHELL'. Choose from: bash, zsh, fish; `trtq completion --help` lists"
    assert trtq("completion").stderr.startswith(told)
    assert "--calib-data" in trtq("build", "--calib-dta").stderr


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Returns the top packages that a fresh interpreter imports to run the code."""
    return {name.partition(".")[0] for name in modules_loaded_by(code, *arguments)}


def modules_loaded_by(code: str, *arguments: str) -> set[str]:
    """Returns the modules that a fresh interpreter imports to run the code."""
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"^import time:[^|]*\|[^|]*\|\s*(\S+)$", process.stderr, re.MULTILINE))


def test_help_loads_click_and_nothing_heavier() -> None:
    loaded = loaded_by("from trtq.cli import main; main()", "--help")
    assert {"trtq", "click"} <= loaded
    assert not loaded & HEAVY


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import trtq; trtq.TrtqError")
    assert "trtq" in loaded
    assert not loaded & {*HEAVY, "click"}


def test_the_help_of_a_command_loads_no_engine_builder() -> None:
    loaded = loaded_by("from trtq.cli import main; main()", "build", "--help")
    assert "onnx" in loaded  # the listing does see what is loaded
    assert not loaded & {"onnxruntime", "polygraphy", "tensorrt_rtx", "torch", "PIL"}


def test_a_plain_calibration_loads_what_it_needs_and_not_the_rest_of_the_job(tmp_path: Path) -> None:
    write_demo(tmp_path)
    model, ranges = str(tmp_path / "model.onnx"), str(tmp_path / "ranges.json")
    plain = ("--calib-method", "minmax", "--repair", "none", "--quiet")
    loaded = modules_loaded_by("from trtq.cli import main; main()", "calibrate", model, *plain, "-o", ranges)
    assert Path(ranges).exists()
    assert {"onnx_ir", "trtq.calibrators.observe"} <= loaded
    rest = ("deliver", "engine.tensorrt", "build", "quantize", "judge.repairs", "rewrite.weights")
    others = ("rich", "jinja2", "msgspec", "multiprocessing", *(f"trtq.pipeline.{name}" for name in rest))
    assert not {name for name in loaded if name.startswith(others)}


def test_onnx_runtime_is_told_to_report_nothing_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    trtq("doctor")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    trtq("doctor")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "trtq", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert version("trtq") in done.stdout
