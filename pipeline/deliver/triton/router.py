"""A pair of models as an A/B test: a model in front of them, which Triton's Python backend runs.

Triton itself splits no traffic, and an ensemble runs every step for every request. What it has for such a
choice is business logic scripting: a Python model that calls others of the same server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.triton.config import ModelConfig

SCRIPT = '''"""Sends a share of the requests to model B, the others to A; where one fails, the other answers.

Written by trtq package. The names and the share are parameters in config.pbtxt.
"""

import asyncio
import json
import random

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: item["string_value"] for key, item in config["parameters"].items()}
        self.names = (parameters["model_a"], parameters["model_b"])
        self.share = float(parameters["percent_b"]) / 100
        self.outputs = [item["name"] for item in config["output"]]

    async def execute(self, requests):
        return await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        order = self.names[::-1] if random.random() < self.share else self.names
        for name in order:
            response = await pb_utils.InferenceRequest(
                model_name=name, requested_output_names=self.outputs, inputs=request.inputs()
            ).async_exec()
            if not response.has_error():
                return pb_utils.InferenceResponse(response.output_tensors())
        return pb_utils.InferenceResponse(error=response.error())
'''


def write_router(name: str, pair: tuple[ModelConfig, ModelConfig], percent: float) -> ModelConfig:
    """Returns the configuration of a model in front of two: so many of 100 requests go to the second.

    Raises:
        ArtifactError: The two do not take the same requests.
    """
    first, second = pair
    if found := _unlike(first, second):
        raise ArtifactError(f"{first.name} and {second.name} cannot be paired for --ab: {'; '.join(found)}")
    return replace(
        first,
        name=name,
        backend="python",
        preferred_batch=None,
        serving=replace(first.serving, max_queue_delay_us=0, num_versions=1),
        warmup=(),
        parameters={"model_a": first.name, "model_b": second.name, "percent_b": f"{percent:g}"},
        comments=(f"{percent:g} of 100 requests go to {second.name}, the others to {first.name}.",),
    )


def _unlike(first: ModelConfig, second: ModelConfig) -> Sequence[str]:
    found = []
    if first.max_batch != second.max_batch:
        found.append(f"their largest batches are {first.max_batch} and {second.max_batch}")
    ours = {port.name: port for port in (*first.inputs, *first.outputs)}
    theirs = {port.name: port for port in (*second.inputs, *second.outputs)}
    for name in {**ours, **theirs}:
        shown = [
            f"{port.data_type} {list(port.dims)}" if port else "missing"
            for port in (ours.get(name), theirs.get(name))
        ]
        if shown[0] != shown[1]:
            found.append(f"{name!r} is {shown[0]} and {shown[1]}")
    return found
