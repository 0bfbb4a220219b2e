"""Options that are fields of settings, and the settings that they make up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from trtq.calibrators import METHODS, Method, create_method, list_choices, list_parameters
from trtq.calibrators.settings import read_spec
from trtq.cli.sizes import parse_bytes
from trtq.errors import UsageError
from trtq.models.option import Kind, Option, list_kinds, list_options
from trtq.models.spec import (
    CalibrationSpec,
    EvaluationSpec,
    LayerSpec,
    ModelSpec,
)
from trtq.pipeline.calibrate.data import find_spec

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_CHANGES = "trtq.changes"
_WITH_COMMAS = ("NAMES", "TYPES")
"""What stands for the value of an option that takes several, separated by commas too."""


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that the command line gives.

    Attributes:
        settings: The class that has the field; `Method` for a parameter of a calibration method.
        field: The field.
        option: The option, such as "--calib-data".
        value: What was given, of the field's type.
    """

    settings: type
    field: str
    option: str
    value: Any


def list_changes(ctx: click.Context) -> list[Change]:
    """Returns the settings that the command line gives, of all options made by `take`."""
    found: list[Change] = ctx.meta.setdefault(_CHANGES, [])
    return found


def combine_options(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Returns one decorator for several options, shown in their order."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def take(settings: type, *names: str) -> Callable[[F], F]:
    """Returns the options of a settings class, or of some of its fields."""
    return combine_options(*(take_one(settings, name) for name in names or list_options(settings)))


def take_one(
    settings: type, name: str, *spellings: str, kind: click.ParamType[Any] | None = None, text: str = ""
) -> Callable[[F], F]:
    """Returns the option of a field.

    Args:
        settings: The class.
        name: The field.
        spellings: How the option is written; empty: as the field says.
        kind: What click checks; None: by the type of the field.
        text: The help; empty: as the field says.
    """
    option = list_options(settings)[name]
    default = next(item.default for item in fields(settings) if item.name == name)
    option = replace(option, help=_add_default(text or option.help, default))
    return _create(settings, name, option, list_kinds(settings)[name], spellings, kind)


def take_parameters() -> Callable[[F], F]:
    """Returns an option for each parameter of a calibration method."""
    owners: dict[str, list[str]] = {}
    for method, kind in METHODS.items():
        for name in list_options(kind):
            owners.setdefault(name, []).append(method)
    return combine_options(*(_take_parameter(name, methods) for name, methods in owners.items()))


def _take_parameter(name: str, methods: list[str]) -> Callable[[F], F]:
    method = METHODS[methods[0]]
    option = list_options(method)[name]
    default = next(item.default for item in fields(method) if item.name == name)  # type: ignore[arg-type]
    text = _add_default(f"For {' and '.join(methods)}: {option.help}.", default)
    return _create(Method, name, replace(option, help=text), list_kinds(method)[name])


def _add_default(text: str, default: object) -> str:
    if "[default:" in text or default in (None, (), False):
        return text
    shown = ",".join(default) if isinstance(default, tuple) else default
    return f"{text}  [default: {shown}]"


def _create(
    settings: type,
    name: str,
    option: Option,
    kind: Kind,
    spellings: tuple[str, ...] = (),
    checked: click.ParamType[Any] | None = None,
) -> Callable[[F], F]:
    spellings = spellings or (option.name,)

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False and value != ():
            if option.metavar in _WITH_COMMAS:
                value = tuple(word.strip() for text in value for word in text.split(","))
            list_changes(ctx).append(Change(settings, name, spellings[0], value))

    return click.option(
        *spellings,
        type=None if kind.type is bool else checked or _find_type(option, kind),
        is_flag=True if kind.type is bool else None,
        multiple=kind.is_list,
        metavar=option.metavar or None,
        help=option.help,
        hidden=option.is_hidden,
        callback=keep,
        expose_value=False,
    )


def _find_type(option: Option, kind: Kind) -> Any:
    if kind.choices:
        return click.Choice(kind.choices)
    if kind.type is Path:
        return click.Path(path_type=Path, dir_okay=False)
    return parse_bytes if option.metavar == "SIZE" else kind.type


model_argument = click.argument("model", type=click.Path(path_type=Path))
spec_option = click.option(
    "--spec",
    "settings",
    type=click.Path(path_type=Path),
    help="Settings of the model.  [default: MODEL.toml or model.toml beside the model]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
talk_options = combine_options(
    click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Show every layer and TensorRT's warnings."),
)


def take_calibration() -> Callable[[F], F]:
    """Returns the options that say which data calibrates the model, and how."""
    return combine_options(
        take(CalibrationSpec, "data"),
        take_one(CalibrationSpec, "method", kind=click.Choice([*list_choices()])),
        take_parameters(),
        take(CalibrationSpec, "batch_size", "samples", "device", "memory_bytes"),
        click.option(
            "--random-data", is_flag=True, help="Calibrate with random numbers: the accuracy is meaningless."
        ),
    )


def read_settings(ctx: click.Context, model: Path) -> ModelSpec:
    """Returns the content of the settings file with the options of the command line in their places.

    Raises:
        UsageError: The settings cannot be used.
    """
    changes = list_changes(ctx)
    file = ctx.params.get("settings")
    spec = read_spec(file) if file is not None else find_spec(model)
    evaluation = spec.evaluation
    if (evaluation.labels or "").endswith(".npy") and gives(ctx, EvaluationSpec, "data"):
        evaluation = replace(evaluation, labels=None)  # one for each sample of the data that is replaced
    return replace(
        spec,
        calibration=_change_calibration(spec.calibration, ctx),
        quantization=apply_changes(spec.quantization, changes),
        evaluation=apply_changes(evaluation, changes),
        accuracy=apply_changes(spec.accuracy, changes),
        layers=_add_layers(spec.layers, apply_changes(LayerSpec(), changes)),
    )


def apply_changes(settings: T, changes: Iterable[Change]) -> T:
    """Returns the settings with the changes that are for their class."""
    values = {change.field: change.value for change in changes if change.settings is type(settings)}
    return replace(settings, **values)  # type: ignore[type-var]


def gives(ctx: click.Context, settings: type, field: str) -> bool:
    """Returns whether the command line gives a setting."""
    return any((change.settings, change.field) == (settings, field) for change in list_changes(ctx))


def _add_layers(layers: LayerSpec, more: LayerSpec) -> LayerSpec:
    return LayerSpec(
        (*layers.skip, *more.skip),
        (*layers.keep_fp32, *more.keep_fp32),
        (*layers.force, *more.force),
    )


def _change_calibration(calibration: CalibrationSpec, ctx: click.Context) -> CalibrationSpec:
    """Returns the changed section; a parameter that only one method has asks for this method."""
    calibration = apply_changes(calibration, list_changes(ctx))
    is_named = gives(ctx, CalibrationSpec, "method")
    parameters = [change for change in list_changes(ctx) if change.settings is Method]
    for change in parameters:
        owners = [name for name, kind in list_choices().items() if change.field in list_parameters(kind)]
        if calibration.method not in owners and (is_named or len(owners) > 1):
            wanted = " or ".join(owners)
            raise UsageError(f"{change.option} is for --calib-method {wanted}, not {calibration.method}")
        method = calibration.method if calibration.method in owners else owners[0]
        given = {**calibration.parameters, change.field: change.value}
        calibration = replace(calibration, method=method, parameters=given)
    if is_named or parameters:
        create_method(calibration)  # so that it is told now what is wrong with it
    return calibration
