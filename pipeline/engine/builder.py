"""A TensorRT builder at work, of any flavour: `tensorrt` 8.6 to 11 and `tensorrt_rtx`.

Reads a request, leaves a plan and an answer. What it logs goes to a file line by line, so that the last words
before a crash survive: several faults of the builder are segmentation faults, so it works in a process of its
own wherever it can. What a flavour can do is asked of its names, not of its version.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from trtq.errors import ArtifactError, BuildError, ModelError, TrtqError, UsageError
from trtq.files import lock_file, read_file, write_atomically
from trtq.pipeline.engine.kernels import list_nodes
from trtq.pipeline.engine.plugins import load_plugins

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt

_HARDWARE = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_MOST_REFUSALS = 8
_DTYPES = {"fp16": "HALF", "fp32": "FLOAT"}


def main(folder: str) -> None:
    """Builds what `request.json` in the folder asks for; leaves `plan`, `answer.json`, `build.log`."""
    place = Path(folder)
    try:
        request = json.loads((place / "request.json").read_text())
        try:
            answer = build(importlib.import_module(request["module"]), request, place)
        except TrtqError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        (place / "answer.json").write_text(json.dumps(answer))
    except OSError as error:  # no room, or a library that cannot be loaded
        sys.exit(f"{error} (at work in {folder})")


def build(trt: ModuleType, request: Mapping[str, Any], place: Path, calibrator: Any = None) -> dict[str, str]:
    """Returns what the builder says of the layers of the engine, whose plan it leaves.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        request: As `trtq.pipeline.engine.process.to_json` makes it.
        place: The folder for `plan` and `build.log`.
        calibrator: For implicit quantization: one of `trtq.calibrators.tensorrt`.

    Raises:
        ModelError, UsageError, ArtifactError, BuildError: As of `trtq.pipeline.engine.process.run`.
    """
    with (place / "build.log").open("w") as log:
        return _build(trt, request, place, log, calibrator)


def combine_network_flags(trt: ModuleType, precisions: tuple[str, ...] | list[str]) -> int:
    """Returns the flags of `create_network`.

    Strongly typed where the graph's types rule; TensorRT 11 and TensorRT-RTX always are, and want no flag.
    TensorRT 8 needs a flag that the batch is a dimension.
    """
    flags, known = 0, trt.NetworkDefinitionCreationFlag
    if not hasattr(known, "EXPLICIT_BATCH"):
        return flags
    flags |= 1 << int(known.EXPLICIT_BATCH)
    if not precisions and hasattr(known, "STRONGLY_TYPED"):
        flags |= 1 << int(known.STRONGLY_TYPED)
    return flags


def _build(
    trt: ModuleType, request: Mapping[str, Any], place: Path, log: IO[str], calibrator: Any
) -> dict[str, str]:
    logger, layers = _logger(trt, log)
    load_plugins(trt, logger, request["plugins"])
    product = request["product"]
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the bindings' words for a null pointer
        raise BuildError(f"{product} gives no builder; see nvidia-smi") from error
    network = builder.create_network(combine_network_flags(trt, request["precisions"]))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, network, request)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_options(trt, config, request)
    _set_targets(trt, config, request)
    for precision in request["precisions"]:  # without any, the graph's types rule
        config.set_flag(getattr(trt.BuilderFlag, precision.upper()))
    if request["kept"]:
        _keep(trt, network, config, request["kept"])
    timing_cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    if timing_cache is not None:
        _load_timing_cache(config, timing_cache, product)
    plan = None
    if _add_profiles(builder, network, config, request, calibrator):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"{product} could not build {Path(request['model']).name}")
    (place / "plan").write_bytes(plan)
    if timing_cache is not None:
        _save_timing_cache(config, timing_cache, log)
    if request["inspects"]:
        return {"inspector": _inspect(trt, logger, bytes(plan))}
    return {"layers": layers[-1] if layers else ""}


def _parse(
    parser: tensorrt.OnnxParser, network: tensorrt.INetworkDefinition, request: Mapping[str, Any]
) -> None:
    refusals: list[str] = []
    if not parser.parse_from_file(request["model"]):
        refusals = [_show_refusal(parser.get_error(index)) for index in range(parser.num_errors)]
    elif not network.num_outputs:  # the parser takes an empty file for an empty network
        refusals = ["the network has no outputs"]
    if refusals:
        shown = "; ".join(dict.fromkeys(refusals[:_MOST_REFUSALS]))
        more = len(refusals) - _MOST_REFUSALS
        shown += f"; and {more} more" if more > 0 else ""
        raise ModelError(f"{request['product']} does not take this model: {shown}")


def _set_options(trt: ModuleType, config: tensorrt.IBuilderConfig, request: Mapping[str, Any]) -> None:
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["optimization_level"] is not None:
        config.builder_optimization_level = request["optimization_level"]
    if request["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    wanted = _HARDWARE.get(request["hardware_compatibility"])
    if wanted is not None:
        levels = getattr(trt, "HardwareCompatibilityLevel", None)
        if not hasattr(levels, wanted):
            option = f"hardware compatibility {request['hardware_compatibility']}"
            raise UsageError(f"{request['product']} has no {option}; leave it out, or use a newer TensorRT")
        config.hardware_compatibility_level = getattr(levels, wanted)


def _set_targets(trt: ModuleType, config: Any, request: Mapping[str, Any]) -> None:
    """Sets the GPUs to build for: only TensorRT-RTX builds for another than that of this machine."""
    targets = list(dict.fromkeys(request["compute_capabilities"]))
    if not targets:
        return
    members = trt.ComputeCapability.__members__.items()
    known = {f"{name[2:-1]}.{name[-1]}": value for name, value in members if name.startswith("SM")}
    if unknown := [target for target in targets if target not in known]:
        target = f"compute capability {unknown[0]}"
        raise UsageError(f"{request['product']} cannot build for {target}; it has {', '.join(known)}")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _keep(
    trt: ModuleType,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    kept: Mapping[str, str],
) -> None:
    """Binds the layers of these nodes to a precision, with their outputs."""
    floats = (trt.DataType.FLOAT, trt.DataType.HALF)
    passed = (trt.LayerType.CONSTANT, trt.LayerType.SHAPE)
    for layer in map(network.get_layer, range(network.num_layers)):
        nodes = tuple(list_nodes(layer.metadata)) or (layer.name,)
        precision = next((kept[node] for node in nodes if node in kept), None)
        outputs = {index: layer.get_output(index) for index in range(layer.num_outputs)}
        made = {index: out for index, out in outputs.items() if out is not None and out.dtype in floats}
        if precision is None or layer.type in passed or not made:
            continue
        layer.precision = getattr(trt.DataType, _DTYPES[precision])
        for index, output in made.items():
            if not output.is_network_output:
                layer.set_output_type(index, layer.precision)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _add_profiles(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    request: Mapping[str, Any],
    calibrator: Any,
) -> bool:
    """Sets the shapes of dynamic inputs, and the calibrator with the one shape that it calibrates with.

    Returns:
        Whether TensorRT takes them: else it would calibrate with other shapes.
    """
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    for wanted in request["profiles"]:
        profile = builder.create_optimization_profile()
        for name, shapes in wanted.items():
            is_shape = name in inputs and inputs[name].is_shape_tensor
            set_shape = profile.set_shape_input if is_shape else profile.set_shape
            set_shape(name, *(tuple(shapes[kind]) for kind in ("min", "opt", "max")))
        if config.add_optimization_profile(profile) < 0:
            return False
    if calibrator is not None:
        config.int8_calibrator = calibrator
    if calibrator is None or not request["calibration_shapes"]:
        return True
    profile = builder.create_optimization_profile()
    for name, shape in request["calibration_shapes"].items():
        profile.set_shape(name, *[tuple(shape)] * 3)
    return bool(config.set_calibration_profile(profile))


def _load_timing_cache(config: tensorrt.IBuilderConfig, path: Path, product: str) -> None:
    try:
        content = read_file(path) if path.exists() else b""
    except OSError as error:
        raise ArtifactError(f"cannot read the timing cache {path}: {error.strerror or error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):  # False: of this GPU only
        raise UsageError(
            f"{path} is not a timing cache of {product} on this GPU; give another file with --timing-cache"
        )


def _save_timing_cache(config: tensorrt.IBuilderConfig, path: Path, log: IO[str]) -> None:
    """Adds the new timings to what is in the file by now: another build may have written meanwhile."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with lock_file(path.with_name(f".{path.name}.lock")):
            if path.exists():
                present = config.create_timing_cache(path.read_bytes())
                if present is None or not cache.combine(present, False):
                    raise ArtifactError(f"{path} has become one of another TensorRT or GPU")
            write_atomically(path, bytes(cache.serialize()))
    except (ArtifactError, OSError) as error:  # the engine is worth more than the timings
        log.write(f"WARNING: the timing cache was not saved: {error}\n")


def _inspect(trt: ModuleType, logger: tensorrt.ILogger, plan: bytes) -> str:
    """Returns what the engine says of its layers, as JSON; empty if it cannot be loaded here."""
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # a version-compatible engine brings its runtime; it is our own
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _logger(trt: Any, log: IO[str]) -> tuple[Any, list[str]]:
    layers: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.lstrip().startswith("Layers:"):
                layers.append(message)
            elif severity <= trt.ILogger.Severity.WARNING:
                with suppress(OSError):  # a full disk is an error when the plan is written
                    log.write(f"{severity.name}: {' '.join(message.split())}\n")
                    log.flush()

    return Logger(), layers


def _show_refusal(error: tensorrt.ParserError) -> str:
    text = error.desc()
    if error.code().name == "UNSUPPORTED_NODE" and text == "false":
        text = "this operator is not supported"
    op_type = error.node_operator()
    return f"node {error.node_name()!r} ({op_type}): {text}" if op_type else text
