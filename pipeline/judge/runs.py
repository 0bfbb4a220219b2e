"""Models that are run side by side, each in the session in which it is compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.batches import Feed
from trtq.calibrators.memory import give_back_memory
from trtq.errors import ModelError
from trtq.models.ports import to_plain
from trtq.models.session import Session, count_weight_bytes, list_runtime_errors, open_session
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.judge.exact import make_quantize_exact
from trtq.pipeline.judge.halves import emulate_halves
from trtq.pipeline.judge.witness import open_reference
from trtq.workers import Threads

_WORK = "comparing models"
_EXACT = (ir.DataType.FLOAT, ir.DataType.DOUBLE)
_NEVER_SWAPPED_MB = 1 << 30
Results = Mapping[str, Mapping[str, NDArray[Any]]]
"""The outputs of each model for one feed."""


def run_feeds(
    runners: Sequence[Any], feeds: Iterable[Feed], origin: str, labels: str | None, *, at_once: bool = False
) -> Generator[tuple[Feed, Results], None, None]:
    """Yields each feed with the outputs of each model; one feed is in memory at a time.

    Args:
        runners: Polygraphy runners.
        feeds: The data.
        origin: What it is, for messages.
        labels: The array of each feed that is no input; None: there is none.
        at_once: Whether the models run a feed at the same time, each in a thread of its own.

    Raises:
        ModelError: A model cannot be run on them.
    """
    comparator = lazy.require("polygraphy.comparator", None, _WORK).Comparator
    logger = lazy.require("polygraphy.logger", None, _WORK).G_LOGGER
    exception = lazy.require("polygraphy.exception", None, _WORK).PolygraphyException
    current: list[Feed] = []
    arrays: list[dict[str, NDArray[Any]]] = []

    def read() -> Iterator[dict[str, NDArray[Any]]]:
        while True:
            yield arrays[0]

    groups = [[runner] for runner in runners] if at_once else [runners]
    with logger.verbosity(logger.CRITICAL + 1), _without_torch(), ExitStack() as stack:
        # What Polygraphy prints is in our message.
        streams = [comparator.run(group, data_loader=read(), streaming=True) for group in groups if group]
        for stream in streams:
            stack.enter_context(closing(stream))
        try:
            for feed in feeds if streams else ():
                current[:], arrays[:] = [feed], [to_plain(drop(feed.arrays, [labels]))]
                results = chain.from_iterable(_advance(streams))
                yield feed, {name: dict(iterations[0].items()) for name, iterations in results}
        except (*list_runtime_errors(), exception) as error:
            source = current[0].source if current else origin
            text = " ".join(str(error).split())[:400]
            raise ModelError(f"running the models on {source} failed: {text}") from error


def _advance(streams: Sequence[Iterator[Any]]) -> Iterable[Any]:
    """Returns the next of each; a single one runs in this thread, as an engine on a GPU has to."""
    return [next(streams[0])] if len(streams) == 1 else Threads(len(streams)).map(next, streams)


@contextmanager
def _without_torch() -> Iterator[None]:
    """Has Polygraphy not add up the bytes of outputs, for which it imports PyTorch where it is installed.

    It does so to advise swapping them to the disk, which a threshold that none reaches says is done.
    """
    config: Any = lazy.require("polygraphy.config", None, _WORK)
    before = config.ARRAY_SWAP_THRESHOLD_MB
    config.ARRAY_SWAP_THRESHOLD_MB = _NEVER_SWAPPED_MB if before < 0 else before
    try:
        yield
    finally:
        config.ARRAY_SWAP_THRESHOLD_MB = before


def drop(arrays: Mapping[str, NDArray[Any]], names: Collection[str | None]) -> dict[str, NDArray[Any]]:
    """Returns the arrays but those with these names."""
    return {name: array for name, array in arrays.items() if name not in names}


def plan_session(path: Path, typed: tuple[ir.Model, bool]) -> Callable[[], Session]:
    """Returns what opens the session in which a file is compared; it holds the model only if it has to.

    The session computes with the model's roundings, and is unoptimized where it rounds.

    Args:
        path: The file.
        typed: What `read_typed` has returned of it.

    Raises:
        ModelError: ONNX Runtime cannot load it, when it is opened.
    """
    model, is_changed = typed
    rounded = emulate_halves(model) or make_quantize_exact(model)
    if rounded is None and not is_changed:
        return partial(open_reference, path, optimize=computes_in_float32(model))
    return partial(open_session, rounded or model, optimize=False)


def open_compared(path: Path) -> Session:
    """Returns the session in which a file is compared; ModelError if ONNX Runtime cannot load it."""
    typed = read_typed(path)
    opens, weight_bytes = plan_session(path, typed), count_weight_bytes(typed[0])
    del typed
    give_back_memory(weight_bytes)
    return opens()


def computes_in_float32(model: ir.Model) -> bool:
    """Whether a model is known to round to no smaller type, so that the fastest kernels compute the same."""
    nodes = [*model.graph.all_nodes()]
    dtypes = {value.dtype for node in nodes for value in node.outputs if value.name}
    if any(dtype is None or (dtype.is_floating_point() and dtype not in _EXACT) for dtype in dtypes):
        return False
    return not any(node.domain or "Quantize" in node.op_type or "Integer" in node.op_type for node in nodes)


def read_typed(path: Path) -> tuple[ir.Model, bool]:
    """Returns a model with the dtypes of its tensors, and whether ONNX Runtime takes it in another form only.

    What is wrong with the file is said in words.
    """
    model, is_changed = read_runnable(path)
    if any(value.dtype is None for node in model.graph.all_nodes() for value in node.outputs):
        with suppress(ModelError):  # ONNX Runtime says what is wrong, if it is
            infer_shapes(model)
    return model, is_changed
