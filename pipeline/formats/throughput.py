"""How fast each GPU multiplies in each number format, relative to FP16, and how much faster than it reads.

Dense tensor-core throughput and memory bandwidth as NVIDIA's data sheets and architecture papers state them;
this project has measured none of it. They order what a layer costs, and are no promise of time:

- 8.0: A100 (FP16 312 TFLOPS, INT8 624 TOPS; 1,555 GB/s).
- 8.6: A10 (FP16 125, INT8 250; 600 GB/s). 8.7: Jetson AGX Orin has the same ratio.
- 8.9: L40S (FP16 362, INT8 and FP8 733; 864 GB/s).
- 9.0: H100 SXM (FP16 989, INT8 and FP8 1,979; 3,350 GB/s).
- 10.0: B200 (FP16 2,250, INT8 and FP8 4,500, FP4 9,000; 8,000 GB/s). 10.3: B300 has little INT8 left.
- 12.0: RTX 5090 (FP16 419, INT8 and FP8 838, FP4 1,676, adding up in FP16; 1,792 GB/s).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """What a GPU can do.

    Attributes:
        throughput: Multiplications in the time of one in FP16, by the name of the format.
        macs_per_byte: FP16 multiply-accumulates in the time in which one byte is read.
    """

    throughput: Mapping[str, float]
    macs_per_byte: float


_8_BITS = {"fp16": 1.0, "int8": 2.0, "fp8": 2.0}
GPU_SPEEDS: Mapping[tuple[int, int], GpuSpeed] = {
    (7, 5): GpuSpeed({"fp16": 1.0, "int8": 2.0}, 102.0),
    (8, 0): GpuSpeed({"fp16": 1.0, "int8": 2.0}, 100.0),
    (8, 6): GpuSpeed({"fp16": 1.0, "int8": 2.0}, 104.0),
    (8, 9): GpuSpeed(_8_BITS, 209.0),
    (9, 0): GpuSpeed(_8_BITS, 148.0),
    (10, 0): GpuSpeed({**_8_BITS, "nvfp4": 4.0}, 141.0),
    (10, 3): GpuSpeed({**_8_BITS, "int8": 0.15, "nvfp4": 6.0}, 141.0),
    (12, 0): GpuSpeed({**_8_BITS, "nvfp4": 4.0}, 117.0),
}
"""By compute capability; others are like the newest before them. T4 for 7.5 (FP16 65, INT8 130; 320 GB/s)."""
_USUAL = "8.0"


def find_speed(capabilities: Sequence[str]) -> GpuSpeed:
    """Returns the oldest of the GPUs of these compute capabilities; of none, that of 8.0."""
    oldest = min(tuple(map(int, item.split("."))) for item in capabilities or (_USUAL,))
    known = [item for item in GPU_SPEEDS if item <= oldest]
    return GPU_SPEEDS[max(known, default=min(GPU_SPEEDS))]


def choose_fastest(formats: Sequence[str], capabilities: Sequence[str]) -> str:
    """Returns the format that the GPU multiplies fastest in; of equal ones the first."""
    throughput = find_speed(capabilities).throughput
    return max(formats, key=lambda name: throughput.get(name, 0.0))
