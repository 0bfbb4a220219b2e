"""Whether a loaded model still computes what its file does: the file, untouched, is the witness."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from trtq.calibrators.batches import Batches
from trtq.calibrators.memory import find_free_bytes
from trtq.calibrators.sources import make_random_batches
from trtq.errors import ModelError
from trtq.models.session import Session, fit_floats, open_session, open_session_of, run
from trtq.models.signature import TensorSpec
from trtq.numbers import format_bytes
from trtq.pipeline.graph.fold import RANDOM
from trtq.pipeline.graph.fp4 import without_fp4
from trtq.pipeline.graph.load import Graph, load, read_runnable
from trtq.pipeline.graph.onnx_file import read_model
from trtq.pipeline.graph.opset import FIRST_RUN, infer_shapes, read_opset
from trtq.pipeline.graph.quantized import is_quantized
from trtq.pipeline.graph.state import is_cache
from trtq.pipeline.judge.widen import has_bf16, without_bf16
from trtq.progress import Watcher

_MOST_SAMPLES = 4
_SIZES = (64, 1)
"""What open dims of made-up inputs are: a picture of one pixel hides how it is resized."""
_LOWEST_DB = {np.dtype(np.float32): 70.0, np.dtype(np.float64): 70.0}
"""Float rounding costs less, even where a fold multiplies weights beforehand."""
_LOWEST_HALF_DB, _LOWEST_QUANTIZED_DB = 35.0, 20.0
"""A half has 11 bits; and a code may be rounded to the next one where a product lies between two."""
_NOISE = 1e-6
"""What a difference must exceed: a saturated sigmoid is off by as much, whatever it is itself."""
_MOST_OTHERS = 0.01
"""The share of integers, and of values that are not finite, that may differ: ties fall either way."""

Arrays = Mapping[str, NDArray[Any]]


def check_against_file(
    graph: Graph,
    batches: Batches | None,
    watcher: Watcher,
    shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    *,
    most_bytes: int | None = None,
) -> None:
    """Compares a loaded model with its file, as ONNX Runtime runs it, on a few samples.

    What cannot be compared is told to the watcher. Nothing is run where loading has rewritten nothing.

    Args:
        graph: What was loaded, perhaps repaired.
        batches: The data of which the first samples are taken; None: made-up numbers.
        watcher: Receives the progress.
        shapes: Of made-up inputs, by name, where they are known.
        most_bytes: Memory that this may take; None: what is free.

    Raises:
        ModelError: They differ by more than rounding; the node where that begins is named.
        DataError: The data does not fit.
    """
    if not graph.is_rewritten or graph.is_inexact:
        return
    random = next((node for node in graph.model.graph.all_nodes() if node.op_type in RANDOM), None)
    if random is not None:
        _tell(graph, watcher, f"node {random.name!r} ({random.op_type}) draws random numbers")
        return
    needed = _count_run_bytes(graph.model)
    if needed > find_free_bytes():
        _tell(graph, watcher, "there is too little memory")
        return
    if most_bytes is not None and needed > most_bytes:
        _tell(graph, watcher, f"running both would take {format_bytes(needed)} of memory")
        return
    watcher.stage("Checking the model")
    try:
        feed, theirs = _run_first(_open_file(graph.path), graph, batches, shapes)
    except ModelError as error:
        _tell(graph, watcher, str(error))
        return
    origin = "random numbers" if batches is None else batches.origin
    ours = _run(_open(graph.model), feed)
    if not _list_others(theirs, ours, None):  # the strictest: nobody has to look what the file computes in
        return
    lowest = _choose_lowest(graph)
    if not (differing := _list_others(theirs, ours, lowest)):
        return
    name = differing[0]
    where = _find_place(graph, feed, lowest) if name in ours else f"output {name!r}"
    if where is None:
        watcher.warn(
            f"output {name!r} differs from that of {graph.path} on {origin}, and only from where values tie "
            f"but for rounding: what follows is not compared"
        )
        return
    raise ModelError(
        f"{where} gives something else than in {graph.path} itself once trtq "
        f"has loaded it ({_describe(theirs[name], ours.get(name))} at output {name!r}, on {origin}); "
        f"export the model with opset {graph.opset} or newer, without what trtq rewrites: "
        f"{'; '.join(graph.notes)}"
    )


def _count_run_bytes(model: ir.Model) -> int:
    """Returns what the weights of both take; ONNX Runtime has FP16 in FP32 beside on the CPU."""
    weights = (value.const_value for value in model.graph.initializers.values())
    held = [tensor for tensor in weights if tensor is not None]
    halves = sum(2 * item.nbytes for item in held if item.dtype is ir.DataType.FLOAT16)
    return 2 * sum(item.nbytes for item in held) + halves


def _choose_lowest(graph: Graph) -> float | None:
    """Returns the least ratio in dB where the dtypes of the outputs do not tell it."""
    if is_quantized(graph.model):
        return _LOWEST_QUANTIZED_DB
    file = read_model(graph.path)
    takes_bf16 = any(value.dtype is ir.DataType.BFLOAT16 for value in file.graph.inputs)
    return _LOWEST_HALF_DB if takes_bf16 or has_bf16(file) else None


def _tell(graph: Graph, watcher: Watcher, reason: str) -> None:
    """Tells why there is no comparison, and what is the reference of later ones."""
    is_known = read_opset(read_model(graph.path)) >= FIRST_RUN
    told = "" if is_known else ", and is the reference of every comparison"
    watcher.warn(f"the loaded model is not compared with {graph.path} itself{told}: {reason}")


def open_reference(path: Path, *, optimize: bool = False) -> Session:
    """Returns a session that runs a file as it is, or raised where ONNX Runtime does not know its opset.

    Args:
        path: The file.
        optimize: Whether ONNX Runtime may rewrite the graph.

    Raises:
        ModelError: ONNX Runtime cannot load it.
    """
    if optimize:
        with suppress(ModelError):
            return open_session(path, optimize=True)
    try:
        return _open_file(path)
    except ModelError:
        if read_opset(read_model(path)) >= FIRST_RUN:
            raise
        return open_session(load(path, min_opset=13).model, optimize=False)


def _open_file(path: Path) -> Session:
    """Returns a session that runs a file as it is, or else as ONNX Runtime takes it."""
    try:
        return open_session(path, optimize=False)
    except ModelError:
        return open_session(_read_file(path), optimize=False)


def _read_file(path: Path) -> ir.Model:
    """Returns the model of a file as ONNX Runtime takes it: BF16, for which it has no kernels, is FP32."""
    model, _ = read_runnable(path)
    return without_bf16(model) if has_bf16(model) else model


def _run_first(
    session: Session, graph: Graph, batches: Batches | None, shapes: Mapping[str, Sequence[int]]
) -> tuple[Arrays, Arrays]:
    """Returns the first samples of the data, or made-up ones that the file takes, and its outputs."""
    if batches is not None:
        feed = _take_feed(graph, batches)
        return feed, _run(session, feed)
    failure = ModelError(f"{graph.path} has no inputs")
    steps = (True, False) if any(is_cache(item.name, item.shape) for item in graph.inputs) else (False,)
    for size, is_step in itertools.product(_SIZES, steps):
        sizes = _fill(graph, shapes, size, is_step=is_step)
        feed = _take_feed(graph, make_random_batches(graph.inputs, sizes, 1))
        try:
            return feed, _run(session, feed)
        except ModelError as error:
            failure = ModelError(f"it was tried on random numbers, and {error}")
    raise failure


def _fill(
    graph: Graph, shapes: Mapping[str, Sequence[int]], size: int, *, is_step: bool
) -> dict[str, Sequence[int]]:
    """Returns shapes of all inputs: the known ones, and of the others two samples with this size.

    A step has one new token beside a cache of this size, and a mask for both.
    """

    def find(item: TensorSpec) -> list[int]:
        is_whole = not is_step or is_cache(item.name, item.shape)
        other = size if is_whole else size + 1 if "mask" in item.name else 1
        return [dim if isinstance(dim, int) else other if axis else 2 for axis, dim in enumerate(item.shape)]

    return {item.name: shapes.get(item.name) or find(item) for item in graph.inputs}


def _take_feed(graph: Graph, batches: Batches) -> Arrays:
    first = next(iter(batches))
    feed = {item.name: first.arrays[item.name] for item in graph.inputs}
    is_open = all(item.shape and not isinstance(item.shape[0], int) for item in graph.inputs)
    if batches.feed_samples is not None and is_open:
        return {name: array[:_MOST_SAMPLES] for name, array in feed.items()}
    return feed


def _run(session: Session, feed: Arrays) -> Arrays:
    """Returns the outputs, flat."""
    names = [item.name for item in session.get_outputs()]
    arrays = run(session, names, fit_floats(session.get_inputs(), feed))
    return {name: np.ravel(array) for name, array in zip(names, arrays, strict=True)}


def _list_others(theirs: Arrays, ours: Arrays, lowest: float | None) -> list[str]:
    return [name for name in theirs if _is_other(theirs[name], ours.get(name), lowest)]


def _is_other(theirs: NDArray[Any], ours: NDArray[Any] | None, lowest: float | None) -> bool:
    """Whether two flat arrays differ by more than rounding."""
    if ours is None or theirs.shape != ours.shape:
        return True
    if not np.issubdtype(theirs.dtype, np.inexact):
        return bool(np.mean(theirs != ours) > _MOST_OTHERS) if theirs.size else False
    limit = lowest if lowest is not None else _LOWEST_DB.get(theirs.dtype, _LOWEST_HALF_DB)
    return measure_sqnr(theirs, ours) < limit


def measure_sqnr(theirs: NDArray[Any], ours: NDArray[Any]) -> float:
    """Returns the ratio of the signal to the difference in dB: inf if there is none to speak of.

    Values that are not finite in both count only if many are so in one alone: -inf then.
    """
    a, b = theirs.astype(np.float64), ours.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if a.size and np.mean(finite | (a == b) | (np.isnan(a) & np.isnan(b))) < 1 - _MOST_OTHERS:
        return -np.inf
    a, b = a[finite], b[finite]
    if np.abs(a - b).max(initial=0.0) <= _NOISE:
        return float(np.inf)
    largest = np.abs(a).max()
    if not largest:
        return -np.inf
    return float(10 * np.log10(np.square(a / largest).sum() / np.square((a - b) / largest).sum()))


def _describe(theirs: NDArray[Any], ours: NDArray[Any] | None) -> str:
    if ours is None:
        return "which is gone"
    if theirs.shape != ours.shape:
        return "of another shape"
    if not np.issubdtype(theirs.dtype, np.inexact):
        return f"{np.mean(theirs != ours):.0%} of the values differ"
    return f"{measure_sqnr(theirs, ours):.1f} dB SQNR"


def _find_place(graph: Graph, feed: Arrays, lowest: float | None) -> str | None:
    """Returns the first node of the file whose output differs though what is known of its inputs agrees.

    None: an index differs first, which rounding may have tipped.

    A tensor of the file is looked at if it is an output, or if the loaded model has it and all that its
    readers make: the others were folded, and their names may have gone to something else.
    """
    file = _read_file(graph.path)
    with suppress(ModelError):
        infer_shapes(file)
    shared = _names_made(graph.model) & _names_made(file)
    looked_at = [
        str(value.name)
        for node in file.graph
        for value in node.outputs
        if value.is_graph_output() or (value.name in shared and _read_names(value) <= shared)
    ]
    theirs, ours = (
        _run(open_session_of(without_fp4(model), looked_at), feed) for model in (file, graph.model)
    )
    for node in file.graph:
        given = [str(value.name) for value in node.inputs if value is not None and value.name in theirs]
        made = [str(value.name) for value in node.outputs if value.name in theirs]
        others = [name for name in made if _is_other(theirs[name], ours[name], lowest)]
        near = {name for name in given if _is_near(theirs[name], ours[name], lowest)}
        same = {name for name in given if np.array_equal(theirs[name], ours[name])}
        is_float = all(np.issubdtype(theirs[name].dtype, np.inexact) for name in others)
        if others and set(given) <= (near if is_float else same):
            return f"node {node.name!r} ({node.op_type})"
    return None


def _is_near(theirs: NDArray[Any], ours: NDArray[Any], lowest: float | None) -> bool:
    """Whether an operand is the same but for rounding; of integers one may have picked another value."""
    if np.issubdtype(theirs.dtype, np.inexact):
        return not _is_other(theirs, ours, lowest)
    return np.array_equal(theirs, ours)


def _names_made(model: ir.Model) -> set[str]:
    made = (value for node in model.graph for value in node.outputs if value.name)
    return {str(value.name) for value in made if isinstance(value.type, ir.TensorType) and _is_numpy(value)}


def _read_names(value: ir.Value) -> set[str]:
    """Returns the names of what the readers of a value make."""
    return {str(item.name) for reader, _ in value.uses() for item in reader.outputs if item.name}


def _is_numpy(value: ir.Value) -> bool:
    return value.dtype not in (None, ir.DataType.STRING)


def _open(model: ir.Model) -> Session:
    return open_session(without_fp4(model), optimize=False)
