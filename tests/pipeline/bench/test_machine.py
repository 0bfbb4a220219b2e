"""Tests of what the kernel and nvidia-smi tell of a machine, from files and a tool that are made here."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from trtq.pipeline.bench.machine import MachineSample, compare_samples, describe_machine, sample_machine

_CPUINFO = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 sse
cpu MHz\t\t: 2000.0

processor\t: 1
model name\t: Some CPU
flags\t\t: fpu avx2 avx512f avx512_vnni amx_int8 sse
cpu MHz\t\t: 3000.0
"""
_MOMENT = MachineSample(100.0, 1000.0, 10.0, 500.0, 1.5, 2500.0, 3, None)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "77").mkdir(parents=True)
    (folder / str(os.getpid())).mkdir()
    (folder / "cpuinfo").write_text(_CPUINFO)
    tick = os.sysconf("SC_CLK_TCK")
    numbers = " ".join(str(value * tick) for value in (10, 1, 5, 900, 30, 2, 3, 4, 0, 0))
    (folder / "stat").write_text(f"cpu  {numbers}\ncpu0 1 2\n")
    for pid, used in ((77, 6), (os.getpid(), 1)):
        fields = ["R", *["0"] * 10, str(used * tick), str(2 * tick), "0"]
        (folder / str(pid) / "stat").write_text(f"{pid} (a name) with) {' '.join(fields)}\n")
    return folder


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool that prints what is written to the file beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "answer").write_text("NVIDIA L4, 555.42, 1200, 2040, 61, 0x0000000000000001\n")
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$@" > {folder}/asked\ncat {folder}/answer\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def test_a_processor_is_what_the_kernel_tells(
    proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = describe_machine(proc, tmp_path / "sys")
    assert (found.cpu, found.features) == ("Some CPU", ("avx2", "avx512f", "avx512_vnni", "amx_int8"))
    assert (found.int8, found.half) == ("amx_int8", "")
    assert (found.governor, found.gpu, found.driver) == ("", "", "")
    assert found.cores == len(os.sched_getaffinity(0))
    governor = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    governor.parent.mkdir(parents=True)
    governor.write_text("powersave\n")
    assert describe_machine(proc, tmp_path / "sys").governor == "powersave"


def test_an_arm_processor_has_its_own_words(proc: Path, tmp_path: Path) -> None:
    (proc / "cpuinfo").write_text("processor : 0\nFeatures : fp asimd asimddp asimdhp i8mm\n")
    found = describe_machine(proc, tmp_path)
    assert (found.int8, found.half) == ("i8mm", "asimdhp")
    assert found.cpu


def test_an_old_processor_has_no_int8(proc: Path, tmp_path: Path) -> None:
    (proc / "cpuinfo").write_text("model name : Old\nflags : sse avx2\n")
    assert describe_machine(proc, tmp_path).int8 == ""


def test_counters_are_in_seconds(proc: Path, tmp_path: Path) -> None:
    found = sample_machine([77, 78], proc, tmp_path)
    assert (found.busy_s, found.stolen_s) == (10 + 1 + 5 + 2 + 3, 4.0)
    assert found.own_s == (6 + 2) + (1 + 2)
    assert (found.cpu_mhz, found.throttles) == (2500.0, 0)


def test_clocks_and_heat_are_read_where_the_kernel_has_them(proc: Path, tmp_path: Path) -> None:
    for core, khz in ((0, 1_000_000), (1, 4_000_000)):
        cpu = tmp_path / f"devices/system/cpu/cpu{core}"
        (cpu / "cpufreq").mkdir(parents=True)
        (cpu / "cpufreq/scaling_cur_freq").write_text(f"{khz}\n")
        (cpu / "thermal_throttle").mkdir()
        (cpu / "thermal_throttle/core_throttle_count").write_text("2\n")
    found = sample_machine([], proc, tmp_path)
    assert (found.cpu_mhz, found.throttles) == (2500.0, 4)
    (cpu / "cpufreq/scaling_cur_freq").write_text("<unknown>\n")
    (cpu / "thermal_throttle/core_throttle_count").write_text("")
    found = sample_machine([], proc, tmp_path)
    assert (found.cpu_mhz, found.throttles) == (1000.0, 2)


def test_a_kernel_that_tells_nothing_is_no_error(tmp_path: Path) -> None:
    found = sample_machine([1], tmp_path, tmp_path)
    assert (found.busy_s, found.stolen_s, found.own_s, found.cpu_mhz) == (None, None, 0.0, None)
    during = compare_samples(found, found)
    assert (during.others_share, during.stolen_share, during.cpu_mhz) == (None, None, ())
    assert describe_machine(tmp_path, tmp_path).features == ()


def test_what_others_used_is_all_but_our_own() -> None:
    after = replace(_MOMENT, clock_s=110.0, busy_s=1016.0, stolen_s=11.0, own_s=506.0)
    during = compare_samples(_MOMENT, after, num_cores=4)
    assert (during.others_share, during.stolen_share) == (0.25, 0.025)
    assert (during.load_before, during.cpu_mhz, during.throttled) == (1.5, (2500.0, 2500.0), ())
    quiet = compare_samples(_MOMENT, replace(after, own_s=530.0), num_cores=4)
    assert quiet.others_share == 0.0


def test_heat_is_told() -> None:
    during = compare_samples(_MOMENT, replace(_MOMENT, throttles=8))
    assert during.throttled == ("the CPU was throttled 5 times",)


def test_a_gpu_is_what_nvidia_smi_tells(smi: Path, proc: Path) -> None:
    found = describe_machine(proc, proc)
    assert (found.gpu, found.driver) == ("NVIDIA L4", "555.42")
    assert (smi / "asked").read_text().startswith("--query-gpu=name,driver_version,clocks.sm,")
    before = sample_machine([], proc, proc)
    (smi / "answer").write_text("NVIDIA L4, 555.42, 900, 2040, 83, 0x0000000000000060\n")
    during = compare_samples(before, sample_machine([], proc, proc))
    assert (during.gpu_mhz, during.gpu_max_mhz, during.gpu_celsius) == ((1200, 900), 2040, (61, 83))
    assert during.throttled == (
        "the GPU was throttled (NVML's reasons 0x60; see nvidia-smi -q -d PERFORMANCE)",
    )


def test_an_idle_gpu_is_not_throttled(smi: Path, proc: Path) -> None:
    assert compare_samples(sample_machine([], proc, proc), sample_machine([], proc, proc)).throttled == ()


@pytest.mark.parametrize(
    "answer", ["", "No devices were found\n", "a, b, c, d, e, f\n", "L4, 5, [N/A], 1, 1, 0x1\n"]
)
def test_a_tool_that_says_something_else_is_no_gpu(answer: str, smi: Path, proc: Path) -> None:
    (smi / "answer").write_text(answer)
    assert describe_machine(proc, proc).gpu == ""


def test_a_tool_that_fails_is_no_gpu(smi: Path, proc: Path) -> None:
    (smi / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert describe_machine(proc, proc).gpu == ""


def test_this_machine_tells_of_itself() -> None:
    here = describe_machine()
    assert here.cpu
    assert here.cores >= 1
    moment = sample_machine([])
    assert moment.busy_s is not None
    assert moment.own_s > 0
