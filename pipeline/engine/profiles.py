"""Optimization profiles: the shapes for which an engine is built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from trtq.calibrators.ranges import Shapes
from trtq.errors import UsageError
from trtq.models.signature import TensorSpec, show_shape
from trtq.models.spec import InputSpec, ProfileSpec
from trtq.numbers import format_shape

Shape = tuple[int, ...]
_PROFILE = r"""(?: '(?P<single>[^']+)' | "(?P<double>[^"]+)" | (?P<plain>[^'":\s]+) )
    :(?P<min>\d+(?:[xX]\d+)*) :(?P<opt>\d+(?:[xX]\d+)*) :(?P<max>\d+(?:[xX]\d+)*)"""
_ITEM = re.compile(
    r"""(?: '(?P<single>[^']+)' | "(?P<double>[^"]+)" | (?P<plain>[^'",\s]+?) ) \s* : \s*
        (?: \[ \s* (?P<list> (?: \d+ \s* (?: , \s* \d+ \s* )* )? ) \] | (?P<cross> \d+ (?: [xX] \d+ )* ) )
        \s* (?: , \s* | $ )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class GivenShapes:
    """The shapes that the user gave, by input name.

    Attributes:
        min: The smallest, as `opt` and `max` of the first optimization profile.
        profiles: Whole optimization profiles, which follow the first; where no input has shapes of that, the
            first of them is it.
    """

    min: Mapping[str, Shape] = field(default_factory=dict)
    opt: Mapping[str, Shape] = field(default_factory=dict)
    max: Mapping[str, Shape] = field(default_factory=dict)
    profiles: tuple[Mapping[str, ProfileSpec], ...] = field(default=(), kw_only=True)


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


def list_profiles(profiles: Mapping[str, InputSpec]) -> list[dict[str, ProfileSpec]]:
    """Returns the optimization profiles of an engine, each by input; none if no input has open dims."""
    count = max((len(item.all) for item in profiles.values()), default=0)
    return [{name: item.all[number] for name, item in profiles.items()} for number in range(count)]


def parse_profile(text: str) -> dict[str, ProfileSpec]:
    """Returns one optimization profile: `name:1x3x8x8:4x3x8x8:8x3x8x8`, several inputs with commas between.

    Raises:
        UsageError: The text is none.
    """
    found: dict[str, ProfileSpec] = {}
    for item in re.findall(r"(?:'[^']*'|\"[^\"]*\"|\[[^\]]*\]|[^,])+", text):
        parts = re.fullmatch(_PROFILE, item.strip(), re.VERBOSE)
        if parts is None:
            raise UsageError(
                f"{item!r} is not a profile; write name:MIN:OPT:MAX, such as "
                "x:1x3x8x8:4x3x8x8:8x3x8x8, with commas between several inputs"
            )
        name = parts["single"] or parts["double"] or parts["plain"]
        shapes = [tuple(map(int, re.split("[xX]", parts[kind]))) for kind in ("min", "opt", "max")]
        try:
            found[name] = ProfileSpec(*shapes)
        except UsageError as error:
            raise UsageError(f"input {name!r}: {error}") from error
    if not found:
        raise UsageError("an empty text is not a profile; write name:MIN:OPT:MAX")
    return found


def resolve_profiles(
    inputs: Sequence[TensorSpec],
    given: GivenShapes,
    spec: Mapping[str, InputSpec],
    seen: Mapping[str, Shapes | InputSpec],
) -> tuple[dict[str, InputSpec], list[str]]:
    """Returns the profile of every dynamic input, and a sentence for each that was derived from the data.

    An input's shapes are those given (one of them stands for those that were not), else those of the settings
    file, else those of the data, with a batch of 1 as the smallest. In a further profile without it an input
    is as in its first.

    Args:
        inputs: Of the model.
        given: By the user, on the command line.
        spec: From the settings file.
        seen: In the data; empty if there was none.

    Raises:
        UsageError: Shapes for an unknown input, or that do not fit the model, or none to be had.
    """
    names = [item.name for item in inputs]
    whole = {name: shapes for profile in given.profiles for name, shapes in profile.items()}
    for name in {**spec, **given.min, **given.opt, **given.max, **whole}:
        if name not in names:
            raise UsageError(f"shapes are given for {name!r}, but the model's inputs are {', '.join(names)}")
    firsts, further = _split(inputs, given, spec)
    most = max((len(first.profiles) for first in firsts.values() if first is not None), default=0)
    profiles: dict[str, InputSpec] = {}
    notes: list[str] = []
    for item in inputs:
        profile = firsts[item.name]
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
        profile = _add_profiles(profile, most, [each.get(item.name) for each in further])
        for shape in (shape for each in profile.all for shape in (each.min, each.opt, each.max)):
            if not item.fits(shape):
                raise UsageError(
                    f"shape {format_shape(shape)} does not fit input {item.name!r}, "
                    f"which is {show_shape(item.shape)}"
                )
        if item.is_dynamic:
            profiles[item.name] = profile
    return profiles, notes


def check_profiles(
    inputs: Sequence[TensorSpec], given: GivenShapes, spec: Mapping[str, InputSpec]
) -> dict[str, InputSpec | None]:
    """Returns the profile of every dynamic input without any data; None where its first is to be of the data.

    Raises:
        UsageError: Shapes for an unknown input, or that do not fit the model.
    """
    ones = [tuple(dim if isinstance(dim, int) else 1 for dim in item.shape) for item in inputs]
    seen = {item.name: InputSpec(one, one, one) for item, one in zip(inputs, ones, strict=True)}
    found, _ = resolve_profiles(inputs, given, spec, seen)
    firsts, _ = _split(inputs, given, spec)
    return {name: None if firsts[name] is None else profile for name, profile in found.items()}


def _split(
    inputs: Sequence[TensorSpec], given: GivenShapes, spec: Mapping[str, InputSpec]
) -> tuple[dict[str, InputSpec | None], list[Mapping[str, ProfileSpec]]]:
    """Returns the first shapes of each input, None where nobody gives them, and the profiles behind it."""
    firsts, further = {item.name: _find_first(item.name, given, spec) for item in inputs}, [*given.profiles]
    if further and not any(firsts[item.name] for item in inputs if item.is_dynamic):
        firsts |= {name: InputSpec(each.min, each.opt, each.max) for name, each in further.pop(0).items()}
    return firsts, further


def _add_profiles(item: InputSpec, most: int, further: Sequence[ProfileSpec | None]) -> InputSpec:
    """Returns the shapes of an input with its part of further profiles, behind `most` of the settings.

    All inputs so have as many, and what belongs together has the same place.
    """
    missing = (None,) * (most - len(item.profiles))
    return replace(item, profiles=tuple(each or item.first for each in (*item.profiles, *missing, *further)))


def _find_first(name: str, given: GivenShapes, spec: Mapping[str, InputSpec]) -> InputSpec | None:
    """Returns the first shapes of an input, with what further profiles of the settings say of it."""
    first, own = _given(name, given), spec.get(name)
    return own if first is None else replace(first, profiles=() if own is None else own.profiles)


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
