"""Which engine of an index is the one for this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from trtq.errors import ArtifactError, TrtqError, UsageError
from trtq.pipeline.deliver.index import Index, IndexedEngine, read_index, read_indexed
from trtq.pipeline.deliver.integrity import refuse_changed
from trtq.pipeline.deliver.manifest import NAME, Manifest, parse_manifest
from trtq.pipeline.deliver.names import ENGINE, REPORT
from trtq.pipeline.deliver.report import read_report
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.gpu import find_compute_capability
from trtq.pipeline.load.fit import ANYWHERE, find_misfit

T = TypeVar("T")


def open_best(
    index: Path,
    name: str | None,
    key: Path | str | None,
    backend: str | None,
    open_folder: Callable[[Path, Manifest, str | None], T],
) -> T:
    """Returns the engine of an index that fits this machine best, of those that can be opened.

    An engine for exactly this GPU comes before others, then one of exactly this version, then the order of
    the index. One whose gate failed is never taken.

    Args:
        index: The file.
        name: Of the build; None: the index has one alone.
        key: A public key that must have signed the index.
        backend: Who runs it; None: what it was built for.
        open_folder: Opens a folder with this manifest for this backend.

    Raises:
        ArtifactError: The index cannot be read or is not signed by the key, or no engine of it fits: each is
            named with the reason.
        UsageError: There is no such name, or it is not given and there are several.
        MissingDependency: A key is given and `cryptography` is not installed.
    """
    engines = _find_named(index, name, read_index(index, key))
    reasons = {item: _explain(index, item, backend) for item in engines}
    for engine in sorted((item for item in engines if not reasons[item]), key=_rank):
        try:
            return open_folder(*_read(index, engine), backend)
        except TrtqError as error:
            reasons[engine] = str(error)
    known = "; ".join(f"{item.title}: {reason}" for item, reason in reasons.items())
    raise ArtifactError(
        f"{index} has no engine of {engines[0].name!r} that runs here: {known}; build it for a machine "
        f'like this one, or run its Q/DQ model on the CPU: backend="{ANYWHERE}", --backend {ANYWHERE}'
    )


def _find_named(index: Path, name: str | None, content: Index) -> list[IndexedEngine]:
    names, engines = content.names, content.engines
    listed = ", ".join(names) or "none"
    if name is None and len(names) != 1:
        raise UsageError(f"{index} has {len(names)} builds: {listed}; name one: name=... or --name")
    wanted = names[0] if name is None else name
    found = [item for item in engines if item.name == wanted]
    if not found:
        raise UsageError(f"{index} has no build {wanted!r}; it has: {listed}")
    if len({item.kind for item in found}) < len(found):
        raise UsageError(
            f"{index} has several builds named {wanted!r}; give each a unique name in the file of trtq "
            "build-all"
        )
    return found


def _explain(index: Path, engine: IndexedEngine, backend: str | None) -> str:
    """Returns why an engine is not taken here; empty if it can be."""
    if engine.backend not in BACKENDS:
        return f"it was built by {engine.backend!r}, which this trtq does not know"
    if backend not in (None, engine.backend, ANYWHERE):
        return f"it was built for {engine.backend}"
    if engine.verdict == "fail":
        return "its gate failed"
    chosen = BACKENDS[backend or engine.backend]
    if reason := chosen.why_not_run():
        return reason
    try:
        folder, manifest = _read(index, engine)
        if engine.engine != ENGINE or backend == ANYWHERE:
            return ""
        refuse_changed(folder, manifest, REPORT)
        return str(find_misfit(read_report(folder / REPORT), manifest, chosen) or "")
    except ArtifactError as error:
        return str(error)


def _rank(engine: IndexedEngine) -> tuple[bool, bool]:
    is_ours = find_compute_capability() in engine.compute_capabilities
    return not is_ours, engine.version != BACKENDS[engine.backend].version()


def _read(index: Path, engine: IndexedEngine) -> tuple[Path, Manifest]:
    """Returns the folder and manifest of an engine, if the manifest is the one that was indexed."""
    folder = index.parent / engine.folder
    return folder, parse_manifest(read_indexed(index, engine), folder / NAME)
