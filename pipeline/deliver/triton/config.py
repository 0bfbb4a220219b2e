"""What Triton is told of a model: `config.pbtxt`.

Source: `ModelConfig` in protobuf/model_config.proto of triton-inference-server/common, and the guide to the
model configuration of triton-inference-server/server.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtq import lazy
from trtq.errors import ArtifactError, UsageError
from trtq.models.signature import TensorSpec, names_samples, show_shape
from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.triton.pbtxt import DATA_TYPES, Message, name_data_type, to_text

PLATFORMS: Mapping[str, str] = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx"}
"""What Triton wants beside the backend's name; the Python backend has none."""
_BASIC = -1
"""The optimizations that keep each node, by the README of triton-inference-server/onnxruntime_backend."""
_OURS = re.compile(r"# Written by trtq package, sha256 (\w+)\.[^\n]*\n")


@dataclass(frozen=True, slots=True)
class TritonPort:
    """An input or output. `dims` has no batch axis where the model batches; -1 is open, () one value."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    def message(self) -> Message:
        """Returns what stands in the configuration: a single value of a batch is a reshaped [1]."""
        reshape: Message = {} if self.dims else {"reshape": {}}
        dims = self.dims or (1,)
        return {"name": self.name, "data_type": self.data_type, "dims": dims, **reshape}


_LARGEST = 2**31 - 1
"""What a number of Triton's configuration can be."""


@dataclass(frozen=True, slots=True)
class Serving:
    """How the server shall run a model.

    Attributes:
        max_batch: The largest batch; None: what the engine can, 0: requests are not joined.
        max_queue_delay_us: How long a request may wait for others to be joined with.
        instances: Copies of the model on each GPU (or the CPU), which run side by side.
        num_versions: How many of the newest versions are served; None: all.
    """

    max_batch: int | None = None
    max_queue_delay_us: int = 100
    instances: int = 1
    num_versions: int | None = 1

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--max-batch", self.max_batch, 0),
            ("--max-queue-delay", self.max_queue_delay_us, 0),
            ("--instances", self.instances, 1),
            ("--serve-versions", self.num_versions, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be at least {least}, got {value}")
            if value is not None and value > _LARGEST:
                raise UsageError(f"{name} must be at most {_LARGEST}, got {value}")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of one model.

    Attributes:
        name: Of the model, and of its folder.
        backend: "tensorrt", "onnxruntime" or "python".
        max_batch: The largest batch; 0: requests are not joined.
        inputs: In the model's order.
        outputs: In the model's order.
        preferred_batch: The size that the engine is made for; None: none in particular.
        serving: How the server shall run it.
        warmup: What runs before the first request, as Triton's `ModelWarmup` messages.
        parameters: What the model's code is told.
        comments: Lines for people.
        is_exact: Whether ONNX Runtime is to compute each node as it stands. Else it fuses Q/DQ into kernels
            that overflow on older x86 processors.
        num_profiles: How many optimization profiles the engine has; Triton takes the one that fits.
    """

    name: str
    backend: str
    max_batch: int
    inputs: tuple[TritonPort, ...]
    outputs: tuple[TritonPort, ...]
    preferred_batch: int | None = None
    serving: Serving = field(default_factory=Serving)
    warmup: tuple[Message, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()
    is_exact: bool = False
    num_profiles: int = 1

    def text(self) -> str:
        """Returns `config.pbtxt`; its first line tells whether someone has edited it since."""
        body = "".join(f"# {line}\n" for line in self.comments) + to_text(self.message())
        digest = hashlib.sha256(body.encode()).hexdigest()
        return f"# Written by trtq package, sha256 {digest}. Edit it freely: it is then kept.\n{body}"

    def message(self) -> Message:
        """Returns Triton's `ModelConfig`."""
        platform = PLATFORMS.get(self.backend)
        versions = self.serving.num_versions
        message: dict[str, Any] = {
            "name": self.name,
            **({"platform": platform} if platform else {}),
            "backend": self.backend,
            "max_batch_size": self.max_batch,
            "version_policy": {"all": {}} if versions is None else {"latest": {"num_versions": versions}},
            "input": [port.message() for port in self.inputs],
            "output": [port.message() for port in self.outputs],
            "instance_group": [self._instances()],
        }
        if self.is_exact:
            message["optimization"] = {"graph": {"level": _BASIC}}
        if self.max_batch > 1:
            preferred = [self.preferred_batch] if self.preferred_batch and self.preferred_batch > 1 else []
            message["dynamic_batching"] = {
                "preferred_batch_size": preferred,
                "max_queue_delay_microseconds": self.serving.max_queue_delay_us,
            }
        message["parameters"] = [
            {"key": key, "value": {"string_value": value}} for key, value in self.parameters.items()
        ]
        message["model_warmup"] = self.warmup
        return message

    def _instances(self) -> Message:
        kind = {"tensorrt": "KIND_GPU", "onnxruntime": "KIND_AUTO"}.get(self.backend, "KIND_CPU")
        profile = (
            {"profile": [str(number) for number in range(self.num_profiles)]}
            if self.backend == "tensorrt"
            else {}
        )
        return {"count": self.serving.instances, "kind": kind, **profile}


def list_ports(specs: Sequence[TensorSpec], *, batches: bool) -> tuple[TritonPort, ...]:
    """Returns inputs or outputs as Triton has them; with `batches` without the first axis, which it adds.

    Raises:
        ArtifactError: Triton has no such type, or refuses the shape.
    """
    ports = []
    for spec in specs:
        if spec.dtype not in DATA_TYPES:
            raise ArtifactError(
                f"{spec.name!r} is {spec.dtype}, which Triton does not have; cast it in the model"
            )
        dims = tuple(dim if isinstance(dim, int) else -1 for dim in spec.shape)[int(batches) :]
        if 0 in dims or (not dims and not batches):
            raise ArtifactError(
                f"{spec.name!r} has shape {show_shape(spec.shape)}; Triton takes neither empty tensors nor, "
                f"without a batch axis, single values; give it the shape (1)"
            )
        ports.append(TritonPort(spec.name, DATA_TYPES[spec.dtype], dims))
    return tuple(ports)


def find_largest_batch(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    profiles: Mapping[str, InputSpec],
    asked: int | None,
) -> tuple[int, str]:
    """Returns Triton's `max_batch_size`, and why it is 0 where it is.

    Triton joins requests along the first axis, so that must be the batch in every input and output: open
    everywhere, under one name, that of samples, as of `names_samples`. A batch that is asked for is taken
    where the axis is open, whatever its names.

    Raises:
        UsageError: A larger batch is asked for than the profile has, or any of a model that has none.
    """
    fixed = [spec for spec in (*inputs, *outputs) if not spec.shape or isinstance(spec.shape[0], int)]
    names = sorted({str(spec.shape[0]) for spec in (*inputs, *outputs) if spec.shape})
    why = ""
    if fixed:
        why = f"{fixed[0].name!r} is {show_shape(fixed[0].shape)}: its first axis is not a dynamic batch"
    elif asked is None and not _is_one_batch(names, (*inputs, *outputs)):
        why = f"the first axes are {', '.join(names)}: not one batch; --max-batch says that they are"
    most = min((profiles[spec.name].max[0] for spec in inputs if spec.name in profiles), default=1)
    if asked is None or asked == 0:
        return (0, why or "--max-batch 0") if why or asked == 0 else (most, "")
    if why or asked > most:
        raise UsageError(f"--max-batch {asked} cannot be: {why or f'the profile ends at {most}'}")
    return asked, ""


def _is_one_batch(names: Sequence[str], specs: Iterable[TensorSpec]) -> bool:
    """Returns whether the first axes have one name, that of samples, and no other axis bears it."""
    is_elsewhere = any(name in spec.shape[1:] for name in names for spec in specs)
    return len(names) == 1 and names_samples(names[0]) is not False and not is_elsewhere


def is_edited(text: str) -> bool:
    """Returns whether a configuration is not, or not any more, as trtq wrote it."""
    first = _OURS.match(text)
    return first is None or hashlib.sha256(text[first.end() :].encode()).hexdigest() != first[1]


def list_differences(existing: Any, config: ModelConfig) -> list[str]:
    """Returns how a configuration that was parsed is of another model; what it lacks is not compared."""
    wanted = {"backend": config.backend, "platform": PLATFORMS.get(config.backend, "")}
    found = [
        f"{key} is {theirs}, not {ours}"
        for key, ours in wanted.items()
        if existing.HasField(key) and (theirs := getattr(existing, key)) != ours
    ]
    if (existing.max_batch_size > 0) != (config.max_batch > 0):
        found.append(f"max_batch_size is {existing.max_batch_size}, not {config.max_batch}")
    for key, theirs, ports in (
        ("input", existing.input, config.inputs),
        ("output", existing.output, config.outputs),
    ):
        found += _different_ports(key, theirs, ports) if theirs else []
    return found


def _different_ports(kind: str, existing: Iterable[Any], ports: Sequence[TritonPort]) -> list[str]:
    theirs = {port.name: f"{name_data_type(port)} {list(port.dims)}" for port in existing}
    ours = {port.name: f"{port.data_type} {list(port.dims or (1,))}" for port in ports}
    found = [f"{kind} {name!r} is missing there" for name in ours if name not in theirs]
    found += [f"{kind} {name!r} is not of this model" for name in theirs if name not in ours]
    both = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    return found + [f"{kind} {name!r} is {theirs[name]}, not {ours[name]}" for name in both]


def validate(text: str) -> bool:
    """Returns whether Triton's own protobuf was there to read the configuration with.

    Raises:
        ArtifactError: It does not take it.
    """
    if any(importlib.util.find_spec(name) is None for name in ("tritonclient", "grpc")):
        return False
    schema = lazy.require("tritonclient.grpc.model_config_pb2", "triton", "validating config.pbtxt")
    text_format = lazy.require("google.protobuf.text_format", "triton", "validating config.pbtxt")
    try:
        text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise ArtifactError(f"Triton would refuse this configuration: {error}") from error
    return True
