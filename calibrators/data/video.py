"""The frames of videos as samples."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, Any

from trtq import lazy
from trtq.calibrators.data.files import StoredFile
from trtq.calibrators.data.pictures import PictureInput
from trtq.calibrators.data.samples import Sample
from trtq.errors import DataError
from trtq.files import refuse_damage

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_MATROSKA = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67")
"""The two elements of a Matroska or WebM file: what it is, and all that it holds."""
_BOXES = (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"moov", b"mdat", b"styp", b"sidx", b"moof", b"mfra")
"""What an MP4 or QuickTime file may hold."""
_OPEN = 0xFFFFFFFF
"""The length of an AVI file that was written as a stream."""


def read_frames(video: StoredFile, taken: PictureInput) -> Iterator[Sample]:
    """Yields every n-th frame of a video, from the first one on; n is `frame_step` of the settings.

    Raises:
        DataError: It is no video, or is damaged.
        MissingDependency: PyAV is not installed.
    """
    av = lazy.require("av", "video", "reading videos")
    broken = refuse_damage(DataError, f"{video.name} cannot be read as a video")
    with broken, video.open() as stream:
        _refuse_cut(stream)
        with av.open(stream) as container:
            for index, frame in enumerate(_decode(container)):
                if index % taken.steps.frame_step == 0:
                    name = f"{video.name}, frame {index}"
                    yield Sample({taken.spec.name: taken.prepare(frame.to_image(), name)}, name)


def _decode(container: Any) -> Iterator[Any]:
    """Yields the frames of a video; FFmpeg would go on with what it makes of damaged ones.

    Raises:
        ValueError: A part is damaged, or is the last of a file that is cut short.
    """
    for packet in container.demux(video=0):
        frames = packet.decode()
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise ValueError("a part of it is damaged, or it is cut short")
        yield from frames


def _refuse_cut(stream: IO[bytes]) -> None:
    """Refuses a file that is shorter than its container says, of which FFmpeg reads what there is.

    Raises:
        EOFError: It is.
    """
    size, end = stream.seek(0, io.SEEK_END), 0
    while end < size:
        stream.seek(end)
        if (length := _read_length(stream.read(16))) is None:
            break
        end += length
    if end > size:
        raise EOFError(f"it is cut short: {size} of {end} bytes")
    stream.seek(0)


def _read_length(head: bytes) -> int | None:
    """Returns how long a part of a container is that begins so; None: not known."""
    if head[:4] in _MATROSKA and len(head) > len(_MATROSKA[0]):
        num_bytes = 9 - head[4].bit_length()  # the first 1 bit tells how many say it
        unknown = (1 << 7 * num_bytes) - 1
        value = int.from_bytes(head[4 : 4 + num_bytes], "big") & unknown
        return None if value == unknown else 4 + num_bytes + value
    if head[:4] == b"RIFF":
        value = int.from_bytes(head[4:8], "little")
        return None if value == _OPEN else 8 + value
    if head[4:8] in _BOXES:
        value = int.from_bytes(head[:4], "big")
        value = int.from_bytes(head[8:16], "big") if value == 1 else value
        return max(8, value) if value else None
    return None
