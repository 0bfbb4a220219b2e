"""Options that several commands share, and the settings that they make up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from trtq.calibrators import METHODS, parameters_of
from trtq.errors import UsageError
from trtq.models.spec import ModelSpec, read_spec
from trtq.pipeline.calibrate import spec_beside
from trtq.pipeline.engine import BACKENDS
from trtq.pipeline.engine.profiles import GivenShapes, Shape, parse_shapes
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES
from trtq.pipeline.target import Target

F = TypeVar("F", bound=Callable[..., Any])
_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns one decorator for several options, shown in their order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


model_argument = click.argument("model", type=click.Path(path_type=Path))
spec_option = click.option(
    "--spec", type=click.Path(path_type=Path), help="Settings of the model.  [default: model.toml beside it]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
talk_options = group(
    click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only."),
    click.option(
        "-v", "--verbose", is_flag=True, help="Name the layers that are kept; show TensorRT's warnings."
    ),
)
calibration_options = group(
    click.option(
        "--calib-data",
        metavar="DATA",
        help="An .npz or .npy with a leading sample axis, a folder of .npz (one feed each), a folder of "
        "images, script.py:function, or a .json of inputs saved by Polygraphy.",
    ),
    click.option("--calib-method", type=click.Choice(list(METHODS)), help="How ranges are estimated."),
    click.option("--percentile", type=float, help="For the method percentile.  [default: 99.99]"),
    click.option("--num-bins", type=int, help="For entropy: bins of its histogram.  [default: 2048]"),
    click.option("--num-levels", type=int, help="For entropy: quantized levels.  [default: 128]"),
    click.option(
        "--max-clipped", type=float, help="For entropy: share of values it may clip.  [default: 0.0001]"
    ),
    click.option("--num-candidates", type=int, help="For mse: clips to try.  [default: 120]"),
    click.option(
        "--smallest",
        type=float,
        help="For mse: the smallest clip, as a share of the largest.  [default: 0.02]",
    ),
    click.option("--calib-batch-size", type=int, help="Samples a calibration batch.  [default: 8]"),
    click.option(
        "--calib-samples",
        type=int,
        help="Use only so many samples, rounded up to whole batches.  [default: all]",
    ),
    click.option(
        "--random-data", is_flag=True, help="Calibrate with random numbers: the accuracy is meaningless."
    ),
)
layer_options = group(
    click.option(
        "--skip",
        multiple=True,
        metavar="REGEX",
        help="Do not quantize these nodes (repeatable; adds to model.toml).",
    ),
    click.option(
        "--op-types",
        metavar="TYPES",
        help=f"Types of nodes to quantize, with commas between.  [default: {','.join(DEFAULT_OP_TYPES)}]",
    ),
)
precision_options = group(
    click.option(
        "--keep-fp32",
        multiple=True,
        metavar="REGEX",
        help="Keep these nodes FP32 (repeatable; adds to model.toml).",
    ),
    click.option(
        "--high-precision",
        type=click.Choice(["auto", "fp16", "fp32"]),
        default="auto",
        show_default=True,
        help="Precision of what is not quantized; auto is fp16 for TensorRT.",
    ),
)
evaluation_options = group(
    click.option("--eval-data", metavar="DATA", help="Data to compare on.  [default: the calibration data]"),
    click.option(
        "--labels", metavar="NAME|FILE.npy", help="Class indices: an array of --eval-data, or a .npy file."
    ),
    click.option("--eval-output", metavar="NAME", help="The output that the labels belong to."),
    click.option(
        "--eval-samples", type=int, help="Compare only so many samples.  [default: all with labels, else 128]"
    ),
)
gate_options = group(
    click.option("--min-cosine", type=float, help="Gate: smallest cosine of any output.  [default: 0.99]"),
    click.option("--max-drop", type=float, help="Gate: points of accuracy that may be lost.  [default: 1]"),
)
target_options = group(
    click.option(
        "--backend",
        type=click.Choice(["auto", *BACKENDS]),
        default="auto",
        show_default=True,
        help="Who builds.",
    ),
    click.option(
        "--compute-capability",
        multiple=True,
        metavar="X.Y",
        help="Target GPU, such as 8.9 (repeatable).  [default: the backend's: Ampere and newer]",
    ),
    click.option("--workspace", metavar="SIZE", help="Scratch memory limit, such as 512M or 4G."),
    *(
        click.option(
            f"--{kind}-shapes",
            f"--{kind}Shapes",
            f"{kind}_shapes",
            multiple=True,
            metavar="NAME:DIMS",
            help=f"The {word} shapes of dynamic inputs: name:1x3x224x224 or name:[1,3,224,224].",
        )
        for kind, word in (("min", "smallest"), ("opt", "usual"), ("max", "largest"))
    ),
)


def spec_from(model: Path, given: Mapping[str, Any]) -> ModelSpec:
    """Returns the settings file's content with the options of the command line in their places."""
    spec = read_spec(given["spec"]) if given.get("spec") is not None else spec_beside(model)
    calibration = _with(
        spec.calibration,
        data=given.get("calib_data"),
        method=given.get("calib_method"),
        **{name: given.get(name) for method in METHODS.values() for name in parameters_of(method)},
        batch_size=given.get("calib_batch_size"),
        samples=given.get("calib_samples"),
    )
    if given.get("percentile") is not None and calibration.method != "percentile":
        if given.get("calib_method") is not None:
            raise UsageError(f"--percentile is for --calib-method percentile, not {calibration.method}")
        calibration = replace(calibration, method="percentile")
    evaluation = spec.evaluation
    if given.get("eval_data") is not None and (evaluation.labels or "").endswith(".npy"):
        evaluation = replace(evaluation, labels=None)  # one a sample of the data that is replaced
    evaluation = _with(
        evaluation,
        data=given.get("eval_data"),
        labels=given.get("labels"),
        output=given.get("eval_output"),
        samples=given.get("eval_samples"),
    )
    return replace(
        spec,
        calibration=calibration,
        evaluation=evaluation,
        accuracy=_with(spec.accuracy, min_cosine=given.get("min_cosine"), max_drop=given.get("max_drop")),
        layers=replace(
            spec.layers,
            skip=(*spec.layers.skip, *given.get("skip", ())),
            keep_fp32=(*spec.layers.keep_fp32, *given.get("keep_fp32", ())),
        ),
    )


def target_from(given: Mapping[str, Any]) -> Target:
    """Returns the target that the options describe."""
    op_types = given.get("op_types")
    return Target(
        precision="fp16" if given.get("fp16") and not given.get("int8") else "int8",
        high_precision=given.get("high_precision", "auto"),
        backend=given.get("backend", "auto"),
        compute_capabilities=tuple(_capability(text) for text in given.get("compute_capability", ())),
        workspace_bytes=_num_bytes(given["workspace"]) if given.get("workspace") else None,
        shapes=GivenShapes(*(_shapes(given.get(f"{kind}_shapes", ())) for kind in ("min", "opt", "max"))),
        op_types=tuple(name.strip() for name in op_types.split(",")) if op_types else DEFAULT_OP_TYPES,
        requantize=given.get("requantize", False),
    )


T = TypeVar("T")


def _with(settings: T, **given: Any) -> T:
    """Returns the settings with what was given; None was not."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})  # type: ignore[type-var]


def _shapes(texts: tuple[str, ...]) -> dict[str, Shape]:
    return parse_shapes(",".join(texts)) if texts else {}


def _capability(text: str) -> str:
    found = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no compute capability; write 8.9, 89 or sm_89")
    return f"{found[1]}.{found[2]}"


def _num_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([BKMG]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise UsageError(f"{text!r} is no size; write bytes, or a number with K, M or G")
    return int(float(found[1]) * _UNITS[found[2].upper()])
