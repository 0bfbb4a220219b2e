"""What is installed here, and which backends work."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import onnx
import onnx.parser

from trtq.calibrators.kernel import is_compiled
from trtq.errors import TrtqError
from trtq.pipeline.engine.backend import Backend, BuildRequest
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.gpu import count_gpus, explain_missing_gpu
from trtq.temporary import open_temporary_folder

_PACKAGES = (
    "trtq", "numpy", "onnx", "onnx-ir", "onnxruntime", "polygraphy", "click", "rich", "pillow", "fsspec",
    "pyarrow", "av", "torch", "tensorrt", "tensorrt-rtx-cu12", "pycuda",
)  # fmt: skip
_NO_KERNEL = "numpy, some seven times slower: install a C compiler, then trtq again"
_TINY = """
<ir_version: 9, opset_import: ["" : 17]>
tiny (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }
"""


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """A backend here: `reason` says why it does not work; empty if it does (it has built something)."""

    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class Health:
    """What is here.

    Attributes:
        python: The interpreter's version.
        platform: The operating system and processor, as `platform.platform()` names them.
        packages: Version by package; empty if it is not installed.
        gpu: Why engines can, or cannot, run here.
        kernel: What counts values in calibration.
        backends: Whether each works here, and if not, why.
    """

    python: str
    platform: str
    packages: dict[str, str]
    gpu: str
    kernel: str
    backends: tuple[BackendHealth, ...]


def doctor() -> Health:
    """Returns what is installed, and which backends build a tiny model here."""
    return Health(
        platform.python_version(),
        platform.platform(),
        {name: _version(name) for name in _PACKAGES},
        _describe_gpu(),
        "compiled" if is_compiled() else _NO_KERNEL,
        tuple(_try(backend) for backend in BACKENDS.values()),
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _describe_gpu() -> str:
    """Returns how many CUDA devices the driver shows, or that there is none."""
    if missing := explain_missing_gpu():
        return f"{missing}: engines can be built here, not run"
    return f"{count_gpus()} CUDA devices"


def _try(backend: Backend) -> BackendHealth:
    reason = backend.why_not()
    if not reason:
        with open_temporary_folder() as folder:
            path = folder / "tiny.onnx"
            onnx.save(onnx.parser.parse_model(_TINY), path)
            try:
                backend.build(BuildRequest(path))
            except TrtqError as error:
                reason = str(error)
    return BackendHealth(backend.name, backend.version(), reason)
