"""How ranges are estimated, stored and handed to TensorRT."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from trtq.calibrators.cosine import Cosine
from trtq.calibrators.entropy import Auto, Entropy, EntropyWithRows
from trtq.calibrators.levels import INT8_LEVELS
from trtq.calibrators.minmax import MinMax
from trtq.calibrators.mse import Mse
from trtq.calibrators.percentile import Percentile
from trtq.errors import UsageError

if TYPE_CHECKING:
    from trtq.calibrators.levels import Levels
    from trtq.calibrators.statistics import Histogram
    from trtq.models.spec import CalibrationSpec


class Method(Protocol):
    """Maps what was seen of a tensor to the magnitude that the largest code stands for.

    It is a frozen dataclass; its fields are the parameters of the method, made with `models.option.setting`:
    keys of `[calibration]` in a model.toml, and options of the command line.
    """

    def amax(self, histogram: Histogram, levels: Levels = INT8_LEVELS) -> float:
        """Returns the amax for a number format; 0 for a tensor without any value but zero."""
        ...


METHODS: dict[str, type[Method]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
    "cosine": Cosine,
}
"""Those that look at histograms alone: "auto" tries all of them."""
_ANYWHERE = ("percentile",)
"""Settings may name it beside any method, as they always could."""


def list_choices() -> dict[str, type[Method]]:
    """Returns every method that can be asked for, by name."""
    return {"auto": Auto, **METHODS, "cross-entropy": EntropyWithRows}


def list_parameters(method: type[Method]) -> tuple[str, ...]:
    """Returns the names of a method's parameters: the fields of its dataclass."""
    return tuple(item.name for item in fields(method))  # type: ignore[arg-type]


def create_method(spec: CalibrationSpec) -> Method:
    """Returns the method that the settings name, with its parameters.

    Raises:
        UsageError: There is no such method, or it has no such parameter, or not with this value.
    """
    choices = list_choices()
    if spec.method not in choices:
        raise UsageError(f"there is no calibration method {spec.method!r}; use {', '.join(choices)}")
    method = choices[spec.method]
    own = list_parameters(method)
    if foreign := [name for name in sorted(spec.parameters) if name not in (*own, *_ANYWHERE)]:
        raise UsageError(
            f"{foreign[0]} is not a parameter of the calibration method {spec.method}; it has "
            f"{', '.join(own) or 'none'}"
        )
    return method(**{name: value for name, value in spec.parameters.items() if name in own})


def name_method(method: Method) -> str:
    """Returns the name of the method of histograms that an object is, that of "auto" being entropy."""
    return next(
        (name for name, kind in METHODS.items() if isinstance(method, kind)), type(method).__name__.lower()
    )
