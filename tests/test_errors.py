"""The tree of errors: what is drawn is what there is, and each has its exit code."""

from __future__ import annotations

import inspect
import re

import pytest

from trtq import errors
from trtq.errors import (
    ArtifactError,
    BuildError,
    DataError,
    GateError,
    MissingDependency,
    ModelError,
    TrtqError,
    UsageError,
    WorkerError,
)


def classes() -> dict[str, type[TrtqError]]:
    return {
        name: value
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if issubclass(value, TrtqError)
    }


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        (UsageError, 2),
        (ModelError, 2),
        (DataError, 2),
        (ArtifactError, 2),
        (GateError, 3),
        (BuildError, 4),
        (MissingDependency, 5),
        (WorkerError, 5),
    ],
)
def test_every_error_has_its_exit_code(kind: type[TrtqError], exit_code: int) -> None:
    assert kind.exit_code == exit_code
    assert issubclass(kind, TrtqError)


def test_the_drawing_names_every_class_with_its_code_and_meaning() -> None:
    drawn = re.findall(r"[├└]── (\w+) +(\d) +(.+)", errors.__doc__ or "")
    real = {name: kind for name, kind in classes().items() if kind is not TrtqError}
    assert {name: int(code) for name, code, _ in drawn} == {
        name: kind.exit_code for name, kind in real.items()
    }
    assert len(drawn) == len(real)
    for name, _, meaning in drawn:
        first = (real[name].__doc__ or "").split("\n")[0]
        assert first.casefold().startswith(meaning.casefold())


def test_the_drawing_has_the_shape_of_the_tree() -> None:
    assert re.search(r"^    TrtqError\b", errors.__doc__ or "", re.MULTILINE)
    assert {kind.__bases__ for kind in classes().values() if kind is not TrtqError} == {(TrtqError,)}


def test_the_root_is_for_catching_alone() -> None:
    assert TrtqError.exit_code == 1
    assert TrtqError.exit_code not in {kind.exit_code for kind in classes().values() if kind is not TrtqError}
