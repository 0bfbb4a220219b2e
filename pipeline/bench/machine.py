"""What a machine is, and what else it did while something was measured, as Linux and nvidia-smi say."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trtq.workers import count_cores

_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "sve",
)  # fmt: skip
"""Of x86 and Arm, in Linux's words: those that matrix products gain from."""
_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
"""Instructions that multiply INT8 and add up in INT32 in one step, best first."""
_HALF = ("avx512_fp16", "asimdhp")
_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,temperature.gpu,clocks_throttle_reasons.active"
_IDLE_REASONS = 0x1 | 0x2 | 0x100
"""Of NVML's clock event reasons: idle, set by the user, set for a display; none of them is throttling."""
_QUERY_SECONDS = 10
_BUSY = 0.1
_STOLEN = 0.02


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, as far as it decides how fast a model is; what is not known is empty.

    Attributes:
        cpu: The processor's name.
        cores: That this process may use.
        features: Of the processor, among those that matrix products gain from.
        governor: Of the clock, such as "powersave"; not known in a virtual machine.
        gpu: Its name; `driver` is its own.
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    governor: str
    gpu: str
    driver: str
    platform: str

    @property
    def int8(self) -> str:
        """The processor's best instructions for INT8; empty if it has none."""
        return next((name for name in _INT8 if name in self.features), "")

    @property
    def half(self) -> str:
        """The processor's instructions for FP16; empty if it has none."""
        return next((name for name in _HALF if name in self.features), "")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What went on while something was measured; what is not known is None or empty.

    Attributes:
        load_before: Processes that wanted to run, over the minute before.
        others_share: Of the processor, used by other processes, 0 to 1.
        stolen_share: Of the processor, given to other virtual machines.
        cpu_mhz: The clock before and after, averaged over the cores.
        gpu_mhz: The clock of the GPU's multiprocessors before and after; `gpu_max_mhz` is the highest it has.
        gpu_celsius: The GPU's temperature before and after.
        throttled: What slowed processor or GPU down, in words.
    """

    load_before: float
    others_share: float | None
    stolen_share: float | None
    cpu_mhz: tuple[float, ...]
    gpu_mhz: tuple[float, ...]
    gpu_max_mhz: float | None
    gpu_celsius: tuple[float, ...]
    throttled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Gpu:
    name: str
    driver: str
    mhz: float
    max_mhz: float
    celsius: float
    reasons: int


@dataclass(frozen=True, slots=True)
class MachineSample:
    """What the counters of the machine said at one time: in seconds of processor time, since it started."""

    clock_s: float
    busy_s: float | None
    stolen_s: float | None
    own_s: float
    load: float
    cpu_mhz: float | None
    throttles: int
    gpu: _Gpu | None


def describe_machine(proc: Path = Path("/proc"), system: Path = Path("/sys")) -> Machine:
    """Returns what this machine is, by the kernel's process and device files."""
    parts = (line.partition(":") for line in reversed(_text(proc / "cpuinfo").splitlines()))
    fields = {key.strip(): value.strip() for key, _, value in parts}
    words = (fields.get("flags") or fields.get("Features") or "").split()
    gpu = _gpu()
    return Machine(
        cpu=fields.get("model name") or platform.processor() or platform.machine(),
        cores=count_cores(),
        features=tuple(name for name in _FEATURES if name in words),
        governor=_text(system / "devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        gpu=gpu.name if gpu else "",
        driver=gpu.driver if gpu else "",
        platform=platform.platform(),
    )


def sample_machine(
    pids: Iterable[int], proc: Path = Path("/proc"), system: Path = Path("/sys")
) -> MachineSample:
    """Returns what the counters say now; the work of this process and of `pids` is not that of others."""
    tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
    total = _text(proc / "stat").splitlines()[:1]
    numbers = [int(word) / tick for word in total[0].split()[1:9]] if total else []
    user, nice, kernel, _, _, irq, soft, stolen = numbers if len(numbers) == 8 else [0.0] * 8
    cpus = system / "devices/system/cpu"
    clocks = [count / 1000 for count in _counts(cpus, "cpufreq/scaling_cur_freq")]
    lines = [line for line in _text(proc / "cpuinfo").splitlines() if line.startswith("cpu MHz")]
    clocks = clocks or [float(line.partition(":")[2]) for line in lines]
    return MachineSample(
        clock_s=time.monotonic(),
        busy_s=user + nice + kernel + irq + soft if numbers else None,
        stolen_s=stolen if numbers else None,
        own_s=sum(_used_s(proc / str(pid) / "stat", tick) for pid in {*pids, os.getpid()}),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        cpu_mhz=sum(clocks) / len(clocks) if clocks else None,
        throttles=sum(_counts(cpus, "thermal_throttle/*_throttle_count")),
        gpu=_gpu(),
    )


def compare_samples(before: MachineSample, after: MachineSample, num_cores: int | None = None) -> Conditions:
    """Returns what went on between two moments of a machine with so many cores; None: as many as here."""
    seconds = max(1e-9, after.clock_s - before.clock_s) * (num_cores or os.cpu_count() or 1)
    own_s = after.own_s - before.own_s
    gpus = [moment.gpu for moment in (before, after) if moment.gpu is not None]
    return Conditions(
        load_before=before.load,
        others_share=_share(before.busy_s, after.busy_s, seconds, own_s),
        stolen_share=_share(before.stolen_s, after.stolen_s, seconds),
        cpu_mhz=tuple(moment.cpu_mhz for moment in (before, after) if moment.cpu_mhz is not None),
        gpu_mhz=tuple(gpu.mhz for gpu in gpus),
        gpu_max_mhz=gpus[0].max_mhz if gpus else None,
        gpu_celsius=tuple(gpu.celsius for gpu in gpus),
        throttled=tuple(_throttled(before, after, gpus)),
    )


def list_disturbances(during: Conditions) -> Iterator[str]:
    """Yields what went on that makes a measurement doubtful."""
    if (during.others_share or 0) > _BUSY:
        share = f"{during.others_share:.0%}"
        yield f"other processes used {share} of the CPU meanwhile; stop them and measure again"
    if (during.stolen_share or 0) > _STOLEN:
        yield f"other virtual machines took {during.stolen_share:.0%} of the CPU meanwhile"
    for reason in during.throttled:
        yield f"throttled: {reason}"


def _throttled(before: MachineSample, after: MachineSample, gpus: Sequence[_Gpu]) -> Iterable[str]:
    if after.throttles > before.throttles:
        yield f"the CPU was throttled {after.throttles - before.throttles} times"
    reasons = 0
    for gpu in gpus:
        reasons |= gpu.reasons & ~_IDLE_REASONS
    if reasons:
        yield f"the GPU was throttled (NVML's reasons {reasons:#x}; see nvidia-smi -q -d PERFORMANCE)"


def _share(before_s: float | None, after_s: float | None, all_s: float, less_s: float = 0.0) -> float | None:
    if before_s is None or after_s is None:
        return None
    return round(min(1.0, max(0.0, (after_s - before_s - less_s) / all_s)), 3)


def _used_s(path: Path, tick: int) -> float:
    """Returns the processor time of a process, and of its threads, so far; 0 if it is gone."""
    fields = _text(path).rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / tick if fields else 0.0


def _gpu() -> _Gpu | None:
    """Returns what nvidia-smi says of the first GPU; None where it is not, or says nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_SECONDS, check=True)
        name, driver, mhz, max_mhz, celsius, reasons = (part.strip() for part in done.stdout.split(","))
        return _Gpu(name, driver, float(mhz), float(max_mhz), float(celsius), int(reasons, 16))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _counts(cpus: Path, name: str) -> list[int]:
    """Returns the numbers in files of this name of all cores; one that is not known is left out."""
    texts = [_text(path).strip() for path in cpus.glob(f"cpu[0-9]*/{name}")]
    return [int(text) for text in texts if text.isdecimal()]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
