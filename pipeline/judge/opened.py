"""Files that are compared, opened: what runs them, and how their outputs are looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    Where memory is to be saved, or weights are large, those but the truth are read once more and opened when
    they are run.

    Args:
        models: The files.
        truth: Which one is judged by nothing else.
        looks: Whether its outputs say how all are looked at.
        runs: Whether the sessions are opened at all.
        saves_memory: Whether they give memory back after each run.
    """
    found, plans = dict[str, OpenedFile](), dict[str, Callable[[], PlainSession]]()
    for name in sorted(models, key=lambda name: name != truth):
        found[name], plans[name] = _read_file(models[name], looks=looks and name == truth, saves=saves_memory)
    largest = max((item.weight_bytes for item in found.values()), default=0)
    if truth in found and (saves_memory or largest >= _LARGE_BYTES):
        plans = {truth: plans[truth]}
    give_back_memory(largest)
    for name in [*plans] if runs else []:
        opens = plans.pop(name)  # with the model, if it holds it
        found[name].session.session = _wrap(opens(), saves_memory=saves_memory)
    return {name: found[name] for name in models}


def _read_file(path: Path, *, looks: bool, saves: bool) -> tuple[OpenedFile, Callable[[], PlainSession]]:
    """Returns what a file gives, and what opens its session without reading it once more."""
    typed = read_typed(path)
    model, _ = typed
    views = OutputViews()
    if looks:
        views = create_views(without_bf16(model) if has_bf16(model) else model)
    session = MovableSession(partial(_open_session, ModelFile(path), saves_memory=saves))
    found = OpenedFile(session, find_coded_caches(model), views, count_weight_bytes(model))
    return found, plan_session(path, typed)


def _open_session(file: ModelFile, *, saves_memory: bool) -> PlainSession:
    with file.open() as path:
        return _wrap(open_compared(path), saves_memory=saves_memory)


def _wrap(session: PlainSession, *, saves_memory: bool) -> PlainSession:
    return FrugalSession(session) if saves_memory else session
