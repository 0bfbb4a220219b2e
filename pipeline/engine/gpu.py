"""The GPUs of this machine, as its driver tells."""

from __future__ import annotations

import ctypes


def num_gpus() -> int | None:
    """Returns how many GPUs can be used; None if there is no NVIDIA driver at all."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
