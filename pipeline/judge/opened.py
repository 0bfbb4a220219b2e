"""Files that are compared, opened: what runs them, and how their outputs are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

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
_HUGE_BYTES = 10**9
"""Of weights beside which no session keeps what its runs needed, which may be twice what one run needs."""


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

    Where memory is to be saved, or weights are large, those but the truth are read once more and opened when
    they are run.

    Args:
        models: The files.
        truth: Which one is judged by nothing else.
        looks: Whether its outputs say how all are looked at.
        runs: Whether the sessions are opened at all.
        saves_memory: Whether they give memory back after each run; huge ones do it anyway.

    Raises:
        ModelError: A file cannot be read, or ONNX Runtime cannot load it.
    """
    found, opens, waits = dict[str, OpenedFile](), dict[str, Callable[[], PlainSession]](), not runs
    for name in sorted(models, key=lambda name: name != truth):
        typed = read_typed(models[name])
        weight_bytes = count_weight_bytes(typed[0])
        saves_memory = saves_memory or weight_bytes >= _HUGE_BYTES
        views = _look_at(typed[0]) if looks and name == truth else OutputViews()
        session = MovableSession(partial(_open_session, ModelFile(models[name]), saves_memory=saves_memory))
        found[name] = OpenedFile(session, find_coded_caches(typed[0]), views, weight_bytes)
        if not waits:
            opens[name] = plan_session(models[name], typed)
        waits = waits or (name == truth and (saves_memory or weight_bytes >= _LARGE_BYTES))
        del typed
        give_back_memory(weight_bytes)
    for name in [*opens]:
        found[name].session.session = _open(opens.pop(name), saves_memory=saves_memory)
    return {name: found[name] for name in models}


def _look_at(model: ir.Model) -> OutputViews:
    return create_views(without_bf16(model) if has_bf16(model) else model)


def _open_session(file: ModelFile, *, saves_memory: bool) -> PlainSession:
    with file.open() as path:
        return _open(partial(open_compared, path), saves_memory=saves_memory)


def _open(opens: Callable[[], PlainSession], *, saves_memory: bool) -> PlainSession:
    session = opens()
    give_back_memory(0)  # what ONNX Runtime needed to load it
    return FrugalSession(session) if saves_memory else session
