"""What runs before the first request, so that no user waits for kernels to be loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from trtq.models.spec import InputSpec
from trtq.pipeline.deliver.triton.config import Port
from trtq.pipeline.deliver.triton.pbtxt import DATA_TYPES, Message

_NUMPY = {word: np.dtype(getattr(ml_dtypes, name, name)) for name, word in DATA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Warmup:
    """Requests for a server that starts.

    Attributes:
        messages: Triton's `ModelWarmup`, one for a single sample and one for the usual batch.
        files: The raw values of the inputs, for the folder `warmup`; a name tells its content.
    """

    messages: tuple[Message, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)


def make_warmup(
    ports: Sequence[Port],
    arrays: Mapping[str, NDArray[Any]] | None,
    profiles: Mapping[str, InputSpec],
    batch: tuple[int, int],
) -> Warmup:
    """Returns the requests that warm a model up.

    Args:
        ports: The inputs.
        arrays: Their values, without the batch axis where the model batches; None: floats are random bits and
            all else is zero, which is in the range of every index.
        profiles: The shapes that the engine takes, by input.
        batch: The largest and the usual batch; 0 where the model does not batch.
    """
    largest, usual = batch
    values: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    for port in ports:
        item: dict[str, Any] = {"data_type": port.data_type}
        if arrays is not None:
            array = np.ascontiguousarray(arrays[port.name].astype(_NUMPY[port.data_type]))
            raw = array.tobytes()
            name = f"{_file_name(port.name)}.{hashlib.sha256(raw).hexdigest()[:16]}"
            files[name] = raw
            item |= {"dims": array.shape or (1,), "input_data_file": name}
        else:
            is_float = _NUMPY[port.data_type].kind == "f" or port.data_type == "TYPE_BF16"
            item |= {
                "dims": _usual_dims(port, profiles, largest),
                "random_data" if is_float else "zero_data": True,
            }
        values[port.name] = item
    inputs: list[Message] = [{"key": name, "value": item} for name, item in values.items()]
    sizes = sorted({1, max(1, min(usual, largest))})
    messages: tuple[Message, ...] = tuple(
        {"name": f"batch of {size}" if largest else "one request", "batch_size": size, "inputs": inputs}
        for size in sizes
    )
    return Warmup(messages, files)


def _usual_dims(port: Port, profiles: Mapping[str, InputSpec], largest: int) -> tuple[int, ...]:
    profile = profiles.get(port.name)
    if profile is None:
        return tuple(max(1, dim) for dim in port.dims) or (1,)
    return profile.opt[int(largest > 0) :] or (1,)


def _file_name(name: str) -> str:
    """Returns an input's name as that of a file."""
    return re.sub(r"[^\w.-]", "_", name).lstrip(".")[:80]
