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
    names = sorted(models, key=lambda name: name != truth)
    read = {name: _read_file(models[name], looks=looks and name == truth) for name in names}
    largest = max((item.weight_bytes for item in read.values()), default=0)
    saves_memory = saves_memory or largest >= _HUGE_BYTES
    takes_turns = truth in read and (saves_memory or largest >= _LARGE_BYTES)
    opens = {name: read[name].opens for name in names if runs and (name == truth or not takes_turns)}
    found = {
        name: OpenedFile(
            MovableSession(partial(_open_session, ModelFile(path), saves_memory=saves_memory)),
            read[name].caches,
            read[name].views,
            read[name].weight_bytes,
        )
        for name, path in models.items()
    }
    del read
    give_back_memory(largest)
    for name in [*opens]:
        found[name].session.session = _wrap(opens.pop(name)(), saves_memory=saves_memory)
    return found


@dataclass(frozen=True, slots=True)
class _ReadFile:
    """The same without a session, and what opens one without reading the file once more."""

    caches: tuple[CodedCache, ...]
    views: OutputViews
    weight_bytes: int
    opens: Callable[[], PlainSession]


def _read_file(path: Path, *, looks: bool) -> _ReadFile:
    typed = read_typed(path)
    model, _ = typed
    views = OutputViews()
    if looks:
        views = create_views(without_bf16(model) if has_bf16(model) else model)
    return _ReadFile(find_coded_caches(model), views, count_weight_bytes(model), plan_session(path, typed))


def _open_session(file: ModelFile, *, saves_memory: bool) -> PlainSession:
    with file.open() as path:
        return _wrap(open_compared(path), saves_memory=saves_memory)


def _wrap(session: PlainSession, *, saves_memory: bool) -> PlainSession:
    return FrugalSession(session) if saves_memory else session
