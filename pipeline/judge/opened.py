"""A file that is compared, opened: what runs it, and how its outputs are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from trtq.calibrators.memory import give_back_memory
from trtq.models.frugal import FrugalSession
from trtq.models.runner import MovableSession, PlainSession
from trtq.models.session import count_weight_bytes
from trtq.pipeline.graph.carried import ModelFile
from trtq.pipeline.graph.kv_cache import CodedCache, find_coded_caches
from trtq.pipeline.judge.runs import open_compared, plan_session, read_typed
from trtq.pipeline.judge.views import OutputViews, create_views
from trtq.pipeline.judge.widen import has_bf16, without_bf16

_LARGE_BYTES = 10**8
"""Of weights that are not held more often than they have to be, though it takes time to read data again."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file that is compared.

    Attributes:
        session: What runs it.
        caches: Those that it has in codes.
        views: How its outputs are looked at.
        weight_bytes: The size of its weights.
    """

    session: MovableSession
    caches: tuple[CodedCache, ...]
    views: OutputViews
    weight_bytes: int


def open_files(
    models: Mapping[str, Path], truth: str, *, looks: bool, runs: bool, saves_memory: bool
) -> dict[str, OpenedFile]:
    """Returns what each file gives, by the names of the models.

    Where memory is to be saved, or the weights of a file are large, those but the truth are opened when they
    are run.

    Args:
        models: The files.
        truth: Which one is judged by nothing else.
        looks: Whether its outputs say how all are looked at.
        runs: Whether the sessions are opened at all.
        saves_memory: Whether they give memory back after each run.
    """
    found = dict[str, OpenedFile]()
    for name in sorted(models, key=lambda name: name != truth):
        waits = truth in found and (saves_memory or found[truth].weight_bytes >= _LARGE_BYTES)
        found[name] = open_file(
            models[name], looks=looks and name == truth, runs=runs and not waits, saves_memory=saves_memory
        )
    return {name: found[name] for name in models}


def open_file(path: Path, *, looks: bool, runs: bool, saves_memory: bool = False) -> OpenedFile:
    """Returns what a file gives, which is read once if its session is opened here.

    Args:
        path: The file.
        looks: Whether its outputs say how all are looked at.
        runs: Whether its session is opened here and now.
        saves_memory: Whether the session gives memory back after each run.
    """
    typed = read_typed(path)
    views, caches, weight_bytes = OutputViews(), find_coded_caches(typed[0]), count_weight_bytes(typed[0])
    if looks:
        views = create_views(without_bf16(typed[0]) if has_bf16(typed[0]) else typed[0])
    opens = plan_session(path, typed) if runs else None
    del typed
    give_back_memory(weight_bytes)  # the file is read once more by what runs it
    session = MovableSession(partial(_open_session, ModelFile(path), saves_memory=saves_memory))
    if opens is not None:
        session.session = _save_memory(opens(), saves_memory=saves_memory)
    return OpenedFile(session, caches, views, weight_bytes)


def _open_session(file: ModelFile, *, saves_memory: bool) -> PlainSession:
    with file.open() as path:
        return _save_memory(open_compared(path), saves_memory=saves_memory)


def _save_memory(session: PlainSession, *, saves_memory: bool) -> PlainSession:
    return FrugalSession(session) if saves_memory else session
