"""What the options of the command line become."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.calibrators import create_method
from trtq.calibrators.mse import Mse
from trtq.calibrators.percentile import Percentile
from trtq.cli.build import command as build_command
from trtq.cli.options import Given
from trtq.cli.targets import read_target
from trtq.errors import UsageError
from trtq.models.spec import REPAIRS, CalibrationSpec, EvaluationSpec, LayerSpec, ModelSpec
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES


def given(*arguments: str) -> Given:
    """Returns what click makes of the arguments of `trtq build`."""
    return build_command.make_context("trtq build", ["net.onnx", *arguments]).ensure_object(Given)


def spec(*arguments: str, beside: Path = Path("no-such-folder")) -> ModelSpec:
    return given(*arguments).read_spec(beside / "net.onnx")


def target(*arguments: str) -> Target:
    return read_target(given(*arguments))


def test_without_options_the_defaults_hold() -> None:
    assert spec() == ModelSpec()
    assert target() == Target()


@pytest.mark.parametrize(
    ("arguments", "calibration"),
    [
        (["--calib-data", "c.npz"], CalibrationSpec(data="c.npz")),
        (["--calib-method", "mse"], CalibrationSpec(method="mse")),
        (["--percentile", "99.9"], CalibrationSpec(None, "percentile", {"percentile": 99.9})),
        (
            ["--calib-method", "percentile", "--percentile", "100"],
            CalibrationSpec(None, "percentile", {"percentile": 100.0}),
        ),
        (["--calib-batch-size", "32", "--calib-samples", "64"], CalibrationSpec(batch_size=32, samples=64)),
    ],
)
def test_calibration_options(arguments: list[str], calibration: CalibrationSpec) -> None:
    assert spec(*arguments) == ModelSpec(calibration=calibration)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--calib-method", "mse", "--percentile", "99"],
            "--percentile is for --calib-method percentile, not mse",
        ),
        (["--num-candidates", "9"], "--num-candidates is for --calib-method mse or cosine, not auto"),
        (
            ["--calib-method", "minmax", "--num-bins", "9"],
            "for --calib-method auto or entropy or cross-",
        ),
        (["--num-bins", "1"], "entropy needs 2 <= num_levels <= num_bins"),
    ],
)
def test_a_parameter_is_not_for_another_method(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec(*arguments)


def test_a_parameter_of_the_settings_is_kept_where_the_option_names_the_method(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text("[calibration]\nnum_candidates = 9\npercentile = 90.0\n")
    found = spec("--calib-method", "mse", "--smallest", "0.5", beside=tmp_path).calibration
    assert create_method(found) == Mse(9, 0.5)
    (tmp_path / "net.toml").write_text("[calibration]\npercentile = 90.0\n")
    found = spec("--calib-method", "percentile", beside=tmp_path).calibration
    assert create_method(found) == Percentile(90.0)


def test_evaluation_gate_and_layer_options() -> None:
    found = spec(
        "--eval-data", "e.npz", "--labels", "truth", "--eval-output", "scores", "--eval-samples", "9",
        "--min-cosine", "0.5", "--max-drop", "3", "--skip", "a", "--skip", "b", "--keep-fp32", "c",
    )  # fmt: skip
    assert found.evaluation == EvaluationSpec("e.npz", "truth", "scores", 9)
    assert (found.accuracy.min_cosine, found.accuracy.max_drop) == (0.5, 3.0)
    assert spec("--metric", "own.py:f1").accuracy.script == (Path("own.py"), "f1")
    assert found.layers == LayerSpec(skip=("a", "b"), keep_fp32=("c",))


def test_options_win_over_the_settings_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text(
        '[calibration]\nmethod = "mse"\nsamples = 7\n[layers]\nskip = ["head"]\n[accuracy]\nmax_drop = 5.0\n'
    )
    found = spec("--calib-method", "minmax", "--min-cosine", "0.9", beside=tmp_path)
    assert (found.calibration.method, found.calibration.samples) == ("minmax", 7)
    assert (found.accuracy.min_cosine, found.accuracy.max_drop) == (0.9, 5.0)
    assert found.layers.skip == ("head",)
    assert spec("--skip", "tail", beside=tmp_path).layers.skip == ("head", "tail")
    assert spec("--percentile", "99", beside=tmp_path).calibration.method == "percentile"


def test_named_settings_win_over_those_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "net.toml").write_text('[calibration]\nmethod = "mse"\n')
    (tmp_path / "other.toml").write_text('[calibration]\nmethod = "minmax"\n')
    found = spec("--spec", str(tmp_path / "other.toml"), beside=tmp_path)
    assert found.calibration.method == "minmax"


@pytest.mark.parametrize(
    ("arguments", "precision"),
    [([], "int8"), (["--int8"], "int8"), (["--fp16"], "fp16"), (["--int8", "--fp16"], "int8")],
)
def test_precision_options(arguments: list[str], precision: str) -> None:
    assert target(*arguments).precision == precision


@pytest.mark.parametrize("also", [[], ["--int8"], ["--weights", "int4"]])
@pytest.mark.parametrize("other", ["fp32", "bf16"])
def test_two_precisions_for_the_rest_are_refused(also: list[str], other: str) -> None:
    with pytest.raises(UsageError, match=f"--fp16 and --high-precision {other} contradict each other"):
        target(*also, "--fp16", "--high-precision", other)
    assert target(*also, "--fp16", "--high-precision", "fp16").high_precision == "fp16"


@pytest.mark.parametrize("minimum", ["--min-shapes", "--minShapes"])
@pytest.mark.parametrize("optimum", ["--opt-shapes", "--optShapes"])
@pytest.mark.parametrize("maximum", ["--max-shapes", "--maxShapes"])
def test_shapes_are_written_as_for_trtexec_or_polygraphy(minimum: str, optimum: str, maximum: str) -> None:
    found = target(minimum, "a:1x3,b:[2]", optimum, "a:2x3", optimum, "b:4", maximum, "'a:0':[8, 3]")
    assert found.shapes == GivenShapes(
        min={"a": (1, 3), "b": (2,)}, opt={"a": (2, 3), "b": (4,)}, max={"a:0": (8, 3)}
    )


def test_one_input_has_one_shape_of_a_kind() -> None:
    with pytest.raises(UsageError, match="gives shapes for 'a' twice"):
        target("--opt-shapes", "a:1", "--opt-shapes", "a:2")


@pytest.mark.parametrize("text", ["8.9", "89", "sm_89", "SM89", " 8.9 "])
def test_compute_capabilities_may_be_written_in_any_way(text: str) -> None:
    assert target("--compute-capability", text).compute_capabilities == ("8.9",)


def test_compute_capabilities_are_repeatable() -> None:
    found = target("--compute-capability", "sm_120", "--compute-capability", "7.5")
    assert found.compute_capabilities == ("12.0", "7.5")


@pytest.mark.parametrize("text", ["", "8", "8.9.1", "ampere", "sm_8.x", "1234"])
def test_what_is_no_compute_capability_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a compute capability; write 8\.9, 89 or sm_89"):
        target("--compute-capability", text)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("1k", 1 << 10),
        ("512M", 512 << 20),
        ("512MB", 512 << 20),
        ("512 MiB", 512 << 20),
        ("1.5G", 3 << 29),
        ("4GiB", 4 << 30),
    ],
)
def test_a_workspace_has_a_unit(text: str, num_bytes: int) -> None:
    assert target("--workspace", text).workspace_bytes == num_bytes


@pytest.mark.parametrize("option", ["--workspace", "--calib-memory"])
def test_a_size_that_no_memory_has_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="' is more than any memory; write bytes, or a number with K"):
        (target if option == "--workspace" else spec)(option, "9" * 400)


@pytest.mark.parametrize("text", ["much", "-1", "1e9", "4T", "M", "1.5.2G"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size; write bytes, or a number with K, M or G"):
        target("--workspace", text)


@pytest.mark.parametrize(
    ("arguments", "op_types"),
    [
        ([], DEFAULT_OP_TYPES),
        (["--op-types", "Conv"], ("Conv",)),
        (["--op-types", "Conv, ConvTranspose"], ("Conv", "ConvTranspose")),
    ],
)
def test_op_types_have_commas_between(arguments: list[str], op_types: tuple[str, ...]) -> None:
    assert target(*arguments).op_types == op_types


def test_backend_and_precision_of_the_rest() -> None:
    found = target("--backend", "onnxruntime", "--high-precision", "fp32")
    assert (found.backend, found.high_precision) == ("onnxruntime", "fp32")


@pytest.mark.parametrize("way", ["auto", "explicit", "implicit"])
def test_the_way_of_quantization(way: str) -> None:
    assert target("--quantization", way).quantization == way


def test_options_of_the_builder(tmp_path: Path) -> None:
    found = target(
        "--timing-cache", str(tmp_path / "t.cache"), "--builder-optimization-level", "0",
        "--hardware-compatibility", "ampere+", "--version-compatible",
    )  # fmt: skip
    assert found.options == BuilderOptions(tmp_path / "t.cache", 0, "ampere+", version_compatible=True)
    assert target().options == BuilderOptions()


def test_a_timing_cache_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*absent for the timing cache$"):
        target("--timing-cache", str(tmp_path / "absent" / "t.cache"))


@pytest.mark.parametrize(
    ("arguments", "repairs"),
    [
        ([], REPAIRS),
        (["--repair", "none"], ()),
        (["--repair", "auto,adaround"], (*REPAIRS, "adaround")),
        (["--repair", "bias, smooth", "--repair", "weights"], ("bias", "smooth", "weights")),
    ],
)
def test_repairs_are_repeatable_or_have_commas_between(
    arguments: list[str], repairs: tuple[str, ...]
) -> None:
    assert spec(*arguments).quantization.repairs == repairs


def test_scales_and_zero_points_are_asked_for() -> None:
    found = spec("--weight-granularity", "per-tensor", "--activations", "asymmetric").quantization
    assert (found.weight_granularity, found.activations) == ("per-tensor", "asymmetric")
