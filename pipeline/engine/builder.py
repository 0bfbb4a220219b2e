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

from trtq.errors import ArtifactError
from trtq.files import lock_file, write_atomically
from trtq.pipeline.engine.kernels import list_nodes

if TYPE_CHECKING:
    from types import ModuleType

    import tensorrt

_HARDWARE = {"ampere+": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
_DTYPES = {"fp16": "HALF", "fp32": "FLOAT"}


class RequestError(Exception):
    """The answer to a request that cannot be met."""

    def __init__(self, **answer: Any) -> None:
        super().__init__(answer)
        self.answer = answer


def main(folder: str) -> None:
    """Builds what `request.json` in the folder asks for; leaves `plan`, `answer.json`, `build.log`."""
    place = Path(folder)
    try:
        request = json.loads((place / "request.json").read_text())
        answer = build(importlib.import_module(request["module"]), request, place)
        (place / "answer.json").write_text(json.dumps(answer))
    except OSError as error:  # no room, or a library that cannot be loaded
        sys.exit(f"{error} (at work in {folder})")


def build(trt: ModuleType, request: Mapping[str, Any], place: Path, calibrator: Any = None) -> dict[str, Any]:
    """Returns what came of a request: the layers of the engine, or why there is none.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`.
        request: As `trtq.pipeline.engine.process.to_json` makes it.
        place: The folder for `plan` and `build.log`.
        calibrator: For implicit quantization: one of `trtq.calibrators.tensorrt`.
    """
    with (place / "build.log").open("w") as log:
        try:
            return _build(trt, request, place, log, calibrator)
        except RequestError as error:
            return error.answer


def combine_network_flags(trt: ModuleType, precisions: tuple[str, ...] | list[str]) -> int:
    """Returns the flags of `create_network`.

    Strongly typed where the graph's types rule; TensorRT 11 and TensorRT-RTX always are, and want no flag.
    TensorRT 8 wants to be told that the batch is a dimension.
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
) -> dict[str, Any]:
    logger, layers = _logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the bindings' words for a null pointer
        raise RequestError(no_builder=str(error)) from error
    network = builder.create_network(combine_network_flags(trt, request["precisions"]))
    parser = trt.OnnxParser(network, logger)
    _parse(parser, network, request["model"])
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _set_options(trt, config, request)
    _set_targets(trt, config, request["compute_capabilities"])
    _allow(trt, config, request["precisions"])
    if request["kept"]:
        _keep(trt, network, config, request["kept"])
    if request["profiles"]:
        _add_profile(builder, network, config, request["profiles"])
    if calibrator is not None:
        _calibrate(builder, config, calibrator, request["calibration_shapes"])
    timing_cache = Path(request["timing_cache"]) if request["timing_cache"] else None
    if timing_cache is not None:
        _load_timing_cache(config, timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RequestError(build_failed=True)
    (place / "plan").write_bytes(plan)
    if timing_cache is not None:
        _save_timing_cache(config, timing_cache, log)
    if request["inspects"]:
        return {"inspector": _inspect(trt, logger, bytes(plan))}
    return {"layers": layers[-1] if layers else ""}


def _parse(parser: tensorrt.OnnxParser, network: tensorrt.INetworkDefinition, model: str) -> None:
    if not parser.parse_from_file(model):
        raise RequestError(parse_errors=[_parse_error(parser.get_error(i)) for i in range(parser.num_errors)])
    if not network.num_outputs:  # the parser takes an empty file for an empty network
        told = {"node": "", "op_type": "", "code": "", "text": "the network has no outputs"}
        raise RequestError(parse_errors=[told])


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
            raise RequestError(no_option=f"hardware compatibility {request['hardware_compatibility']}")
        config.hardware_compatibility_level = getattr(levels, wanted)


def _set_targets(trt: ModuleType, config: Any, compute_capabilities: list[str]) -> None:
    """Sets the GPUs to build for: only TensorRT-RTX builds for another than that of this machine."""
    if not compute_capabilities:
        return
    known = {
        name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")
    }
    targets = {f"SM{wanted.replace('.', '')}": wanted for wanted in compute_capabilities}
    if unknown := [wanted for target, wanted in targets.items() if target not in known]:
        raise RequestError(unknown_target=unknown[0], targets=list(known))
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(known[target], index)


def _allow(trt: ModuleType, config: tensorrt.IBuilderConfig, precisions: list[str]) -> None:
    """Lets the builder choose these precisions; without any, the graph's types rule."""
    for precision in precisions:
        config.set_flag(getattr(trt.BuilderFlag, precision.upper()))


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
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        if (
            precision is None
            or layer.type in passed
            or not any(out and out.dtype in floats for out in outputs)
        ):
            continue
        layer.precision = getattr(trt.DataType, _DTYPES[precision])
        for index, output in enumerate(outputs):
            if output is not None and output.dtype in floats and not output.is_network_output:
                layer.set_output_type(index, layer.precision)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


def _add_profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    profiles: Mapping[str, Any],
) -> None:
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        tensor = inputs.get(name)
        is_shape = tensor is not None and tensor.is_shape_tensor
        set_shape = profile.set_shape_input if is_shape else profile.set_shape
        set_shape(name, *(tuple(shapes[kind]) for kind in ("min", "opt", "max")))
    if config.add_optimization_profile(profile) < 0:
        raise RequestError(build_failed=True)


def _calibrate(
    builder: tensorrt.Builder,
    config: tensorrt.IBuilderConfig,
    calibrator: Any,
    shapes: Mapping[str, list[int]],
) -> None:
    """Sets the calibrator and, for dynamic inputs, the one shape that TensorRT calibrates with."""
    config.int8_calibrator = calibrator
    if shapes:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, *[tuple(shape)] * 3)
        if not config.set_calibration_profile(profile):  # else it calibrates with another shape
            raise RequestError(build_failed=True)


def _load_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise RequestError(unreadable_timing_cache=f"{path}: {error.strerror or error}") from error
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):  # False: of this GPU only
        raise RequestError(foreign_timing_cache=str(path))


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
    told: str = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return told


def _logger(trt: Any, log: IO[str]) -> tuple[Any, list[str]]:
    layers: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.lstrip().startswith("Layers:"):
                layers.append(message)
            elif severity <= trt.ILogger.Severity.WARNING:
                with suppress(OSError):  # a full disk is told when the plan is written
                    log.write(f"{severity.name}: {' '.join(message.split())}\n")
                    log.flush()

    return Logger(), layers


def _parse_error(error: tensorrt.ParserError) -> dict[str, str]:
    return {
        "node": error.node_name(),
        "op_type": error.node_operator(),
        "code": error.code().name,
        "text": error.desc(),
    }
