"""What the kernels of a model or engine take, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, slots=True)
class KernelTime:
    """What one kernel takes in a run.

    Attributes:
        name: As its runtime calls it.
        op_type: What it is, such as "QLinearConv"; empty where the runtime does not say.
        nodes: The nodes of the ONNX model that it computes, the heaviest first; of a conversion those that
            it converts for.
        ms: The time of one run in milliseconds.
        converts: Whether it only converts between formats or layouts.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]
    ms: float
    converts: bool = False


class Profiled(Protocol):
    """A model or engine at work whose kernels are timed, which makes a run longer."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Those of the inputs."""

    @property
    def gpu_bytes(self) -> int | None:
        """What loading it took of the GPU's memory; None if that is not known."""

    def measure(self, seconds: float) -> tuple[list[float], float]:
        """Returns the milliseconds of runs for about so many seconds, and how many seconds went by."""

    def list_kernels(self) -> list[KernelTime]:
        """Returns what each kernel took in all runs, in the order of the first, and ends the timing."""


def find_midmean(values: Iterable[float]) -> float:
    """Returns the mean of the middle half: finer than a median of whole numbers, and blind to outliers."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut]))
