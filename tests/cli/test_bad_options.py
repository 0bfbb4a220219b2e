"""Options and settings that cannot be meant: one clear error, exit code 2, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

ASKED = "--calib-data data.npz"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--percentile 0", "percentile must be above 0 and at most 100, got 0.0"),
        ("--percentile 100.1", "percentile must be above 0 and at most 100, got 100.1"),
        ("--percentile nan", "percentile must be above 0 and at most 100, got nan"),
        (
            "--repair smoothe",
            "there is no repair 'smoothe'; use auto, none, equalize, smooth, shift, rotate",
        ),
        ("--repair bias,none", "repair is auto alone, none alone, or some of equalize, smooth"),
        ("--percentile 99 --calib-method mse", "--percentile is for --calib-method percentile, not mse"),
        ("--calib-batch-size 0", "calibration batch_size must be at least 1, got 0"),
        ("--calib-samples -1", "calibration samples must be at least 1, got -1"),
        ("--eval-samples 0", "evaluation samples must be at least 1, got 0"),
        ("--min-cosine 2", "min_cosine must be between -1 and 1, got 2.0"),
        ("--max-drop -1", "max_drop must be between 0 and 100 points, got -1.0"),
        ("--skip=", "--skip is empty; give it a value or leave it out"),
        ("--skip (", "'(' is not a regular expression: missing )"),
        ("--keep-fp32 *", "'*' is not a regular expression: nothing to repeat"),
        ("--formats int8,int9", "'int9' is not a format for layers; --formats takes int8, fp8, "),
        ("--formats fp16", "--formats fp16 quantizes nothing; use --fp16, or name int8 or fp8 too"),
        ("--formats int8,fp8 --fp8", "--fp8 and --formats contradict each other; give one of them"),
        ("--op-types Conv,Relu", "'Relu' cannot be quantized; the types to quantize are Conv, "),
        ("--spec none.toml", "cannot read the settings none.toml: No such file or directory"),
        ("--labels truth", "labels 'truth' are named without evaluation data; give --eval-data"),
        ("--eval-data none.npz", "there is no data none.npz; give"),
        ("--eval-data data.npz --labels truth", "data.npz (samples 0 to 7) has no labels 'truth'; it has x"),
        ("--opt-shapes z:1", "shapes are given for 'z', but the model's inputs are x"),
        ("--opt-shapes x", "'x' gives no shapes; write name:1x3x224x224"),
        ("--opt-shapes x:1x1x8x8", "shape 1x1x8x8 does not fit input 'x', which is (N, 3, 8, 8)"),
        (
            "--min-shapes x:4x3x8x8 --max-shapes x:2x3x8x8",
            "input 'x': profile shapes must have the same rank",
        ),
        ("--compute-capability ampere", "'ampere' is not a compute capability; write 8.9, 89 or sm_89"),
        ("--compute-capability 9.0", "TensorRT-RTX cannot build for compute capability 9.0; it has "),
        ("--workspace much", "'much' is not a size; write bytes, or a number with K, M or G"),
        ("--workspace 0", "the workspace must have 1 to 2^63 - 1 bytes, got 0"),
        ("-o .", "model.onnx is inside the output folder "),
        ("-o /proc/trtq", "cannot write to /proc: "),
    ],
)
def test_a_bad_option_is_refused(
    options: str, message: str, check_refused: Callable[[str, str], None]
) -> None:
    check_refused(f"model.onnx {ASKED} {options}", message)


def test_a_file_in_the_place_of_the_folder_is_refused(
    folder: Path, check_refused: Callable[[str, str], None]
) -> None:
    path = folder / "model.onnx"
    check_refused(f"model.onnx {ASKED} -o model.onnx", f"{path} is a file; choose another folder with")


def test_bad_settings_beside_the_model_are_refused_with_their_file(
    folder: Path, check_refused: Callable[[str, str], None]
) -> None:
    (folder / "model.toml").write_text("[calibration]\nmethods = 'mse'\n")
    check_refused("model.onnx", "model.toml: [calibration] has no key 'methods'; its keys are data, ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--calib-method max", "'max' is not one of 'auto', 'minmax', 'percentile', 'entropy', 'mse', 'cos"),
        (
            "--backend tensorflow",
            "'tensorflow' is not one of 'auto', 'tensorrt', 'tensorrt-rtx'",
        ),
        ("--high-precision fp64", "'fp64' is not one of 'auto', 'fp16', 'bf16', 'fp32'"),
        ("--percentile most", "'most' is not a valid float"),
        ("--calib-samples 1.5", "'1.5' is not a valid integer"),
        ("--calib-date x", "No such option"),
        ("--calib-data", "Option '--calib-data' requires an argument"),
    ],
)
def test_what_click_refuses_is_exit_2_too(
    options: str, message: str, trtq: Callable[..., Result], content: Callable[[], dict[str, bytes | None]]
) -> None:
    before = content()
    result = trtq("build", "model.onnx", *options.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert content() == before
