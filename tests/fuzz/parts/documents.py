"""What becomes of JSON and TOML that stay so: values of another kind, keys too many and too few."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from typing import Any

from damage import ODD_NAMES, ODD_NUMBERS, damage
from hypothesis import strategies as st

_Way = tuple[str | int, ...]
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, *ODD_NUMBERS[:-1],
    *map(float, ("nan", "inf", "-inf", "1e308", "-0.0", "5e-324", "0.5")),
    *ODD_NAMES, [], {}, [[]], [None], {"": None}, [0] * 3000, {"kind": {}}, "deep",
)  # fmt: skip
_TOML = (
    "", "1", "-1", "0", "1.5", "nan", "inf", "1e400", "true", '"x"', "'''a\nb'''", '"\\u0000"', "[]",
    "[1, 'a']", "{}",
    "{a = 1}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "0x7fffffffffffffffff", "9" * 400,
    "9" * 5000,
    f'"{"x" * 70_000}"', '"("', '"a.py:f"', '"\\u001b[2J"', '"/dev/zero"', '"../x"', "[" * 3000,
    "[[1], [2]]", "{",
)  # fmt: skip


@st.composite
def odd_json(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Returns JSON of which one to three values or keys are others; every fourth is damaged text instead."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damage(seeds))
    document = json.loads(draw(st.sampled_from(seeds)))
    depth = 0
    for _ in range(draw(st.integers(1, 3))):
        ways = list(_list_ways(document))
        if not ways:
            break
        *stem, last = draw(st.sampled_from(ways))
        holder = document
        for step in stem:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "replace", "replace", "rename", "remove", "exchange"]))
        if change == "remove":
            del holder[last]
        elif change == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(ODD_NAMES))] = holder.pop(last)
        elif change == "exchange":
            holder[last] = _find(document, draw(st.sampled_from(ways)))
        else:
            holder[last] = copy.deepcopy(draw(st.sampled_from(_ODD_VALUES)))  # it may be changed next
            depth = draw(st.sampled_from([50, 5000])) if holder[last] == "deep" else depth
    text = json.dumps(document, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    if depth:
        text = text.replace('"deep"', "[" * depth + "]" * depth)
    return text.encode(errors="surrogatepass")


def _list_ways(value: Any, way: _Way = ()) -> Iterator[_Way]:
    """Yields the way to every value inside; of a long list to the first ones."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield (*way, key)
        yield from _list_ways(item, (*way, key))


def _find(value: Any, way: _Way) -> Any:
    try:
        for step in way:
            value = value[step]
    except (KeyError, IndexError, TypeError):
        return None
    return json.loads(json.dumps(value))  # a value in itself would have no end


@st.composite
def odd_toml(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Returns TOML in which one to three lines have another value, key or place."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damage(seeds))
    lines = draw(st.sampled_from(seeds)).decode().splitlines()
    others = [line for seed in seeds for line in seed.decode().splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, equals, value = lines[place].partition(" = ")
        change = draw(st.sampled_from(["value", "value", "value", "key", "lose", "move", "section"]))
        if change == "value" and equals:
            lines[place] = f"{key} = {draw(st.sampled_from(_TOML))}"
        elif change == "key":
            name = json.dumps(draw(st.sampled_from(ODD_NAMES)))
            lines[place] = f"{name} = {value}" if equals else f"[{name}]"
        elif change == "lose":
            lines[place] = ""
        elif change == "section":
            lines.insert(
                place,
                draw(st.sampled_from(["[[build]]", "[inputs]", "[x.y]", "[defaults]", "[calibration]"])),
            )
        else:
            lines.insert(place, draw(st.sampled_from(others)))
    return "\n".join(lines).encode(errors="surrogatepass")
