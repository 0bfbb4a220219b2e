"""The public names of the package."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

import trtq


def test_all_names_have_a_home_and_all_homes_a_name() -> None:
    assert set(trtq.__all__) == set(trtq._HOMES)
    assert len(trtq.__all__) == len(set(trtq.__all__))
    assert list(trtq.__all__) == sorted(trtq.__all__)


@pytest.mark.parametrize("name", trtq.__all__)
def test_every_name_is_that_of_its_home(name: str) -> None:
    found = getattr(trtq, name)
    assert found is getattr(importlib.import_module(trtq._HOMES[name]), name)
    assert found.__doc__


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    tree = ast.parse(Path(trtq.__file__).read_text())
    seen = {
        alias.name: statement.module
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == trtq._HOMES


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'trtq' has no attribute 'biuld'$"):
        trtq.biuld  # noqa: B018
