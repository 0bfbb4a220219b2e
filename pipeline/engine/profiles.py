"""Optimization profiles: the shapes for which an engine is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trtq.calibrators.ranges import Shapes
from trtq.errors import UsageError
from trtq.models.signature import TensorSpec, show_shape
from trtq.models.spec import InputSpec
from trtq.numbers import format_shape

Shape = tuple[int, ...]
_ITEM = re.compile(
    r"""(?: '(?P<single>[^']+)' | "(?P<double>[^"]+)" | (?P<plain>[^'",\s]+?) ) \s* : \s*
        (?: \[ \s* (?P<list> (?: \d+ \s* (?: , \s* \d+ \s* )* )? ) \] | (?P<cross> \d+ (?: [xX] \d+ )* ) )
        \s* (?: , \s* | $ )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class GivenShapes:
    """The shapes that the user gave, by input name."""

    min: Mapping[str, Shape] = field(default_factory=dict)
    opt: Mapping[str, Shape] = field(default_factory=dict)
    max: Mapping[str, Shape] = field(default_factory=dict)


def parse_shapes(text: str) -> dict[str, Shape]:
    """Returns the shapes of one option value.

    Takes trtexec's `name:1x3x224x224` and Polygraphy's `name:[1,3,224,224]`, several of them with commas
    between, and names with colons in quotes: `'input_1:0':1x3x544x960`.

    Raises:
        UsageError: The text is neither, or gives an input two shapes.
    """
    shapes: dict[str, Shape] = {}
    position = 0
    while position < len(text):
        item = _ITEM.match(text, position)
        if item is None:
            raise UsageError(
                f"{text!r} gives no shapes; write name:1x3x224x224 or name:[1,3,224,224], with commas "
                f"between several, and names with a colon in quotes"
            )
        name = item["single"] or item["double"] or item["plain"]
        if name in shapes:
            raise UsageError(f"{text!r} gives shapes for {name!r} twice; give one")
        dims = re.findall(r"\d+", item["list"] if item["list"] is not None else item["cross"])
        shapes[name] = tuple(int(dim) for dim in dims)
        position = item.end()
    if not shapes:
        raise UsageError("an empty text gives no shapes; write name:1x3x224x224")
    return shapes


def resolve_profiles(
    inputs: Sequence[TensorSpec],
    given: GivenShapes,
    spec: Mapping[str, InputSpec],
    seen: Mapping[str, Shapes | InputSpec],
) -> tuple[dict[str, InputSpec], list[str]]:
    """Returns the profile of every dynamic input, and a sentence for each that was derived from the data.

    An input's shapes are those given (one of them stands for those that were not), else those of the settings
    file, else those of the data, with a batch of 1 as the smallest.

    Args:
        inputs: Of the model.
        given: By the user, on the command line.
        spec: From the settings file.
        seen: In the data; empty if there was none.

    Raises:
        UsageError: Shapes for an unknown input, or that do not fit the model, or none to be had.
    """
    names = [item.name for item in inputs]
    for name in {**spec, **given.min, **given.opt, **given.max}:
        if name not in names:
            raise UsageError(f"shapes are given for {name!r}, but the model's inputs are {', '.join(names)}")
    profiles: dict[str, InputSpec] = {}
    notes: list[str] = []
    for item in inputs:
        profile = _given(item.name, given) or spec.get(item.name)
        if profile is None and item.is_dynamic:
            profile = _derived(item, seen)
            lowest, usual, largest = map(format_shape, (profile.min, profile.opt, profile.max))
            shapes = f"min {lowest}, opt {usual}, max {largest}"
            notes.append(
                f"input {item.name!r} is dynamic: profile from the data, {shapes}; "
                f"others with --min-shapes, --opt-shapes, --max-shapes"
            )
        if profile is None:
            continue
        for shape in (profile.min, profile.opt, profile.max):
            if not item.fits(shape):
                raise UsageError(
                    f"shape {format_shape(shape)} does not fit input {item.name!r}, "
                    f"which is {show_shape(item.shape)}"
                )
        if item.is_dynamic:
            profiles[item.name] = profile
    return profiles, notes


def _given(name: str, given: GivenShapes) -> InputSpec | None:
    known = [shapes[name] for shapes in (given.opt, given.max, given.min) if name in shapes]
    if not known:
        return None
    smallest, usual, largest = (shapes.get(name, known[0]) for shapes in (given.min, given.opt, given.max))
    try:
        return InputSpec(smallest, usual, largest)
    except UsageError as error:
        raise UsageError(f"input {name!r}: {error}") from error


def _derived(item: TensorSpec, seen: Mapping[str, Shapes | InputSpec]) -> InputSpec:
    shapes = seen.get(item.name)
    if shapes is None:
        raise UsageError(
            f"input {item.name!r} is dynamic, {show_shape(item.shape)}, and there is no data to take its "
            f"shapes from; give --opt-shapes {item.name}:..., or [inputs.{item.name}] in model.toml"
        )
    smallest = shapes.min if isinstance(item.shape[0], int) else (1, *shapes.min[1:])
    return InputSpec(smallest, shapes.opt, shapes.max)
