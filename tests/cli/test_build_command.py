"""`trtq demo` and `trtq build` as a user runs them: exit code and whole output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from command_line import METHOD, lines_of, trtq

from trtq.pipeline.engine.gpu import explain_missing_gpu

QUICK = (
    "--repair", "none", "--calib-method", "minmax", "--calib-samples", "64", "--eval-samples", "64",
)  # fmt: skip
"""Nothing is searched for, in little data."""
NOTES = """\
note: settings are read from DIR/model.toml
note: raised the opset from 18 to 19
note: input 'image' is dynamic: profile from the data, min 1x1x8x8, opt 8x1x8x8, max 8x1x8x8; others with \
--min-shapes, --opt-shapes, --max-shapes
"""
ON_CPU = " --backend onnxruntime" if explain_missing_gpu() else ""
NEXT = f"""\
open DIR/model.trtq/report.html
run trtq run DIR/model.trtq --data DIR/evaluation.npz -o outputs.npz{ON_CPU}
"""
UNCHANGED = (
    "note: settings are read from DIR/model.toml\nnote: raised the opset from 18 to 19\n"
    "note: nothing has changed since DIR/model.trtq was built\n"
)
REPORT = f"""\
model.onnx INT8 + FP16 tensorrt-rtx #
accuracy FP32 # FP16 # INT8 # on 600 samples
model against output cosine SQNR dB max abs mean abs agree
int8 fp32 logits # # # # #
int8 fp16 logits # # # # #
fp16 fp32 logits # # # # #
compared on 600 samples of DIR/evaluation.npz
model.engine # MB 11 of 11 quantized layers run in INT8
profile of image: min 1x1x8x8 opt 8x1x8x8 max 8x1x8x8
calibrated on 512 samples by {METHOD} in # s
repairs: ...; # -> # dB SQNR on 64 held-out calibration samples
sizes model.onnx # kB model.fp16.onnx # kB model.int8.onnx # kB model.engine # MB
times calibrate # s repair # s quantize # s build # s compare # s
"""


@pytest.fixture(scope="module")
def folder(demo_build: tuple[Path, Result]) -> Path:
    return demo_build[0]


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def first(demo_build: tuple[Path, Result]) -> Result:
    """The result of the first build of the demo."""
    return demo_build[1]


# demo


def test_demo_names_the_files_that_it_writes(tmp_path: Path) -> None:
    names = ["model.onnx", "calibration.npz", "evaluation.npz", "model.toml"]
    wanted = "".join(f"wrote {tmp_path / 'demo' / name}\n" for name in names)
    for _ in range(2):
        result = trtq("demo", tmp_path / "demo")
        assert (result.exit_code, result.stdout, result.stderr) == (0, wanted, "")
    assert trtq("demo", tmp_path / "demo", "-q").output == ""


def test_demo_does_not_overwrite_other_files(tmp_path: Path) -> None:
    (tmp_path / "model.toml").write_text("mine")
    result = trtq("demo", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'model.toml'} exists and is not the demo's file")
    assert [path.name for path in tmp_path.iterdir()] == ["model.toml"]


# build


def test_build_prints_the_report(first: Result, plain: Callable[[str], str]) -> None:
    assert first.exit_code == 0
    assert plain(first.stdout) == f"{REPORT}written to DIR/model.trtq\nPASS # of the MACs run in INT8\n{NEXT}"
    assert plain(first.stderr) == NOTES


def test_build_says_when_nothing_has_changed(model: Path, plain: Callable[[str], str]) -> None:
    result = trtq("build", model)
    assert result.exit_code == 0
    assert plain(result.stdout) == (
        f"{REPORT}reused from the earlier build: everything\nwritten to DIR/model.trtq\nPASS # of the "
        f"MACs run in INT8\n{NEXT}"
    )
    assert plain(result.stderr) == UNCHANGED


def test_a_dry_run_shows_the_plan_and_writes_nothing(demo_folder: Path) -> None:
    before = sorted(demo_folder.rglob("*"))
    arguments = (
        "build",
        demo_folder / "model.onnx",
        "--dry-run",
        "--skip",
        "^head",
        "--min-speedup",
        "1.05",
        "-o",
        demo_folder / "e.engine",
    )
    result = trtq(*arguments)
    assert result.exit_code == 0
    output, lines = demo_folder / "e.trtq", lines_of(result.stdout)
    assert lines[0] == f"model {demo_folder / 'model.onnx'}"
    assert lines[2].startswith("engine INT8 + FP16 by tensorrt-rtx ")
    assert lines[3:6] == [
        f"calibration {demo_folder / 'calibration.npz'} (512 samples)",
        "ranges by auto; repairs: equalize, smooth, shift, rotate, bias, weights",
        f"evaluation {demo_folder / 'evaluation.npz'} (600 samples)",
    ]
    assert lines[6] == (
        "gate cosine of every output at least 0.99; top-1 at most 1 points lower, where there are labels; "
        "at least 1.05 times as fast as float"
    )
    assert lines[7].startswith("quantized ")
    assert "stays 1 layer: skipped by '^head'" in lines
    assert "profile image: from the data" in lines
    assert (
        f"writes {output}: model.engine, model.fp16.onnx, model.int8.onnx, ranges.json"
        in result.stdout.replace("  ", "")
    )
    assert f"{demo_folder / 'e.engine'}, unless the gate fails" in lines
    assert lines[-1] == "nothing was written: --dry-run"
    document = json.loads(trtq(*arguments, "--json", "-q").stdout)
    assert document["calibration"] == {"origin": str(demo_folder / "calibration.npz"), "num_samples": 512}
    assert trtq(*arguments, "-q").output == ""
    assert sorted(demo_folder.rglob("*")) == before


@pytest.mark.parametrize(
    "option",
    [("--summary", "s.md"), ("--junit", "j.xml"), ("--mlflow", "n"), ("--workers", "processes")],
)
def test_what_is_of_no_use_with_a_dry_run_is_refused(option: tuple[str, str], tmp_path: Path) -> None:
    result = trtq("build", tmp_path / "model.onnx", "--dry-run", *option)
    assert result.exit_code == 2
    wanted = f"error: {option[0]} has no effect with --dry-run: no model is run and nothing is written\n"
    assert result.stderr == wanted


def test_build_prints_nothing_when_quiet(model: Path) -> None:
    result = trtq("build", model, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


def test_build_prints_the_report_alone_as_json(model: Path, folder: Path) -> None:
    result = trtq("build", model, "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["reused"] == ["everything"]
    assert {**document, "reused": []} == json.loads((folder / "model.trtq" / "report.json").read_bytes())
    assert json.loads(trtq("build", model, "--json").stdout) == document


@pytest.mark.slow
def test_build_names_what_is_kept_and_what_the_builder_said_when_verbose(
    model: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    arguments = ("build", model, "--skip", "head", "--keep-fp32", "ReduceMean", *QUICK, "-o", tmp_path / "o")
    shown = plain(trtq(*arguments, "-v").stdout).splitlines()
    assert "not quantized: 1 node" in shown
    assert shown[shown.index("not quantized: 1 node") + 1] == "head/Gemm: skipped by 'head'"
    assert "kept FP32: 1 node" in shown
    assert any(line.startswith("WARNING: ") for line in shown)
    brief = plain(trtq(*arguments).stdout).splitlines()
    assert "not quantized: 1 node (-v lists them)" in brief
    assert not any(line.startswith("WARNING: ") for line in brief)


@pytest.mark.slow
def test_build_for_onnx_runtime_runs_every_quantized_layer_in_int8(
    model: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    result = trtq("build", model, "--backend", "onnxruntime", *QUICK, "-o", tmp_path / "out")
    assert result.exit_code == 0
    found = re.search(r"(\d+) of (\d+) quantized layers run in INT8\n", plain(result.stdout))
    assert found is not None
    assert found[1] == found[2] != "0"


@pytest.mark.slow
def test_build_without_a_builder_names_the_layers_that_do_not_run_in_int8(
    model: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    symmetric = ("--activations", "symmetric")  # for which ONNX Runtime has few kernels
    result = trtq("build", model, "--backend", "onnxruntime", *symmetric, *QUICK, "-o", tmp_path / "out")
    shown = plain(result.stdout)
    assert result.exit_code == 0
    assert shown.startswith("model.onnx INT8 + FP32 onnxruntime #\n")
    covered = re.search(r"model\.int8\.onnx # kB (\d+) of 11 quantized layers run in INT8\n", shown)
    assert covered is not None
    (fallen,) = re.findall(
        r"^(\S+ \(.*\).*) run as Float: ONNX Runtime has only INT8 kernels", shown, re.MULTILINE
    )
    more = re.search(r" and (\d+) more$", fallen)
    assert fallen.count(" (") + int(more[1] if more else 0) == 11 - int(covered[1]) > 0
    verdict, page, advice, run = shown.splitlines()[-4:]
    assert verdict == "PASS, but only # of the MACs run in INT8"
    assert page == f"open {tmp_path / 'out' / 'report.html'}"
    assert advice == "try trtq inspect DIR/model.onnx --placement # shows why layers stay in float"
    assert run == f"run trtq run {tmp_path / 'out'} --data DIR/evaluation.npz -o outputs.npz"


@pytest.mark.slow
def test_build_of_fp16_alone_compares_fp16_alone(
    model: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    result = trtq("build", model, "--fp16", "--output", tmp_path / "half")
    assert result.exit_code == 0
    assert plain(result.stdout.replace(str(tmp_path), "PLACE")) == (
        "model.onnx FP16 tensorrt-rtx #\n"
        "accuracy FP32 # FP16 # on 600 samples\n"
        "model against output cosine SQNR dB max abs mean abs agree\n"
        "fp16 fp32 logits # # # # #\n"
        "compared on 600 samples of DIR/evaluation.npz\n"
        "model.engine # kB\n"
        "profile of image: min 1x1x8x8 opt 8x1x8x8 max 8x1x8x8\n"
        "sizes model.onnx # kB model.fp16.onnx # kB model.engine # kB\n"
        "times calibrate # s quantize # s build # s compare # s\n"
        "written to PLACE/half\n"
        "PASS\n" + NEXT.replace("DIR/model.trtq", "PLACE/half")
    )


@pytest.mark.slow
def test_build_with_random_data_warns_and_is_unverified(
    model: Path, tmp_path: Path, plain: Callable[[str], str]
) -> None:
    arguments = ("build", model, "--random-data", "--backend", "onnxruntime", "-o", tmp_path / "random")
    result = trtq(*arguments)
    assert result.exit_code == 0
    assert (
        "warning: calibrating with random numbers: the accuracy of this engine means nothing\n"
        in result.stderr
    )
    shown = plain(result.stdout)
    assert f"calibrated on 16 samples by {METHOD} in # s RANDOM DATA\n" in shown
    assert shown.splitlines()[-3] == "UNVERIFIED: the data was random, so its accuracy means nothing"
    assert json.loads(trtq(*arguments, "--json").stdout)["verdict"] == "unverified"


def test_warnings_are_printed_on_one_line_even_when_quiet(model: Path, tmp_path: Path) -> None:
    arguments = ("build", model, "--backend", "onnxruntime", *QUICK, "-o", tmp_path / "out", "-q")
    result = trtq(*arguments, "--skip", "block1.first.convolution/Convolution")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == (
        "warning: 'block1.first.convolution/Convolution' matches no node; the nearest names are "
        "block1.first.conv/Conv, block2.first.conv/Conv, block1.second.conv/Conv\n"
    )


@pytest.mark.slow
def test_build_takes_trtexecs_spellings(model: Path, tmp_path: Path) -> None:
    result = trtq(
        "build", model, "-o", tmp_path / "shapes", "-q", "--repair", "none", "--eval-samples", "64",
        "--minShapes", "image:1x1x8x8", "--optShapes",
        "image:[4,1,8,8]", "--maxShapes", "image:16x1x8x8", "--workspace", "512M", "--compute-capability",
        "sm_89", "--percentile", "99.9",
    )  # fmt: skip
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    report = json.loads((tmp_path / "shapes" / "report.json").read_bytes())
    assert report["engine"]["profiles"] == {
        "image": {"min": [1, 1, 8, 8], "opt": [4, 1, 8, 8], "max": [16, 1, 8, 8], "profiles": []}
    }
    assert report["engine"]["targets"] == ["8.9"]
    assert report["calibration"]["method"] == "percentile(percentile=99.9)"
    settings = json.loads((tmp_path / "shapes" / "manifest.json").read_bytes())["settings"]
    assert settings["target"]["workspace_bytes"] == 512 << 20


# The exit codes besides 2, which has tests of its own


def test_a_failed_gate_is_exit_3_with_the_report_before_and_again_when_nothing_has_changed(
    model: Path, tmp_path: Path
) -> None:
    arguments = ("--backend", "onnxruntime", *QUICK, "-o", tmp_path / "out", "--min-cosine", "1")
    result = trtq("build", model, *arguments)
    assert result.exit_code == 3
    assert result.stdout.endswith("FAIL\n")
    error, page, advice = result.stderr.splitlines()[-3:]
    assert re.fullmatch(
        r"error: the accuracy gate failed: output 'logits' has cosine \d\.\d+ to fp32, the gate "
        r"requires 1; worst samples: \d+ \(\d\.\d+\).*",
        error,
    )
    assert page == f"  open  {tmp_path / 'out' / 'report.html'}"
    assert advice == (
        f"  try   trtq build {model} --backend onnxruntime --calib-method minmax --calib-samples 64 "
        f"--eval-samples 64 -o {tmp_path / 'out'} --min-cosine 1 --repair auto --effort balanced  # "
        "tries repairs and other calibration methods"
    )
    again = trtq("build", model, *arguments, "--json", "-q")  # nothing has changed
    assert again.exit_code == 3
    assert json.loads(again.stdout)["verdict"] == "fail"
    assert json.loads(again.stdout)["reused"] == ["everything"]
    assert again.stderr.startswith("error: the accuracy gate failed: ")
    assert again.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_failed_build_is_exit_4_with_the_builders_words(model: Path, tmp_path: Path) -> None:
    result = trtq("build", model, *QUICK, "-o", tmp_path / "none", "--workspace", "1", "-q")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: TensorRT-RTX could not build model.int8.onnx:\n")
    assert "no tactics to implement the operation within workspace limit" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("backend", ["auto", "tensorrt-rtx"])
def test_an_absent_builder_is_exit_5_with_what_to_install(
    model: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("trtq.pipeline.engine.rtx.importlib.util.find_spec", lambda _: None)
    result = trtq("build", model, "--backend", backend)
    assert (result.exit_code, result.stdout) == (5, "")
    assert result.stderr.startswith("error: ")
    assert "pip install 'trtq[rtx]'" in result.stderr
    assert result.stderr.count("\n") == 1
