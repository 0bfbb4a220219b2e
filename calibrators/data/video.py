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
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
"""The two elements of a Matroska file: what it is, and all that it holds."""


def read_frames(video: StoredFile, taken: PictureInput) -> Iterator[Sample]:
    """Yields every n-th frame of a video, from the first one on; n is `frame_step` of the settings.

    Raises:
        DataError: It is no video, or is damaged.
        MissingDependency: PyAV is not installed.
    """
    av = lazy.require("av", "video", "reading videos")
    broken = refuse_damage(DataError, f"{video.name} cannot be read as a video")
    with broken, video.open() as stream:
        _refuse_cut_matroska(stream)
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


def _refuse_cut_matroska(stream: IO[bytes]) -> None:
    """Refuses a Matroska or WebM file that is shorter than it says, of which FFmpeg reads what there is.

    Raises:
        EOFError: It is.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if stream.read(len(_EBML)) == _EBML:
        stream.seek(_read_size(stream) or 0, io.SEEK_CUR)
        if stream.read(len(_SEGMENT)) == _SEGMENT and (length := _read_size(stream)) is not None:
            wanted = stream.tell() + length
            if wanted > size:
                raise EOFError(f"it is cut short: {size} of {wanted} bytes")
    stream.seek(0)


def _read_size(stream: IO[bytes]) -> int | None:
    """Returns the length of an element: its first 1 bit tells how many bytes say it; None: not known."""
    first = stream.read(1)[0]
    num_bytes = 9 - first.bit_length()
    value = int.from_bytes(bytes([first]) + stream.read(num_bytes - 1), "big") & ((1 << 7 * num_bytes) - 1)
    return None if value == (1 << 7 * num_bytes) - 1 else value
