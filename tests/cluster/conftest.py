"""A Ray cluster of three nodes on this machine, for the tests of `make test-ray`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
_STORE_BYTES = 200 << 20
SLOW_DATA = """
import time
import numpy as np

def batches():
    rng = np.random.default_rng(7)
    for _ in range(24):
        time.sleep({seconds})
        yield {{"image": rng.normal(size=(4, 1, 8, 8)).astype("float32")}}
"""


@dataclass(frozen=True)
class ThreeNodes:
    """A cluster whose nodes have one core each."""

    cluster: Any
    address: str

    def add(self, **resources: float) -> Any:
        """Returns one more node, with custom resources."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES, resources=resources)

    def kill(self, node: Any) -> None:
        """Ends a node as a power cut does."""
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[ThreeNodes]:
    """The cluster, and this process joined to it."""
    yield from _open_cluster({}, {})


@pytest.fixture(scope="module")
def kinds() -> Iterator[ThreeNodes]:
    """A cluster of a head and of one node each of two kinds."""
    yield from _open_cluster({"ada": 1}, {"blackwell": 1, "tensorrt-10.9": 1})


def _open_cluster(*resources: Mapping[str, float]) -> Iterator[ThreeNodes]:
    ray = pytest.importorskip("ray", reason="needs Ray: make test-ray")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "object_store_memory": _STORE_BYTES})
    found = ThreeNodes(cluster, str(cluster.address))
    for own in resources:
        found.add(**own)
    yield found
    ray.shutdown()
    found.cluster.shutdown()


@pytest.fixture
def slow_data(tmp_path: Path) -> str:
    """Data that takes four seconds to read, whatever part of it is wanted."""
    (tmp_path / "data.py").write_text(SLOW_DATA.format(seconds=0.15))
    return f"{tmp_path / 'data.py'}:batches"


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so, half a minute at most."""

    def wait(is_so: Callable[[], bool]) -> None:
        until = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < until
            time.sleep(0.05)

    return wait
