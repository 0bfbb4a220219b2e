"""Options that several commands share, and the settings that they make up."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from trtq.calibrators import METHODS, list_parameters
from trtq.cli.sizes import parse_bytes
from trtq.errors import UsageError
from trtq.models.spec import AUTO, CROSS_ENTROPY, REPAIRS, SLOW_REPAIRS, ModelSpec, read_spec
from trtq.pipeline.calibrate.data import find_spec
from trtq.pipeline.engine.backend import BuilderOptions, Precision
from trtq.pipeline.engine.profiles import GivenShapes, Shape, parse_shapes
from trtq.pipeline.engine.target import HighPrecision, Target
from trtq.pipeline.formats import WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.blocks import BLOCK_SIZES
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.placement import DEFAULT_OP_TYPES

F = TypeVar("F", bound=Callable[..., Any])


def combine_options(*options: Callable[[F], F]) -> Callable[[F], F]:
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
talk_options = combine_options(
    click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only."),
    click.option(
        "-v", "--verbose", is_flag=True, help="Name the layers that are kept; show TensorRT's warnings."
    ),
)
_calib_data_option = click.option(
    "--calib-data",
    metavar="DATA",
    help="An .npz or .npy with a leading sample axis, a folder of .npz (one feed each), a folder of "
    "images, script.py:function, or a .json of inputs saved by Polygraphy.",
)
_calib_size_options = combine_options(
    click.option("--calib-batch-size", type=int, help="Samples a calibration batch.  [default: 8]"),
    click.option(
        "--calib-samples",
        type=int,
        help="Use only so many samples, rounded up to whole batches.  [default: all]",
    ),
)
data_options = combine_options(_calib_data_option, _calib_size_options)
calibration_options = combine_options(
    _calib_data_option,
    click.option(
        "--calib-method",
        type=click.Choice([AUTO, *METHODS, CROSS_ENTROPY]),
        help="How ranges are estimated; auto: the best on calibration data held back; cross-entropy: for "
        "what a softmax gets, entropy for the rest.  [default: auto]",
    ),
    click.option("--percentile", type=float, help="For the method percentile.  [default: 99.99]"),
    click.option("--num-bins", type=int, help="For entropy: bins of its histogram.  [default: 2048]"),
    click.option("--num-levels", type=int, help="For entropy: quantized levels.  [default: 128]"),
    click.option(
        "--max-clipped", type=float, help="For entropy: share of values it may clip.  [default: 0.0001]"
    ),
    click.option("--num-candidates", type=int, help="For mse and cosine: clips to try.  [default: 120]"),
    click.option(
        "--smallest",
        type=float,
        help="For mse and cosine: the smallest clip, as a share of the largest.  [default: 0.02]",
    ),
    _calib_size_options,
    click.option(
        "--calib-device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where the float model runs while it is calibrated.  [default: cpu]",
    ),
    click.option(
        "--calib-memory",
        metavar="SIZE",
        help="What the observed tensors may take, such as 512M or 4G; if they do not fit at once, there are "
        "several passes over the data.  [default: half of what is free]",
    ),
    click.option(
        "--random-data", is_flag=True, help="Calibrate with random numbers: the accuracy is meaningless."
    ),
)
pass_options = combine_options(
    click.option(
        "--shard", metavar="I/N", help="Observe the I-th of N parts of the data; needs --save-statistics."
    ),
    click.option(
        "--checkpoint",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Keep here what was seen so far; the same command goes on from it after an interruption.",
    ),
    click.option(
        "--checkpoint-seconds",
        type=float,
        default=60.0,
        show_default=True,
        help="How often the checkpoint is written.",
    ),
)
repair_option = click.option(
    "--repair",
    multiple=True,
    metavar="NAMES",
    help=f"What may be done to the model where it pays on calibration data held back: auto (all), none, or "
    f"{', '.join(REPAIRS)} (repeatable, or with commas between); {', '.join(SLOW_REPAIRS)} only if "
    f"named, also as auto,{SLOW_REPAIRS[0]}.  [default: auto]",
)
layer_options = combine_options(
    click.option(
        "--skip",
        multiple=True,
        metavar="REGEX",
        help="Do not quantize these nodes (repeatable; adds to model.toml).",
    ),
    click.option(
        "--force",
        multiple=True,
        metavar="REGEX",
        help="Quantize these nodes although a rule finds INT8 not worth it (repeatable; adds to model.toml).",
    ),
    click.option(
        "--op-types",
        metavar="TYPES",
        help="Types of nodes to quantize, with commas between; also ConvTranspose, Attention for the "
        f"MatMul of two activations, and Softmax for its input.  [default: {','.join(DEFAULT_OP_TYPES)}]",
    ),
)
precision_options = combine_options(
    click.option(
        "--keep-fp32",
        multiple=True,
        metavar="REGEX",
        help="Keep these nodes FP32 (repeatable; adds to model.toml).",
    ),
    click.option(
        "--high-precision",
        "--compute-dtype",
        "high_precision",
        type=click.Choice(["auto", "fp16", "bf16", "fp32"]),
        default="auto",
        show_default=True,
        help="Precision of what is not quantized; auto is fp16 for TensorRT. bf16 is for --weights alone.",
    ),
)
weight_options = combine_options(
    click.option(
        "--weights",
        type=click.Choice(list(WEIGHT_FORMATS)),
        help="Store weights in fewer bits. Alone, activations stay float; with --int8, convolutions and big "
        "products are INT8 and the other weights are stored so.",
    ),
    click.option(
        "--weight-method",
        type=click.Choice(WEIGHT_METHODS),
        help="For int4: rounding, the clip of least error, or GPTQ (needs data).  [default: mse]",
    ),
    click.option(
        "--block-size",
        type=click.Choice([str(size) for size in BLOCK_SIZES]),
        help="For int4 and nf4: elements to a scale; for a weight that it does not divide the half of it, a "
        "quarter, down to 16.  [default: 64]",
    ),
    click.option("--double-quant", is_flag=True, help="For nf4: hold the scales in 8 bits."),
    click.option(
        "--quantize-sensitive",
        is_flag=True,
        help="Store also the weights of lm_head, proj_out, norm_out and classifier heads in fewer bits.",
    ),
)
evaluation_options = combine_options(
    click.option("--eval-data", metavar="DATA", help="Data to compare on.  [default: the calibration data]"),
    click.option(
        "--labels", metavar="NAME|FILE.npy", help="Class indices: an array of --eval-data, or a .npy file."
    ),
    click.option("--eval-output", metavar="NAME", help="The output that the labels belong to."),
    click.option(
        "--eval-samples", type=int, help="Compare only so many samples.  [default: all with labels, else 128]"
    ),
)
gate_options = combine_options(
    click.option("--min-cosine", type=float, help="Gate: smallest cosine of any output.  [default: 0.99]"),
    click.option("--max-drop", type=float, help="Gate: points of accuracy that may be lost.  [default: 1]"),
    click.option(
        "--metric",
        metavar="NAME|SCRIPT:FUNCTION",
        help="Gate: top-1, top-5, or script.py:function called with (outputs, labels) of all samples; it "
        "returns 0 to 1, higher is better.  [default: top-1]",
    ),
)


def spec_from(model: Path, given: Mapping[str, Any]) -> ModelSpec:
    """Returns the settings file's content with the options of the command line in their places."""
    spec = read_spec(given["spec"]) if given.get("spec") is not None else find_spec(model)
    calibration = _with(
        spec.calibration,
        data=given.get("calib_data"),
        method=given.get("calib_method"),
        **{name: given.get(name) for method in METHODS.values() for name in list_parameters(method)},
        batch_size=given.get("calib_batch_size"),
        device=given.get("calib_device"),
        memory_bytes=parse_bytes(given["calib_memory"]) if given.get("calib_memory") else None,
        samples=given.get("calib_samples"),
    )
    if given.get("percentile") is not None and calibration.method != "percentile":
        if given.get("calib_method") is not None:
            raise UsageError(f"--percentile is for --calib-method percentile, not {calibration.method}")
        calibration = replace(calibration, method="percentile")
    repair = tuple(word.strip() for text in given.get("repair", ()) for word in text.split(","))
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
        quantization=_with(
            spec.quantization,
            repair=repair or None,
            weight_granularity=given.get("weight_granularity"),
            activations=given.get("activations"),
        ),
        evaluation=evaluation,
        accuracy=_with(
            spec.accuracy,
            min_cosine=given.get("min_cosine"),
            max_drop=given.get("max_drop"),
            metric=given.get("metric"),
        ),
        layers=replace(
            spec.layers,
            skip=(*spec.layers.skip, *given.get("skip", ())),
            keep_fp32=(*spec.layers.keep_fp32, *given.get("keep_fp32", ())),
            force=(*spec.layers.force, *given.get("force", ())),
        ),
    )


def target_from(given: Mapping[str, Any]) -> Target:
    """Returns the target that the options describe."""
    op_types = given.get("op_types")
    return Target(
        precision=_precision(given),
        high_precision=_high_precision(given),
        backend=given.get("backend", "auto"),
        compute_capabilities=tuple(_capability(text) for text in given.get("compute_capability", ())),
        workspace_bytes=parse_bytes(given["workspace"]) if given.get("workspace") else None,
        shapes=GivenShapes(*(_shapes(given.get(f"{kind}_shapes", ())) for kind in ("min", "opt", "max"))),
        op_types=tuple(name.strip() for name in op_types.split(",")) if op_types else DEFAULT_OP_TYPES,
        quantization=given.get("quantization", "auto"),
        auto=given.get("auto", False),
        options=BuilderOptions(
            given.get("timing_cache"),
            given.get("builder_optimization_level"),
            given.get("hardware_compatibility", "none"),
            given.get("version_compatible", False),
        ),
        weights=_weights(given),
        requantize=given.get("requantize", False),
    )


def _precision(given: Mapping[str, Any]) -> Precision:
    if given.get("int8"):
        return "int8"
    return "weights" if given.get("weights") else "fp16" if given.get("fp16") else "int8"


def _high_precision(given: Mapping[str, Any]) -> HighPrecision:
    wanted: HighPrecision = given.get("high_precision", "auto")
    if given.get("fp16") and wanted not in ("auto", "fp16"):
        raise UsageError(f"--fp16 and --high-precision {wanted} contradict each other; give one of them")
    return "fp16" if given.get("weights") and given.get("fp16") else wanted


def _weights(given: Mapping[str, Any]) -> WeightScheme | None:
    """Returns the weight scheme that the options describe; None without --weights."""
    form = given.get("weights")
    if form is None:
        alone = ("weight_method", "block_size", "double_quant", "quantize_sensitive")
        if found := next((name for name in alone if given.get(name)), None):
            raise UsageError(f"--{found.replace('_', '-')} is for weights of fewer bits; give --weights too")
        return None
    if not WEIGHT_FORMATS[form].block_sizes and given.get("block_size"):
        raise UsageError(
            f"--block-size is for int4 and nf4; {form.upper()} weights have one scale for each channel"
        )
    return WeightScheme(
        form,
        given.get("weight_method") or ("mse" if "mse" in WEIGHT_FORMATS[form].methods else "rtn"),
        int(given.get("block_size") or 64),
        given.get("double_quant", False),
        not given.get("quantize_sensitive", False),
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
