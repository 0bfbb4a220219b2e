"""A real Triton server on this machine, from the environment into which nvidia-pytriton was installed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

_NAMES = {"float32": "FP32", "int64": "INT64"}


@dataclass(frozen=True)
class Server:
    """A server that looks at its repository every second."""

    client: InferenceServerClient
    log: Path
    process: subprocess.Popen[bytes]

    def infer(self, model: str, version: str = "", **arrays: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Returns the outputs for one request."""
        inputs = []
        for name, array in arrays.items():
            inputs.append(InferInput(name, list(array.shape), _NAMES[array.dtype.name]))
            inputs[-1].set_data_from_numpy(array)
        outputs = [InferRequestedOutput(name) for name in self.outputs(model)]
        response = self.client.infer(model, inputs, version, outputs)
        return {output.name(): response.as_numpy(output.name()) for output in outputs}

    def outputs(self, model: str) -> list[str]:
        """Returns the names of the outputs of a model."""
        return [item.name for item in self.client.get_model_metadata(model).outputs]

    def versions(self, model: str) -> list[str]:
        """Returns the versions that are served."""
        found = self.client.get_model_repository_index().models
        return sorted(item.version for item in found if item.name == model and item.state == "READY")

    def count(self, text: str) -> int:
        """Returns how often the log has a text."""
        return self.log.read_text(errors="replace").count(text)

    def wait(self, is_so: Callable[[], bool]) -> None:
        """Waits until something is so, half a minute at most."""
        until = time.monotonic() + 30
        while not is_so():
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < until, self.log.read_text(errors="replace")
            time.sleep(0.1)

    def wait_for_polls(self) -> None:
        """Waits until it has looked at the repository at least once more."""
        time.sleep(2.5)


def start_server(venv: Path, repository: Path, log: Path) -> Server:
    """Returns a server on a repository; the environment holds its program and what its Python imports."""
    (home,) = venv.glob("lib/python*/site-packages/pytriton/tritonserver")
    version, stub = home.parent.parent.parent.name.removeprefix("python"), "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version / stub, home / "backends/python" / stub)
    port = _find_port()
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    places = {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "LD_LIBRARY_PATH": libraries}
    left_out = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV")
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                home / "bin/tritonserver",
                f"--model-repository={repository}",
                f"--backend-directory={home / 'backends'}",
                "--model-control-mode=poll",
                "--repository-poll-secs=1",
                "--exit-on-error=false",
                "--allow-http=false",
                "--allow-metrics=false",
                f"--grpc-port={port}",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=own | places,
        )
    server = Server(InferenceServerClient(f"localhost:{port}"), log, process)
    server.wait(lambda: bool(re.search("Started GRPCInferenceService", log.read_text(errors="replace"))))
    return server


def _find_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
