"""A file that is compared, opened: what runs it, and how its outputs are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trtq.models.runner import MovableSession, PlainSession
from trtq.pipeline.graph.carried import ModelFile
from trtq.pipeline.graph.kv_cache import CodedCache, find_coded_caches
from trtq.pipeline.judge.runs import open_compared, read_typed
from trtq.pipeline.judge.views import OutputViews, create_views
from trtq.pipeline.judge.widen import has_bf16, without_bf16


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file that is compared: its session, its caches of codes, and how its outputs are looked at."""

    session: MovableSession
    caches: tuple[CodedCache, ...]
    views: OutputViews


def open_file(path: Path, *, looks: bool, runs: bool) -> OpenedFile:
    """Returns what a file gives, which is read once.

    Args:
        path: The file.
        looks: Whether its outputs say how all are looked at.
        runs: Whether its session is opened here and now.
    """
    typed = read_typed(path)
    model, _ = typed
    session = MovableSession(partial(_open_session, ModelFile(path)))
    if runs:
        session.session = open_compared(path, typed)
    views = OutputViews()
    if looks:
        views = create_views(without_bf16(model) if has_bf16(model) else model)
    return OpenedFile(session, find_coded_caches(model), views)


def _open_session(file: ModelFile) -> PlainSession:
    with file.open() as path:
        return open_compared(path)
