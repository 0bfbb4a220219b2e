"""Tests of what is known of free memory."""

from __future__ import annotations

import gc
import resource
import weakref
from pathlib import Path

import pytest

from trtq.calibrators import memory
from trtq.calibrators.memory import find_free_bytes, find_peak_bytes, give_back_memory


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:    1000 kB\n")
    (tmp_path / "self" / "statm").write_text("100 50 0 0 0 0 0\n")
    return tmp_path


def _container(folder: Path, limit: str, used: int, inactive_file: int = 0) -> Path:
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\nactive_file 9\ninactive_file {inactive_file}\n")
    return folder


def test_the_machine_tells_what_is_available(proc: Path, tmp_path: Path) -> None:
    assert find_free_bytes(proc, tmp_path / "absent") == 1000 * 1024


@pytest.mark.parametrize(("limit", "free"), [("max", 1_024_000), ("500000", 400_000), ("50000", 0)])
def test_a_container_may_have_less(proc: Path, limit: str, free: int) -> None:
    assert find_free_bytes(proc, _container(proc, limit, 100_000)) == free


def test_what_a_container_keeps_of_files_is_free(proc: Path) -> None:
    assert find_free_bytes(proc, _container(proc, "500000", 450_000, inactive_file=300_000)) == 350_000


def test_the_limit_of_the_process_counts(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 100 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + 5000, -1))
    assert find_free_bytes(proc, tmp_path / "absent") == 5000


def test_a_kernel_that_tells_nothing_is_named(proc: Path, tmp_path: Path) -> None:
    (proc / "meminfo").write_text("MemTotal: 9000 kB\n")
    with pytest.raises(OSError, match="does not tell MemAvailable"):
        find_free_bytes(proc, tmp_path / "absent")


def test_this_machine_has_memory() -> None:
    assert find_free_bytes() > 0


def test_the_most_that_was_held_is_the_processs_own(proc: Path) -> None:
    (proc / "self" / "status").write_text("VmPeak:\t 900 kB\nVmHWM:\t  300 kB\n")
    assert find_peak_bytes(proc) == 300 * 1024
    assert find_peak_bytes() > 1 << 20
    (proc / "self" / "status").write_text("VmPeak:\t 900 kB\n")
    with pytest.raises(OSError, match=r"status does not tell VmHWM"):
        find_peak_bytes(proc)


def test_garbage_of_large_models_is_given_back_and_that_of_small_ones_left() -> None:
    class _Node:
        def __init__(self) -> None:
            self.itself = self

    node = weakref.ref(_Node())
    gc.disable()
    try:
        give_back_memory((1 << 25) - 1)
        assert node() is not None
        give_back_memory(1 << 25)
        assert node() is None
    finally:
        gc.enable()


def test_memory_is_short_where_it_was_limited_or_little_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_free_bytes", lambda: 4 << 30)
    assert memory.is_memory_short(1 << 40)
    assert not memory.is_memory_short(None)
    monkeypatch.setattr(memory, "find_free_bytes", lambda: (4 << 30) - 1)
    assert memory.is_memory_short(None)
