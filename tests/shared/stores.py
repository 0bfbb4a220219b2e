"""Fixtures: stores that tests read data from, a bucket of S3 and a site of HTTP, both on this machine."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
from web_site import Site, serve_site

from trtq.calibrators.data import tries


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A store that speaks S3, as s3fs sees it, with the bucket `data`; its address is in the environment."""
    server = importlib.import_module("moto.server").ThreadedMotoServer(port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        system = importlib.import_module("s3fs").S3FileSystem(
            use_listings_cache=False, skip_instance_cache=True
        )
        system.mkdir("data")
        yield system
        server.stop()


@pytest.fixture(autouse=True)
def no_time_is_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has requests that fail tried again at once."""
    monkeypatch.setattr(tries, "_FIRST_WAIT_S", 0.001)


@pytest.fixture
def site() -> Iterator[Site]:
    """A site of HTTP whose files and faults a test chooses."""
    with serve_site() as site:
        yield site
