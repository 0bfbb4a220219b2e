"""Tests of what may be used again: whatever the result of a stage depends on is in its key."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_builds import spec_of

from trtq.models.operators import CUSTOM_OPS, PLUGINS
from trtq.pipeline.build.keys import make_keys
from trtq.pipeline.build.prepare import prepare
from trtq.pipeline.engine.target import Target
from trtq.progress import Silent


def test_libraries_that_the_environment_names_count(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(small, spec_of(small, "minmax"), Target(backend="onnxruntime"), None, False, Silent())
    library = tmp_path / "ops.so"

    def changes(variable: str, named: str, content: bytes) -> set[str]:
        library.write_bytes(content)
        monkeypatch.setenv(variable, named)
        return {name for name, key in make_keys(job).items() if key != job.keys[name]}

    assert changes(PLUGINS, "", b"") == set()
    assert changes(PLUGINS, str(library), b"1") == {"engine", "everything"}
    monkeypatch.delenv(PLUGINS)
    assert changes(CUSTOM_OPS, str(library), b"1") == {"ranges", "engine", "everything"}
    before = make_keys(job)
    assert make_keys(job) == before
    changes(CUSTOM_OPS, str(library), b"2")
    assert make_keys(job) != before
    changes(CUSTOM_OPS, "libops.so", b"")  # which one that is, the loader decides
    assert make_keys(job) != make_keys(job)
