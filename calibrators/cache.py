"""TensorRT's calibration cache: a text file with one scale a tensor."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from trtq.errors import ArtifactError

ENTROPY2 = "EntropyCalibration2"
_LAST_WITH_CALIBRATORS = 101600  # TensorRT 10.16: nothing newer reads a cache
_LINE = re.compile(r"(.+): *([0-9a-fA-F]{1,8}) *")


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
        ArtifactError: It has no header, a line is no `name: hex`, or a scale is negative or not finite.
    """
    try:
        lines = [line.rstrip("\r") for line in content.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        raise ArtifactError(f"not a calibration cache: {error}") from error
    mark, _, rest = lines[0].partition("-")
    version, _, algorithm = rest.partition("-")
    if mark != "TRT" or not version.isdecimal() or not algorithm:
        raise ArtifactError(
            f"not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2', "
            f"got {lines[0][:60]!r}"
        )
    scales = {}
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise ArtifactError(f"line {number} of the calibration cache is no 'name: hex': {line[:60]!r}")
        name, scale = found[1], struct.unpack("!f", bytes.fromhex(found[2].zfill(8)))[0]
        if not 0 <= scale < math.inf:
            raise ArtifactError(
                f"line {number} of the calibration cache gives {name!r} the scale {scale:g}, "
                f"which must be finite and at least 0; calibrate again"
            )
        scales[name] = scale
    return CalibrationCache(scales, int(version), algorithm)


def _to_hex(scale: float) -> str:
    """Returns the bits without leading zeros, as TensorRT's stream writes them: 0.0 is `0`."""
    return f"{struct.unpack('!I', struct.pack('!f', scale))[0]:x}"
