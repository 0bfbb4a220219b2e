"""Options that are fields of settings, and the settings that they make up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from trtq.calibrators import METHODS, Method, create_method, list_choices, list_parameters
from trtq.calibrators.settings import read_spec
from trtq.cli.sizes import parse_bytes
from trtq.errors import UsageError
from trtq.models.option import Kind, Option, list_kinds, list_options
from trtq.models.preprocess import CHANNELS, LAYOUTS, RESIZE_MODES, Preprocess
from trtq.models.spec import AccuracySpec, CalibrationSpec, EvaluationSpec, LayerSpec, ModelSpec, OperatorSpec
from trtq.pipeline.calibrate.data import find_spec, refuse_scripts

T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_WITH_COMMAS = ("FORMATS", "NAMES", "NUMBERS", "SIZES", "TYPES")
"""What stands for the value of an option that takes several, separated by commas too."""

_SCRIPT_FIELDS: Mapping[str, tuple[type, str]] = {
    "[calibration] data": (CalibrationSpec, "data"),
    "[evaluation] data": (EvaluationSpec, "data"),
    "[accuracy] metric": (AccuracySpec, "metric"),
    "[operators] plugins": (OperatorSpec, "plugins"),
    "[operators] ort_custom_ops": (OperatorSpec, "ort_custom_ops"),
}
"""The fields that may name scripts, by their keys in a settings file; see `ModelSpec.scripts`."""


@dataclass(frozen=True, slots=True)
class GivenSetting:
    """A field that an option gives; `settings` is its class, `Method` for a parameter of one."""

    settings: type
    field: str
    option: str
    value: Any


@dataclass(slots=True)
class Given:
    """What the options say that are fields of settings, and those that come with them."""

    changes: list[GivenSetting] = field(default_factory=list)
    settings: Path | None = None
    random_data: bool = False
    trust: bool = False

    def find(self, settings: type, *names: str) -> list[GivenSetting]:
        """Returns the changes of a settings class, or of some of its fields."""
        ours = [change for change in self.changes if change.settings is settings]
        return [change for change in ours if not names or change.field in names]

    def apply(self, settings: T) -> T:
        """Returns the settings with what is given for their class."""
        values = {change.field: change.value for change in self.find(type(settings))}
        return replace(settings, **values)  # type: ignore[type-var]

    def read_spec(self, model: Path, found: ModelSpec | None = None) -> ModelSpec:
        """Returns the settings of a model: those of the file, with what is given in their places.

        Args:
            model: The model.
            found: The settings that hold if no file is named; None: those beside the model.

        Raises:
            UsageError: The settings cannot be used.
        """
        if self.random_data and (given := self.find(CalibrationSpec, "data")):
            raise UsageError(f"{given[0].option} and --random-data contradict each other; give one of them")
        if self.settings is not None:
            spec = read_spec(self.settings)
        else:
            spec = found if found is not None else find_spec(model, trust=True)
        if self.settings is None and not self.trust:
            refuse_scripts(spec, {key: text for key, text in spec.scripts.items() if not self._gives(key)})
        evaluation, layers, more = spec.evaluation, spec.layers, self.apply(LayerSpec())
        if (evaluation.labels or "").endswith(".npy") and self.find(EvaluationSpec, "data"):
            evaluation = replace(evaluation, labels=None)  # one for each sample of the data that is replaced
        return replace(
            spec,
            preprocess=self.apply(spec.preprocess),
            calibration=self._change_calibration(spec.calibration),
            quantization=self.apply(spec.quantization),
            evaluation=self.apply(evaluation),
            accuracy=self.apply(spec.accuracy),
            operators=self.apply(spec.operators),
            layers=LayerSpec(
                (*layers.skip, *more.skip),
                (*layers.keep_fp32, *more.keep_fp32),
                (*layers.force, *more.force),
            ),
        )

    def _gives(self, key: str) -> bool:
        """Returns whether an option stands for a key that may name a script, or makes it useless."""
        if key == "[calibration] data" and self.random_data:
            return True
        return bool(self.find(*_SCRIPT_FIELDS[key]))

    def _change_calibration(self, calibration: CalibrationSpec) -> CalibrationSpec:
        """Returns the changed section; a parameter that only one method has asks for this method."""
        calibration, is_named = self.apply(calibration), bool(self.find(CalibrationSpec, "method"))
        for change in self.find(Method):
            owners = [name for name, kind in list_choices().items() if change.field in list_parameters(kind)]
            method = calibration.method
            if method not in owners and (is_named or len(owners) > 1):
                raise UsageError(f"{change.option} is for --calib-method {' or '.join(owners)}, not {method}")
            parameters = {**calibration.parameters, change.field: change.value}
            method = method if method in owners else owners[0]
            calibration = replace(calibration, method=method, parameters=parameters)
        if is_named or self.find(Method):
            create_method(calibration)  # so that it is told now what is wrong with it
        return calibration


pass_given = click.make_pass_decorator(Given, ensure=True)
"""Calls a command with what is given as its first argument."""


def combine_options(*options: Decorator) -> Decorator:
    """Returns one decorator for several options, shown in their order."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def take(settings: type, *names: str) -> Decorator:
    """Returns the options of a settings class, or of some of its fields."""
    return combine_options(*(take_one(settings, name) for name in names or list_options(settings)))


def take_one(
    settings: type, name: str, *spellings: str, kind: click.ParamType[Any] | None = None, text: str = ""
) -> Decorator:
    """Returns the option of a field, with other spellings, checks or help than those of the field."""
    option = list_options(settings)[name]
    option = replace(option, help=text or option.help)
    return create_option(settings, name, option, list_kinds(settings)[name], *spellings, checked=kind)


def take_calibration() -> Decorator:
    """Returns the options that say which data calibrates the model, and how."""
    return combine_options(
        take(CalibrationSpec, "data"),
        take_one(CalibrationSpec, "method", kind=click.Choice([*list_choices()])),
        *_take_parameters(),
        take(CalibrationSpec, "batch_size", "samples", "device", "memory_bytes"),
        click.option(
            "--random-data",
            is_flag=True,
            help="Calibrate with random numbers, only to try things out: the accuracy means nothing.",
            callback=_keep,
            expose_value=False,
        ),
    )


def take_pictures() -> Decorator:
    """Returns the options that say how pictures are prepared."""
    choices = {"resize_mode": RESIZE_MODES, "channels": CHANNELS, "layout": LAYOUTS}
    return combine_options(
        *(
            take_one(Preprocess, name, kind=click.Choice(choices[name]) if name in choices else None)
            for name in list_options(Preprocess)
        )
    )


def _take_parameters() -> list[Decorator]:
    """Returns an option for each parameter of a calibration method."""
    owners: dict[str, list[str]] = {}
    for method, kind in METHODS.items():
        for name in list_options(kind):
            owners.setdefault(name, []).append(method)
    options = []
    for name, methods in owners.items():
        first = METHODS[methods[0]]
        option = list_options(first)[name]
        text = f"For {' and '.join(methods)}: {option.help[0].lower()}{option.help[1:]}"
        options.append(create_option(Method, name, replace(option, help=text), list_kinds(first)[name]))
    return options


def create_option(
    settings: type,
    name: str,
    option: Option,
    kind: Kind,
    *spellings: str,
    checked: Any = None,
    convert: Callable[[Any], Any] | None = None,
) -> Decorator:
    """Returns an option that is kept in `Given` as a change of a field; `convert` makes the field's value."""
    names = spellings or (option.name,)

    def keep(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None and value is not False and value != ():
            if option.metavar in _WITH_COMMAS:
                value = _split(names[0], value, option, kind)
            value = convert(value) if convert is not None else value
            ctx.ensure_object(Given).changes.append(GivenSetting(settings, name, names[0], value))

    return click.option(
        *names,
        type=None if kind.type is bool else checked or _find_type(option, kind),
        is_flag=True if kind.type is bool else None,
        multiple=kind.is_list,
        metavar=option.metavar or None,
        help=option.help,
        hidden=option.is_hidden,
        callback=keep,
        expose_value=False,
    )


def _split(name: str, texts: Sequence[str], option: Option, kind: Kind) -> tuple[Any, ...]:
    """Returns the values that stand between commas, of sizes also between x: `480x640`."""
    separated = [text.replace("x", ",") if option.metavar == "SIZES" else text for text in texts]
    words = [word.strip() for text in separated for word in text.split(",")]
    try:
        return tuple(map(kind.type, words))
    except ValueError:
        wanted = (
            "sizes in pixels, such as 224 or 480x640" if kind.type is int else "numbers, such as 0.5,0.5,0.5"
        )
        raise UsageError(f"{name} takes {wanted}, got {','.join(texts)!r}") from None


def _find_type(option: Option, kind: Kind) -> Any:
    if kind.choices:
        return click.Choice(kind.choices)
    if option.metavar in _WITH_COMMAS:
        return str
    if option.metavar in ("DATA", "LIB.so"):  # a path for shells to complete, or a script with its function
        return click.Path(readable=False)
    if kind.type is Path:
        return click.Path(path_type=Path, dir_okay=False)
    return parse_bytes if option.metavar == "SIZE" else kind.type


def _keep(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    setattr(ctx.ensure_object(Given), str(parameter.name), value)


def take_path(*names: str, text: str, is_required: bool = False) -> Decorator:
    """Returns an option that names a file or a folder."""
    return click.option(*names, type=click.Path(path_type=Path), required=is_required, help=text)


def take_output(text: str, *, is_required: bool = False) -> Decorator:
    """Returns the option that says what to write."""
    return take_path("-o", "--output", text=text, is_required=is_required)


model_argument = click.argument("model", type=click.Path(path_type=Path))
spec_option = combine_options(
    click.option(
        "--spec",
        "settings",
        type=click.Path(path_type=Path),
        help="Settings file.  [default: MODEL.toml or model.toml next to the model]",
        callback=_keep,
        expose_value=False,
    ),
    click.option(
        "--trust",
        is_flag=True,
        help="Allow scripts and libraries named by the settings file next to the model to run.",
        callback=_keep,
        expose_value=False,
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON to stdout.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only.")
talk_options = combine_options(
    quiet_option,
    click.option("-v", "--verbose", is_flag=True, help="Show all layers and TensorRT's warnings."),
)
