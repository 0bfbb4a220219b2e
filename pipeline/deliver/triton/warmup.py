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
from trtq.pipeline.deliver.triton.config import TritonPort
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
    ports: Sequence[TritonPort],
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
    files: dict[str, bytes] = {}
    values: dict[str, Message] = {}
    for port in ports:
        if arrays is None:
            is_float = _NUMPY[port.data_type].kind == "f" or port.data_type == "TYPE_BF16"
            content: dict[str, Any] = {"random_data" if is_float else "zero_data": True}
            dims = _usual_dims(port, profiles, largest)
        else:
            array = np.ascontiguousarray(arrays[port.name].astype(_NUMPY[port.data_type]))
            name, dims = _name_file(port.name, array.tobytes()), array.shape or (1,)
            files[name], content = array.tobytes(), {"input_data_file": name}
        values[port.name] = {"data_type": port.data_type, "dims": dims, **content}
    inputs = [{"key": name, "value": item} for name, item in values.items()]
    messages = (
        {"name": f"batch of {size}" if largest else "one request", "batch_size": size, "inputs": inputs}
        for size in sorted({1, max(1, min(usual, largest))})
    )
    return Warmup(tuple(messages), files)


def _usual_dims(port: TritonPort, profiles: Mapping[str, InputSpec], largest: int) -> tuple[int, ...]:
    profile = profiles.get(port.name)
    if profile is None:
        return tuple(max(1, dim) for dim in port.dims) or (1,)
    return profile.opt[int(largest > 0) :] or (1,)


def _name_file(name: str, content: bytes) -> str:
    """Returns the name of the file with the values of an input."""
    plain = re.sub(r"[^\w.-]", "_", name).lstrip(".")[:80]
    return f"{plain}.{hashlib.sha256(content).hexdigest()[:16]}"
