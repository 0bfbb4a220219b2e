"""The TensorRT-RTX builder in a process of its own: two of its faults are segmentation faults.

Reads a request, writes a plan and an answer. What it logs goes to a file line by line, so that the last words
before a crash survive.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any


def main(folder: str) -> None:
    """Builds what `request.json` in the folder asks for; leaves `plan`, `answer.json`, `build.log`."""
    place = Path(folder)
    request = json.loads((place / "request.json").read_text())
    with (place / "build.log").open("w") as log:
        answer = _build(request, place, log)
    (place / "answer.json").write_text(json.dumps(answer))


def _build(request: dict[str, Any], place: Path, log: IO[str]) -> dict[str, Any]:
    import tensorrt_rtx as trt

    logger, layers = _logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        return {"parse_errors": [_parse_error(parser.get_error(i)) for i in range(parser.num_errors)]}
    if not network.num_outputs:
        return {
            "parse_errors": [{"node": "", "op_type": "", "code": "", "text": "the network has no outputs"}]
        }
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if request["profiles"] and not _add_profile(builder, network, config, request["profiles"]):
        return {"build_failed": True}
    known = {
        name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")
    }
    targets = {f"SM{wanted.replace('.', '')}": wanted for wanted in request["compute_capabilities"]}
    if unknown := [wanted for target, wanted in targets.items() if target not in known]:
        return {"unknown_target": unknown[0], "targets": list(known)}
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(known[target], index)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return {"build_failed": True}
    (place / "plan").write_bytes(plan)
    return {"layers": layers[-1] if layers else ""}


def _logger(trt: Any, log: IO[str]) -> tuple[Any, list[str]]:
    layers: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if message.lstrip().startswith("Layers:"):
                layers.append(message)
            elif severity <= trt.ILogger.Severity.WARNING:
                log.write(f"{severity.name}: {' '.join(message.split())}\n")
                log.flush()

    return Logger(), layers


def _add_profile(builder: Any, network: Any, config: Any, profiles: dict[str, Any]) -> bool:
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        tensor = inputs.get(name)
        is_shape = tensor is not None and tensor.is_shape_tensor
        set_shape = profile.set_shape_input if is_shape else profile.set_shape
        set_shape(name, *(tuple(shapes[kind]) for kind in ("min", "opt", "max")))
    return bool(config.add_optimization_profile(profile) >= 0)


def _parse_error(error: Any) -> dict[str, str]:
    return {
        "node": error.node_name(),
        "op_type": error.node_operator(),
        "code": error.code().name,
        "text": error.desc(),
    }
