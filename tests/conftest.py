"""What tests of every room share: keys, and one demo a run, that is built once a backend."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from stores import s3 as s3
from stores import site as site

from trtq.cli import main
from trtq.models.demo import write_demo
from trtq.models.operators import use_operators
from trtq.models.spec import OperatorSpec
from trtq.pipeline.build import build
from trtq.pipeline.engine.target import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_ROOT = Path(__file__).resolve().parent.parent
_WHOLE = tuple(
    _ROOT / "tests" / name
    for name in (
        "bindings", "cases", "fuzz", "integration", "kill", "pipeline/build", "pipeline/calibrate",
        "pipeline/engine",
    )
)  # fmt: skip
"""Tests of whole commands: they run without the tracing of coverage, which would double their time."""


def pytest_configure() -> None:
    """Has libraries sleep while they wait, here and in child processes, and lets hypothesis take its time."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    hypothesis.settings.register_profile("trtq", deadline=None)  # a busy machine is no fault
    hypothesis.settings.load_profile("trtq")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Marks what hypothesis runs; has slow tests and those of whole commands run without coverage."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("property")
        is_whole = any(item.path.is_relative_to(folder) for folder in _WHOLE)
        if is_whole or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


def pytest_collection_finish() -> None:
    """Has the garbage collector leave out what collecting made, which stays until the end."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_is_written_into_the_checkout() -> Iterator[None]:
    """Fails the run in which a test leaves a file at the root, because it did not change its folder."""
    before = set(_ROOT.iterdir())
    yield
    assert {path.name for path in set(_ROOT.iterdir()) - before if not path.name.startswith(".")} == set()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the path of a PEM file by its name: private and public are a pair, other is another's public."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder = tmp_path_factory.mktemp("keys")
    for private, public in (("private", "public"), ("other-private", "other")):
        key = Ed25519PrivateKey.generate()
        (folder / private).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (folder / public).write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
    return folder.joinpath


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the demo, as `trtq demo` writes them; who writes beside them takes a copy."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


@pytest.fixture(scope="session")
def quick_demo(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """The demo with settings by which a build searches for nothing, in little data; nobody writes there."""
    folder = shutil.copytree(demo_folder, tmp_path_factory.mktemp("quick") / "demo")
    text = (folder / "model.toml").read_text()
    text = text.replace("[calibration]", '[calibration]\nmethod = "entropy"\nsamples = 128')
    text = text.replace("[evaluation]", "[evaluation]\nsamples = 64")
    (folder / "model.toml").write_text(f'{text}\n[quantization]\nrepair = ["none"]\n')
    return folder


@pytest.fixture(scope="session")
def demo_build(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> tuple[Path, Result]:
    """The demo with its build beside it, and what `trtq build --int8` printed; nobody writes there."""
    folder = shutil.copytree(demo_folder, tmp_path_factory.mktemp("built") / "demo")
    runner = CliRunner(env={"FORCE_COLOR": None, "COLUMNS": "80"})
    result = runner.invoke(main, ["build", str(folder / "model.onnx"), "--int8"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder, result


@pytest.fixture(scope="session")
def demo_onnxruntime(tmp_path_factory: pytest.TempPathFactory, quick_demo: Path) -> Path:
    """The demo with its build for ONNX Runtime, made without a search; nobody writes there."""
    folder = shutil.copytree(quick_demo, tmp_path_factory.mktemp("onnxruntime") / "demo")
    build(folder / "model.onnx", target=Target(backend="onnxruntime"))
    return folder


@pytest.fixture
def no_libraries() -> Iterator[None]:
    """Has nothing know of the libraries of operators that the test named."""
    yield
    use_operators(OperatorSpec())


@pytest.fixture(scope="session")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH without PyTorch, which Polygraphy imports where it is; that takes seconds a process."""
    folder = tmp_path_factory.mktemp("torchless")
    (folder / "torch.py").write_text("raise ImportError('hidden from this test')\n")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture(scope="session")
def torchlib_is_read_once() -> Iterator[None]:
    """Has PyTorch's exporter read its library of ONNX functions once; that is three quarters of an export.

    Each export gets a copy, to which it adds its own functions.
    """
    import torch.onnx._internal.exporter._registration as exporter

    read = functools.cache(exporter.ONNXRegistry.from_torchlib)

    def copy_registry(opset_version: int = exporter.ONNXRegistry().opset_version) -> Any:
        found = copy.copy(read(opset_version))
        found.functions = {target: list(functions) for target, functions in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter.ONNXRegistry, "from_torchlib", staticmethod(copy_registry))
        yield


@pytest.fixture
def path_of(tmp_path: Path) -> Callable[..., Path]:
    """Writes a graph in ONNX's text, with these weights, to a file."""

    def write(text: str, *, opset: int = 19, ir_version: int = 9, **weights: NDArray[Any]) -> Path:
        proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["": {opset}]> {text}')
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()
        )
        path = tmp_path / f"model{len(list(tmp_path.iterdir()))}.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return write
