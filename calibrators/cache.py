"""TensorRT's calibration cache: a text file with one scale a tensor.

    TRT-8601-EntropyCalibration2
    images: 3b66eddc
    (Unnamed Layer* 64) [Shuffle]_output: 0

The header names the TensorRT and the calibrator that wrote it. A value is the float32 scale, `amax / 127`, as
its bits in hex without leading zeros. Names may hold colons, so a line is split at its last one.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from trtq.calibrators.ranges import QMAX, Ranges
from trtq.errors import ArtifactError, UsageError
from trtq.files import read_file

ENTROPY2 = "EntropyCalibration2"
ALGORITHMS: Mapping[str, str] = {"entropy2": ENTROPY2, "minmax": "MinMaxCalibration"}
"""TensorRT's names of the calibrators that work on the network before fusion, by our short ones."""
SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32: below it TensorRT and ONNX Runtime may take a scale for zero."""
_LAST_WITH_CALIBRATORS = 101600  # TensorRT 10.16: nothing newer reads a cache
_HEADER = re.compile(r"TRT-([0-9A-Za-z]{1,9})-(.*\S)\s*")
_LINE = re.compile(r"(.+): *([0-9a-fA-F]{1,8}) *")
_MARK = "\ufeff"  # what some editors put before UTF-8


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """The scales of a cache: `amax / 127`, as TensorRT's calibrators write them.

    Attributes:
        scales: By TensorRT's tensor name, in the order of the file; float32 values.
        version: TensorRT's version as in the header: 8601 for 8.6.1, 100300 for 10.3.0; None without one.
        algorithm: The calibrator that wrote it; TensorRT ignores the cache of another. None without a header.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    version: int | None = _LAST_WITH_CALIBRATORS
    algorithm: str | None = ENTROPY2

    @property
    def origin(self) -> str:
        """Who wrote it, for people: `EntropyCalibration2 of TensorRT 8.6.1`."""
        if self.algorithm is None:
            return "a calibrator that is not named (no header)"
        known = "an unknown TensorRT" if self.version is None else f"TensorRT {format_version(self.version)}"
        return f"{self.algorithm} of {known}"


@dataclass(frozen=True, slots=True)
class ScalePair:
    """A tensor to which two caches give different scales."""

    tensor: str
    first: float
    second: float

    @property
    def ratio(self) -> float:
        """The second scale for each unit of the first; infinite where the first is 0."""
        return self.second / self.first if self.first else math.inf


@dataclass(frozen=True, slots=True)
class CacheDifference:
    """What two caches do not have in common; headers do not count.

    Attributes:
        only_first: Tensors that only the first has, in the order of its file.
        only_second: The same of the second.
        changed: Tensors with another scale, and both scales.
    """

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    changed: tuple[ScalePair, ...]

    @property
    def count(self) -> int:
        """How many tensors differ."""
        return len(self.only_first) + len(self.only_second) + len(self.changed)


def parse_version(text: str) -> int:
    """Returns the number that headers have for a version: 8601 for "8.6.1", 100300 for "10.3".

    Raises:
        UsageError: It is no version, or one that reads no calibration caches.
    """
    found = re.fullmatch(r"(\d+)(?:\.(\d{1,2})(?:\.(\d{1,2}))?(?:\.\w+|b\d+)*)?", text.strip(), re.ASCII)
    if found is None or (found[2] is None and int(found[1]) <= 10):
        raise UsageError(f"{text!r} is not a TensorRT version; write it like 8.6.1 or 10.3")
    major, minor, patch = int(found[1]), int(found[2] or 0), int(found[3] or 0)
    if not 5 <= major <= 10 or (major < 10 and minor > 9):
        raise UsageError(
            f"TensorRT {text} reads no calibration cache, those of 5 to 10 do; "
            f"for others `trtq migrate` makes a Q/DQ model of a cache"
        )
    return (10000 if major >= 10 else 1000) * major + 100 * minor + patch


def format_version(number: int) -> str:
    """Returns the version that a header's number stands for: "8.6.1" for 8601, "10.3.0" for 100300."""
    unit = 10000 if number >= 100000 else 1000
    return f"{number // unit}.{number % unit // 100}.{number % 100}"


def format_cache(cache: CalibrationCache) -> bytes:
    """Returns the text that TensorRT reads: a header, then `name: hex of the float32 scale` a line.

    Raises:
        ArtifactError: The version or the algorithm is not known.
    """
    lines = [_header(cache.version, cache.algorithm)]
    lines += [f"{name}: {to_hex(scale)}" for name, scale in cache.scales.items()]
    return "\n".join(lines).encode() + b"\n"


def to_hex(scale: float) -> str:
    """Returns the bits of a float32 without leading zeros, as TensorRT's stream writes them: 0.0 is `0`."""
    return f"{struct.unpack('!I', struct.pack('!f', scale))[0]:x}"


def parse_cache(content: bytes) -> CalibrationCache:
    """Returns what a calibration cache holds.

    It takes blank lines, CRLF, a missing header or last newline, leading zeros or none, upper-case hex, and a
    tensor that has the same scale twice.

    Raises:
        ArtifactError: It is empty or no text, a line is no `name: hex`, or a scale is negative, not finite,
            or not the one that an earlier line gives.
    """
    lines = _lines(content)
    number, header = next(((i, line) for i, line in enumerate(lines, 1) if line.strip()), (0, ""))
    found = _HEADER.fullmatch(header)
    if found is None and _LINE.fullmatch(header) is None:
        raise ArtifactError(
            f"not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2' or "
            f"'images: 3c010a14', got {header[:60]!r}"
        )
    scales = _scales(lines, number if found else 0)
    if found is None:
        return CalibrationCache(scales, None, None)
    return CalibrationCache(scales, int(found[1]) if found[1].isdecimal() else None, found[2])


def read_cache(path: Path | str) -> CalibrationCache:
    """Returns the cache of a file: one float32 scale (amax / 127) per tensor, all finite and not negative.

    Raises:
        ArtifactError: The file cannot be read, or is no calibration cache.
    """
    try:
        return parse_cache(read_bytes(path))
    except ArtifactError as error:
        raise ArtifactError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def read_bytes(path: Path | str) -> bytes:
    """Returns the content of a cache file; ArtifactError if it cannot be read."""
    try:
        return read_file(Path(path))
    except OSError as error:
        raise ArtifactError(f"cannot read the calibration cache {path}: {error.strerror}") from error


def replace_header(content: bytes, *, version: int | None = None, algorithm: str | None = None) -> bytes:
    """Returns a cache with another header, or its first one; every byte of the lines below stays.

    A version (as in headers) or algorithm that is None stays as it is.

    Raises:
        ArtifactError: It is no calibration cache, or has no header from which to take what is not given.
    """
    cache = parse_cache(content)
    header = _header(
        cache.version if version is None else version, cache.algorithm if algorithm is None else algorithm
    )
    lines = content.removeprefix(_MARK.encode()).split(b"\n")
    first = next(index for index, line in enumerate(lines) if line.strip())
    end = b"\r\n" if lines[first].endswith(b"\r") else b"\n"
    body = lines if cache.algorithm is None else lines[first + 1 :]
    return header.encode() + end + b"\n".join(body)


def to_cache(
    ranges: Ranges, version: int = _LAST_WITH_CALIBRATORS, algorithm: str = ENTROPY2
) -> CalibrationCache:
    """Returns the cache with which TensorRT quantizes as our Q/DQ model in FP32 does, to the bit.

    Scales are `amax / 127`, rounded up to float32 so that nothing is clipped.
    """
    scales = {name: _rounded_up(ranges.amax(name) / QMAX) for name in ranges.tensors}
    return CalibrationCache(scales, version, algorithm)


def compare_caches(first: CalibrationCache, second: CalibrationCache) -> CacheDifference:
    """Returns which tensors only one of the caches has, and which have different scales.

    Args:
        first: Of `read_cache` or `parse_cache`.
        second: Likewise. Scales are compared exactly, as float32.
    """
    ours, theirs = first.scales, second.scales
    return CacheDifference(
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        tuple(
            ScalePair(name, scale, theirs[name])
            for name, scale in ours.items()
            if name in theirs and theirs[name] != scale
        ),
    )


def _lines(content: bytes) -> list[str]:
    try:
        text = content.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise ArtifactError(f"not a calibration cache: {error}") from error
    if not text.strip():
        raise ArtifactError("the calibration cache is empty; calibrate again")
    return [line.rstrip("\r") for line in text.split("\n")]


def _scales(lines: list[str], start: int) -> dict[str, float]:
    """Returns the scales of the lines after the first `start`; lines are counted from 1."""
    scales: dict[str, float] = {}
    for number, line in enumerate(lines[start:], start + 1):
        found = _LINE.fullmatch(line)
        if found is None:
            if not line.strip():
                continue
            raise ArtifactError(f"line {number} of the calibration cache is no 'name: hex': {line[:60]!r}")
        name, scale = found[1], struct.unpack("!f", bytes.fromhex(found[2].zfill(8)))[0]
        if not 0 <= scale < math.inf:
            raise ArtifactError(
                f"line {number} of the calibration cache gives {name!r} the scale {scale:g}, "
                f"which must be finite and at least 0; calibrate again"
            )
        if scales.setdefault(name, scale) != scale:
            raise ArtifactError(
                f"line {number} of the calibration cache gives {name!r} the scale {scale:g}, an earlier line "
                f"gives it {scales[name]:g}; delete the wrong one"
            )
    return scales


def _header(version: int | None, algorithm: str | None) -> str:
    if algorithm is None:
        raise ArtifactError(
            "the calibration cache has no header, so its calibrator is not known; name it with --to, and "
            "TensorRT's version with --tensorrt"
        )
    if version is None:
        raise ArtifactError(
            f"the calibration cache is by {algorithm}, and its header has no version; "
            f"name that with --tensorrt"
        )
    return f"TRT-{version}-{algorithm}"


def _rounded_up(scale: float) -> float:
    """Returns the smallest normal float32 that is not below the scale."""
    nearest = np.float32(max(scale, SMALLEST_SCALE))
    return float(nearest if float(nearest) >= scale else np.nextafter(nearest, np.float32(np.inf)))
