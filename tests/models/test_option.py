"""Fields of settings as options: their names, their kinds, and what their docstrings say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtq.models.option import Kind, list_kinds, list_options, setting


@dataclass(frozen=True)
class Plain:
    """Settings.

    Attributes:
        size: How large it is,
            in mm. None: as it comes.
        names: What it is called: any word.
        not_an_option: Something else.
    """

    size: int | None = setting(None, "--how-large", metavar="MM")
    names: tuple[str, ...] = setting(("a", "b"))
    not_an_option: float = 0.5


@dataclass(frozen=True)
class More(Plain):
    """More of them.

    Attributes:
        colour: Which one.
        is_loud: Whether it rings.

    Raises:
        Nothing: Never.
    """

    colour: Literal["red", "green"] = setting("red", is_hidden=True)
    is_loud: bool = setting(False)
    file: Path | None = None


def test_an_option_has_the_name_and_the_text_of_its_field() -> None:
    options = list_options(More)
    assert [(name, option.name) for name, option in options.items()] == [
        ("size", "--how-large"),
        ("names", "--names"),
        ("colour", "--colour"),
        ("is_loud", "--is-loud"),
    ]
    assert [option.help for option in options.values()] == [
        "How large it is, in mm.  [default: as it comes]",
        "What it is called: any word.  [default: a,b]",
        "Which one.  [default: red]",
        "Whether it rings.",
    ]
    assert (options["size"].metavar, options["colour"].is_hidden) == ("MM", True)


def test_kinds_are_those_of_the_annotations() -> None:
    assert list_kinds(More) == {
        "size": Kind(int),
        "names": Kind(str, is_list=True),
        "not_an_option": Kind(float),
        "colour": Kind(str, ("red", "green")),
        "is_loud": Kind(bool),
        "file": Kind(Path),
    }


def test_without_docstrings_there_is_no_text() -> None:
    """As with `python -OO`."""
    bare: type = dataclass(type("Bare", (), {"__annotations__": {"size": int}, "size": setting(3)}))
    bare.__doc__ = None
    assert list_options(bare)["size"].help == "  [default: 3]"
