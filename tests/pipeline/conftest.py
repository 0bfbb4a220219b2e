"""Small graphs from ONNX text, ONNX Runtime to run them, and the real TensorRT-RTX to build them."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from host_memory import HostMemory
from numpy.typing import NDArray

from trtq.models.session import open_session, run
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.tensorrt import TensorRt
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.judge.exact import make_quantize_exact

_NUMPY_OF = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

_BUILD = r"""
import json, sys
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors, self.layers = [], ""
    def log(self, severity, message):
        if message.lstrip().startswith("Layers:"):
            self.layers = message
        elif severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)

logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
if not parser.parse_from_file(sys.argv[1]):
    sys.exit("parse: " + "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
profile = builder.create_optimization_profile()
for name, shape in json.loads(sys.argv[2]).items():
    profile.set_shape(name, shape, shape, shape)
assert config.add_optimization_profile(profile) >= 0
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
if builder.build_serialized_network(network, config) is None:
    sys.exit("build: " + "; ".join(logger.errors))
print(logger.layers)
"""
_KERNEL = re.compile(
    r"Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[(.*)\], Outputs: \[(.*?)\], TacticName:"
)


@pytest.fixture
def model_of(path_of: Callable[..., Path]) -> Callable[..., ir.Model]:
    """Returns a graph in ONNX's text as a model with shapes and named nodes, and nothing rewritten."""

    def parse(text: str, **arguments: Any) -> ir.Model:
        model = ir.load(path_of(text, **arguments))
        ir.passes.common.NameFixPass()(model)
        infer_shapes(model)
        return model

    return parse


@pytest.fixture
def graph_of(path_of: Callable[..., Path]) -> Callable[..., Graph]:
    """Returns a graph in ONNX's text as `load` gives it."""

    def parse(text: str, *, min_opset: int = 19, **arguments: Any) -> Graph:
        return load(path_of(text, **arguments), min_opset=min_opset)

    return parse


@pytest.fixture
def outputs_of() -> Callable[..., list[NDArray[Any]]]:
    """Runs a model in ONNX Runtime on random inputs; a size for an open dim is given by its name.

    Two models get the same inputs for the same seed, even if the one computes in another precision.
    """

    def evaluate(
        model: ir.Model | Path, *, seed: int = 0, feed: dict[str, NDArray[Any]] | None = None, **sizes: int
    ) -> list[NDArray[Any]]:
        session = open_session(_exact(model), optimize=False)
        generator = np.random.default_rng(seed)
        inputs: dict[str, NDArray[Any]] = {
            item.name: generator.standard_normal(
                [dim if isinstance(dim, int) and dim >= 0 else sizes.get(str(dim), 2) for dim in item.shape]
            ).astype(_NUMPY_OF[item.type])
            for item in session.get_inputs()
        }
        found = run(session, [item.name for item in session.get_outputs()], inputs | (feed or {}))
        return [np.array(array) for array in found]  # ONNX Runtime may return views of the inputs

    return evaluate


@pytest.fixture
def assert_equal_outputs(outputs_of: Callable[..., list[NDArray[Any]]]) -> Callable[..., None]:
    """Checks with ONNX Runtime that two models compute the same, under the same names, on random inputs."""

    def check(
        before: ir.Model | Path,
        after: ir.Model,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        **arguments: Any,
    ) -> None:
        old = ir.load(before) if isinstance(before, Path) else before
        assert [value.name for value in after.graph.outputs] == [value.name for value in old.graph.outputs]
        assert [value.name for value in after.graph.inputs] == [
            value.name for value in old.graph.inputs if value.name not in old.graph.initializers
        ]
        for seed in (0, 1):
            wanted, found = (outputs_of(model, seed=seed, **arguments) for model in (before, after))
            for want, have in zip(wanted, found, strict=True):
                assert want.dtype == have.dtype
                np.testing.assert_allclose(have, want, rtol=rtol, atol=atol)

    return check


@pytest.fixture
def assert_near(outputs_of: Callable[..., list[NDArray[Any]]]) -> Callable[..., None]:
    """Checks with ONNX Runtime that two models give nearly the same on random inputs, and the same dtypes."""

    def check(before: ir.Model, after: ir.Model, *, tolerance: float = 5e-3, **arguments: Any) -> None:
        for seed in (0, 1):
            wanted, found = (outputs_of(model, seed=seed, **arguments) for model in (before, after))
            for want, have in zip(wanted, found, strict=True):
                assert want.dtype == have.dtype
                assert np.isfinite(want).all()
                np.testing.assert_allclose(have, want, rtol=tolerance, atol=tolerance * np.abs(want).max())

    return check


@pytest.fixture
def build_rtx(tmp_path: Path) -> Callable[..., dict[str, set[str]]]:
    """Builds an engine in a process of its own; gives the datatypes of the inputs and constants by kernel."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed: pip install 'trtq[rtx]'")

    def build(model: ir.Model, **sizes: int) -> dict[str, set[str]]:
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        path = tmp_path / "to_build.onnx"
        ir.save(model, path)
        shapes = {
            value.name: [dim if isinstance(dim, int) else sizes.get(str(dim.value), 2) for dim in value.shape]
            for value in model.graph.inputs
            if value.shape is not None
        }
        command = [sys.executable, "-c", _BUILD, str(path), json.dumps(shapes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        kernels = [match for line in done.stdout.splitlines() if (match := _KERNEL.match(line))]
        return {kernel[1]: set(re.findall(r"Datatype: (\w+)", kernel[3] + kernel[4])) for kernel in kernels}

    return build


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two convolutions, and data for them: quick to build."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        small (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          [first] h = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1, b1)
          [act] r = Relu (h)
          [second] y = Conv <kernel_shape = [1,1]> (r, w2)
        }""")
    for name, shape in (("w1", (8, 3, 3, 3)), ("b1", (8,)), ("w2", (4, 8, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "small.onnx")
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((16, 3, 8, 8)).astype(np.float32))
    return tmp_path / "small.onnx"


@pytest.fixture
def tensorrt_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a recording TensorRT of a version importable, also for child processes; gives its name."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def module(version: str) -> str:
        name = f"tensorrt_{version.replace('.', '_')}"
        text = f"import recording_tensorrt\nglobals().update(recording_tensorrt.names_of({version!r}))\n"
        if not (folder / f"{name}.py").exists():
            (folder / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)  # of an earlier test
            importlib.invalidate_caches()
        return name

    return module


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the backend believe in a GPU of compute capability 8.9."""
    monkeypatch.setattr("trtq.pipeline.engine.tensorrt.explain_missing_gpu", lambda: "")
    monkeypatch.setattr("trtq.pipeline.engine.tensorrt.find_compute_capability", lambda: "8.9")
    monkeypatch.setattr("trtq.pipeline.build.keys.find_compute_capability", lambda: "8.9")


@pytest.fixture
def install(
    tensorrt_module: Callable[[str], str], one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts a version of the recording TensorRT in the place of the backend's; engines run in ONNX Runtime."""

    def take(version: str) -> None:
        backend = TensorRt(tensorrt_module(version), HostMemory)
        monkeypatch.setattr("trtq.pipeline.engine.backends.BACKENDS", {**BACKENDS, "tensorrt": backend})
        monkeypatch.setattr(TensorRt, "runner", _runner)

    return take


@pytest.fixture(scope="session")
def driver_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver of CUDA without a GPU, named as the real one is."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler to make a driver of CUDA without a GPU")
    source = Path(__file__).parent / "doubles" / "libcuda_stub.c"
    path = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", str(path), str(source)], check=True)
    return path


class Driver:
    """The driver in this process: what it counts, and which call fails."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)

    def fail(self, name: str) -> None:
        """Has the call of this name fail; none if it is empty."""
        (ctypes.c_char * 64).in_dll(self._library, "failing").value = name.encode()

    def count(self, name: str) -> int:
        """Returns one of the driver's counters."""
        return ctypes.c_int.in_dll(self._library, name).value


@pytest.fixture
def driver(driver_file: Path) -> Iterator[Driver]:
    found = Driver(driver_file)
    yield found
    found.fail("")


def _runner(backend: TensorRt, plan: bytes, name: str) -> Any:
    """Returns a runner of the model that the plan was built from."""
    path = Path(json.loads(plan)["model"])
    return _run_in_onnx_runtime(path if path.exists() else path.parents[1] / "small.trtq" / path.name, name)


def _run_in_onnx_runtime(model: Path, name: str) -> Any:
    from polygraphy.backend import onnxrt as polygraphy

    return polygraphy.OnnxrtRunner(open_session(model, optimize=False), name=name)


def _exact(model: ir.Model | Path) -> ir.Model | Path:
    return model if isinstance(model, Path) else make_quantize_exact(model) or model
