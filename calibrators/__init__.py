"""How ranges are estimated, stored and handed to TensorRT."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from trtq.calibrators.cosine import Cosine
from trtq.calibrators.entropy import Entropy
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.mse import Mse
from trtq.calibrators.percentile import Percentile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trtq.calibrators.statistics import Histogram


class Method(Protocol):
    """Maps what was seen of a tensor to the magnitude that the largest INT8 code stands for."""

    def amax(self, histogram: Histogram) -> float:
        """Returns the amax; 0 for a tensor without any value but zero."""
        ...


def list_parameters(method: type[Method]) -> tuple[str, ...]:
    """Returns the names of a method's parameters: the fields of its dataclass."""
    return tuple(item.name for item in fields(method))  # type: ignore[arg-type]


METHODS: Mapping[str, type[Method]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
    "cosine": Cosine,
}
