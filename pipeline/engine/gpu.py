"""The GPUs of this machine, as its driver shows them."""

from __future__ import annotations

import ctypes
import os

DRIVER = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
"""The library of CUDA's driver."""
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver API."""


def count_gpus() -> int | None:
    """Returns how many GPUs can be used; None if there is no NVIDIA driver at all."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def explain_missing_gpu() -> str:
    """Returns why no GPU can be used here, as a part of a sentence; empty if one can."""
    count = count_gpus()
    if count is None:
        return "there is no NVIDIA driver"
    return "" if count else "the NVIDIA driver shows no usable GPU"


def find_compute_capability() -> str:
    """Returns that of the first GPU, such as "8.9"; empty if there is none."""
    if not count_gpus():
        return ""
    driver, device = ctypes.CDLL(DRIVER), ctypes.c_int(0)
    numbers = (ctypes.c_int(0), ctypes.c_int(0))
    if driver.cuDeviceGet(ctypes.byref(device), 0) != 0:
        return ""
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device) != 0:
            return ""
    return f"{numbers[0].value}.{numbers[1].value}"
