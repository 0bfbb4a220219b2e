"""Which libraries of operators hold: those of a call, or else those of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtq.models.operators import list_custom_ops, use_operators
from trtq.models.spec import OperatorSpec

pytestmark = pytest.mark.usefixtures("no_libraries")


def test_what_the_environment_names_holds_again_after_a_call_that_named_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_operators(OperatorSpec())
    monkeypatch.setenv("TRTQ_ORT_CUSTOM_OPS", "/lib/first.so")  # as a worker gets it, long after the import
    use_operators(OperatorSpec())
    assert list_custom_ops() == ("/lib/first.so",)
    (tmp_path / "own.so").touch()
    use_operators(OperatorSpec(ort_custom_ops=(str(tmp_path / "own.so"),)))
    assert list_custom_ops() == (str(tmp_path / "own.so"),)
    use_operators(OperatorSpec())
    assert list_custom_ops() == ("/lib/first.so",)
    monkeypatch.delenv("TRTQ_ORT_CUSTOM_OPS")
    use_operators(OperatorSpec())
    assert list_custom_ops() == ()
