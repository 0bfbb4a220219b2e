"""TensorRT's calibration cache: a text file with one scale a tensor."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from trtq.errors import ArtifactError

ENTROPY2 = "EntropyCalibration2"
_LAST_WITH_CALIBRATORS = 101600  # TensorRT 10.16: nothing newer reads a cache


@dataclass(frozen=True, slots=True)
class CalibrationCache:
    """The scales of a cache: `amax / 127`, as TensorRT's calibrators write them.

    Attributes:
        scales: By TensorRT's tensor name, in the order of the file; float32 values.
        version: TensorRT's version as in the header: 8601 for 8.6.1, 100300 for 10.3.0.
        algorithm: The calibrator that wrote it; TensorRT ignores the cache of another.
    """

    scales: Mapping[str, float] = field(default_factory=dict)
    version: int = _LAST_WITH_CALIBRATORS
    algorithm: str = ENTROPY2


def format_cache(cache: CalibrationCache) -> bytes:
    """Returns the text that TensorRT reads: a header, then `name: hex of the float32 scale` a line."""
    lines = [f"TRT-{cache.version}-{cache.algorithm}"]
    lines += [f"{name}: {_to_hex(scale)}" for name, scale in cache.scales.items()]
    return "\n".join(lines).encode() + b"\n"


def parse_cache(content: bytes) -> CalibrationCache:
    """Returns what a calibration cache holds.

    Blank lines, CRLF and a missing last newline are taken; names may hold colons.

    Raises:
        ArtifactError: It has no header, or a line is no `name: hex`.
    """
    try:
        lines = [line.rstrip("\r") for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ArtifactError(f"not a calibration cache: {error}") from error
    mark, _, rest = lines[0].partition("-")
    version, _, algorithm = rest.partition("-")
    if mark != "TRT" or not version.isdigit() or not algorithm:
        raise ArtifactError(
            f"not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2', "
            f"got {lines[0][:60]!r}"
        )
    scales = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, separator, digits = line.rpartition(":")
        try:
            scales[name] = struct.unpack("!f", bytes.fromhex(digits.strip().zfill(8)))[0]
        except (ValueError, struct.error):
            separator = ""
        if not separator:
            raise ArtifactError(f"line {number} of the calibration cache is no 'name: hex': {line[:60]!r}")
    return CalibrationCache(scales, int(version), algorithm)


def _to_hex(scale: float) -> str:
    packed = struct.pack("!f", scale)
    return packed.hex() if any(packed) else "0"
