"""ONNX Runtime sessions over a model that is held in memory."""

from __future__ import annotations

import ctypes
import math
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir

from trtq import lazy
from trtq.errors import MissingDependency, ModelError, UsageError
from trtq.files import refuse_name
from trtq.models.operators import list_custom_ops
from trtq.models.packed import pack
from trtq.models.ports import to_plain, with_plain_ports
from trtq.temporary import open_temporary_folder
from trtq.workers import find_core_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
}
"""Of what calibration looks at, by ONNX Runtime's words."""

_FLOATS = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))
INLINE_LIMIT_BYTES = 1 << 30
"""Protobuf holds at most 2 GiB; models above half of it keep their weights in a second file."""
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""ONNX Runtime 1.21 and newer; without it, a model in memory has its data in the working folder."""

OPTIMIZED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
"""A graph that is written back, which its file does not hold if it is large, needs one for its weights."""


def _list_weights(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def count_weight_bytes(model: ir.Model) -> int:
    """Returns the size of all initializers in bytes."""
    return sum(tensor.nbytes for tensor in _list_weights(model))


def _stays_inside(value: ir.Value) -> bool:
    """Whether ONNX Runtime is to find a weight in the model: it throws unused ones away, and misses them."""
    return isinstance(value.const_value, ir.ExternalTensor) or not value.uses()


def save(model: ir.Model, path: Path, data: str | None = None) -> None:
    """Writes an ONNX file; the weights of a large model go to another one beside it, one after another.

    Weights that lie in another file, or are computed when they are read, are in memory one at a time.

    Args:
        model: What to write.
        path: The ONNX file.
        data: The name of the file for the weights of a large model; None: `<name>.data`.
    """
    is_streamed = any(isinstance(item, ir.ExternalTensor | ir.LazyTensor) for item in _list_weights(model))
    is_large = count_weight_bytes(model) > INLINE_LIMIT_BYTES or is_streamed
    ir.save(model, path, external_data=(data or f"{path.name}.data") if is_large else None)


_UNREGISTERED = "is not a registered function/op"
_FOREIGN = re.compile(r"tensor\((bfloat16|float[48]\w+|u?int[24])\)")
"""Types of inputs and outputs that NumPy has not, as ONNX Runtime calls them."""


class SessionPort(Protocol):
    """An input or output of a session; its shape has names where it is open."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def shape(self) -> Sequence[int | str | None]:
        """Its dims."""

    @property
    def type(self) -> str:
        """Such as "tensor(float)"."""


class Session(Protocol):
    """An `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> Sequence[SessionPort]:
        """Returns the inputs in the model's order."""

    def get_outputs(self) -> Sequence[SessionPort]:
        """Returns the outputs in the model's order."""

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns the named outputs, all if None, for one feed."""

    def io_binding(self) -> Any:
        """Returns an `onnxruntime.IOBinding`, which holds inputs and outputs in memory of ours."""

    def run_with_iobinding(self, binding: Any, /) -> None:
        """Runs the model on what is bound."""

    def end_profiling(self) -> str:
        """Returns the path of the file with the times of all kernels, which is then complete."""

    def get_session_options(self) -> Any:
        """Returns its `onnxruntime.SessionOptions`."""


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How ONNX Runtime runs a model.

    Attributes:
        device: `cpu` or `cuda`.
        num_threads: For one run; 0: as many as there are cores.
        keeps_memory: Whether memory is kept for the next run, which is faster and takes more of it.
        keeps_order: Whether nodes run in the graph's order. ONNX Runtime's own order begins with all that
            the last node needs, and holds every tensor of which something else is wanted until then.
        packs_weights: Whether weights are copied once into the order in which the kernels read them, which is
            faster from the second run on, takes their size once more, and sums up in another order.
        fuses_qdq: Whether an optimized graph may run layers behind Q/DQ as integer kernels, as the session of
            a user does. On processors without VNNI these saturate, so nothing is observed with them.
        profile: A folder for the times of all kernels, which `end_profiling` writes, and the graph that is
            run, `optimized.onnx`; None: neither.
        optimized: Where the graph that is run is written, with its weights inside; None: nowhere.
    """

    device: str = "cpu"
    num_threads: int = 0
    keeps_memory: bool = True
    keeps_order: bool = False
    packs_weights: bool = True
    fuses_qdq: bool = False
    profile: Path | None = None
    optimized: Path | None = None


def open_session(
    model: ir.Model | Path | bytes, *, optimize: bool, engine: SessionOptions | None = None
) -> Session:
    """Returns an `onnxruntime.InferenceSession`.

    The session takes and gives FP32 where the types of the model are none of NumPy's.

    Args:
        model: A model, the path of one, or the content of a file that has its weights inside.
        optimize: Whether ONNX Runtime may rewrite the graph. Accuracy is judged without: with it, some FP16
            Q/DQ graphs compute something else.
        engine: How it is run; None: on the CPU, with all cores.

    Raises:
        ModelError: ONNX Runtime cannot load the model; its own words are kept.
        MissingDependency: ONNX Runtime has no CUDA here.
    """
    onnxruntime = lazy.require("onnxruntime", None, "running the model")
    engine = engine or SessionOptions()
    providers = list_providers(engine.device)
    create: Callable[..., Session] = onnxruntime.InferenceSession
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine.num_threads or find_core_limit()
    options.enable_cpu_mem_arena = engine.keeps_memory
    if engine.keeps_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if not engine.packs_weights:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not engine.fuses_qdq:  # threads that spin while they wait take the cores from sessions beside them
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False  # a plan of the second run's memory, beside that of the first
    options.log_severity_level = 4  # errors come as exceptions; warnings are about other people's graphs
    level = "ORT_ENABLE_ALL" if optimize else "ORT_DISABLE_ALL"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if optimize and not engine.fuses_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if engine.profile is not None:
        _profile(options, engine.profile)
    if engine.optimized is not None:
        options.optimized_model_filepath = str(engine.optimized)
    register_custom_ops(options)
    with _explain("load"):
        if isinstance(model, Path | bytes):
            if isinstance(model, Path):
                refuse_name(model)
            given = str(model) if isinstance(model, Path) else model
            session = create(given, options, providers=providers)
            ports = (*session.get_inputs(), *session.get_outputs())
            if not any(_FOREIGN.fullmatch(port.type) for port in ports):
                return session
            model = ir.load(model) if isinstance(model, Path) else _parse(model)
        model = with_plain_ports(model)
        outside = [item for item in _list_weights(model) if isinstance(item, ir.ExternalTensor)]
        folders = {str(item.base_dir) for item in outside}
        num_inside = count_weight_bytes(model) - sum(item.nbytes for item in outside)
        if num_inside <= INLINE_LIMIT_BYTES and len(folders) <= 1:
            for folder in folders:
                options.add_session_config_entry(_EXTERNAL_FOLDER, str(Path(folder).resolve()))
            packed = pack(model, _stays_inside)
            arrays = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in packed.weights.values()]
            options.add_external_initializers(list(packed.weights), arrays)
            return create(packed.proto, options, providers=providers)
        with open_temporary_folder() as place:
            save(model, place / "model.onnx")
            return open_session(place / "model.onnx", optimize=optimize, engine=engine)


def register_custom_ops(options: Any) -> None:
    """Has a session know the operators of the libraries that the user names.

    Args:
        options: `onnxruntime.SessionOptions`.

    Raises:
        UsageError: ONNX Runtime cannot load a library.
    """
    for path in list_custom_ops():
        try:
            options.register_custom_ops_library(path)
        except list_runtime_errors() as error:
            words = " ".join((str(error).partition(" : ")[2] or str(error)).split())
            raise UsageError(
                f"ONNX Runtime cannot load the custom operators of {path}: {words[:300]}; the library needs "
                f"the function RegisterCustomOps, of this ONNX Runtime's version or an older one"
            ) from error


def _profile(options: Any, folder: Path) -> None:
    """Has a session write what it runs and how long that takes."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "kernels")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.add_session_config_entry(OPTIMIZED_WEIGHTS, "weights")


def open_session_of(model: ir.Model, names: Iterable[str]) -> Session:
    """Returns a session that gives those of these tensors that nodes make, as `open_session` does otherwise.

    Args:
        model: It is not changed.
        names: In the order of the session's outputs; others are left out.
    """
    shown = model.clone()
    made = {value.name: value for node in shown.graph for value in node.outputs}
    shown.graph.outputs[:] = [made[name] for name in names if name in made]
    return open_session(shown, optimize=False)


def _parse(content: bytes) -> ir.Model:
    import onnx

    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(content))
    return model


class RunningSession(Protocol):
    """What can be run."""

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns the named outputs, all if None, for one feed."""


def run(
    session: RunningSession, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Returns the named outputs for one feed.

    Raises:
        ModelError: ONNX Runtime fails in the middle of the graph; its own words are kept.
    """
    with _explain("run"):
        return list(session.run(list(outputs), to_plain(feed)))


def fit_floats(ports: Iterable[SessionPort], arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns the arrays that a session takes, floats in its widths: a file may take FP16 or float64.

    Args:
        ports: The session's inputs.
        arrays: By name; others are left out.
    """
    types = {item.name: _DTYPES.get(item.type) for item in ports}
    return {
        name: array.astype(types[name]) if array.dtype in _FLOATS and types[name] in _FLOATS else array
        for name, array in arrays.items()
        if name in types
    }


def list_providers(device: str) -> list[str]:
    """Returns the execution providers of ONNX Runtime for a device, `cpu` or `cuda`.

    Raises:
        MissingDependency: ONNX Runtime has no CUDA here.
    """
    if device == "cpu":
        return ["CPUExecutionProvider"]
    onnxruntime = lazy.require("onnxruntime", None, "running the model")
    available = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in available:
        raise MissingDependency(
            f"running the model on CUDA needs ONNX Runtime's CUDAExecutionProvider, this one has "
            f"{', '.join(available)}; install onnxruntime-gpu in place of onnxruntime, or run on the cpu"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def visit_tensors(
    session: Session,
    outputs: Sequence[str],
    feed: Mapping[str, NDArray[Any]],
    use: Callable[[str, NDArray[Any]], None],
) -> None:
    """Runs the model and calls `use` with the name and array of each output, without a copy of them.

    Args:
        session: An `onnxruntime.InferenceSession`.
        outputs: Names, in the order of the calls.
        feed: The inputs.
        use: The array is valid during the call only.

    Raises:
        ModelError: ONNX Runtime fails in the middle of the graph; its own words are kept.
    """
    binding = session.io_binding()
    with _explain("run"):
        for name, array in to_plain(feed).items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array).reshape(array.shape))
        for name in outputs:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
    for name, value in zip(outputs, binding.get_outputs(), strict=True):
        dtype = _DTYPES[value.data_type()]
        size = math.prod(value.shape()) * dtype.itemsize
        content = (ctypes.c_byte * size).from_address(value.data_ptr()) if size else b""
        use(name, np.frombuffer(content, dtype).reshape(value.shape()))


def list_runtime_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions of ONNX Runtime, which share no base class of their own."""
    state = lazy.require("onnxruntime.capi.onnxruntime_pybind11_state", None, "running the model")
    names = (
        "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented",
        "RuntimeException", "EPFail",
    )  # fmt: skip
    # RuntimeError is what a run with bound outputs raises, UnicodeDecodeError a message that is no text.
    return (
        RuntimeError,
        UnicodeDecodeError,
        *(getattr(state, name) for name in names if hasattr(state, name)),
    )


@contextmanager
def _explain(verb: str) -> Iterator[None]:
    """Says what ONNX Runtime cannot do with the model, in its own words."""
    try:
        yield
    except list_runtime_errors() as error:
        words = " ".join((str(error).partition(" : ")[2] or str(error)).split())
        hint = "; --ort-custom-ops names a library that has it" if _UNREGISTERED in words else ""
        raise ModelError(f"ONNX Runtime cannot {verb} the model: {words[:600]}{hint}") from error
