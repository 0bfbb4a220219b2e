"""A real Triton server on this machine, for the tests of `make test-triton`.

It has the Python backend and neither that of ONNX Runtime nor that of TensorRT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from triton_server import Server, start_server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[Path], Server]]:
    """Starts a server on a repository; it ends with the test."""
    if "TRTQ_TRITON" not in os.environ:
        pytest.skip("needs Triton: make test-triton")
    venv = Path(os.environ["TRTQ_TRITON"]).resolve()
    running: list[Server] = []

    def start(repository: Path) -> Server:
        running.append(start_server(venv, repository, tmp_path / f"server{len(running)}.log"))
        return running[-1]

    yield start
    for server in running:
        server.client.close()
        server.process.terminate()
        server.process.wait(30)
