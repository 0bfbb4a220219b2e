"""What becomes of the bytes of a file: flipped bits, cut ends, pieces of others, absurd numbers."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from io import BytesIO

from hypothesis import strategies as st

ODD_NUMBERS = (
    0, -1, 1, 2, 127, 255, 256, 65535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1, 2**63, -(2**63),
    2**64 - 1, 2**64, 10**19, 10**40, 10**400, 10**5000,
)  # fmt: skip
ODD_NAMES = (
    "", " ", ".", "..", "/", "../x", "/dev/zero", "a\0b", "\x1b[2J", "\n", "a\nb", "\r", "%s%n", "{0}",
    "\ufeff",     "\u202e", "\ud800", "é" * 200, "x" * 256, "y" * 70_000, "nan", "-",
    "--json", "'", '"', "\\", "a:b", "*", "[", "(",
)  # fmt: skip
_MOST_BYTES = 1 << 20
_DIGITS = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")

Change = Callable[[st.DrawFn, bytes, Sequence[bytes]], bytes]


@st.composite
def damage(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Returns one of the seeds after one to four changes at drawn places."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 4))):
        content = draw(st.sampled_from(_CHANGES))(draw, content, seeds)[:_MOST_BYTES]
    return content


@st.composite
def damage_members(draw: st.DrawFn, seeds: Sequence[bytes], inner: Sequence[bytes]) -> bytes:
    """Returns a zip file, valid itself, of which one member is damaged, renamed, doubled or lost."""
    with zipfile.ZipFile(BytesIO(draw(st.sampled_from(seeds)))) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw(st.integers(0, len(members) - 1))
    name, content = members[place]
    change = draw(st.sampled_from(["damage", "damage", "rename", "double", "lose"]))
    if change == "damage":
        members[place] = name, draw(damage([content, content, *inner]))
    elif change == "rename":
        other = draw(st.sampled_from([*ODD_NAMES, *(other for other, _ in members)]))
        members[place] = other.encode(errors="replace").decode()[:60_000], content
    elif change == "double":
        members.append((name, draw(damage([content]))))
    else:
        del members[place]
    method = draw(
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    )
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "empty"), content, method)
    return packed.getvalue()


def _place(draw: st.DrawFn, content: bytes) -> int:
    """Draws a place; every fourth is near the start, where the head of most formats is."""
    last = max(0, len(content) - 1)
    return draw(st.integers(0, min(last, 64) if draw(st.integers(0, 3)) == 0 else last))


def _span(draw: st.DrawFn, content: bytes) -> tuple[int, int]:
    start = _place(draw, content)
    return start, min(len(content), start + draw(st.sampled_from([1, 2, 4, 8, 16, 64, 256, 4096])))


def _flip(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    changed = bytearray(content or b"\0")
    changed[_place(draw, content)] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def _overwrite(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    size = draw(st.sampled_from([1, 2, 4, 8]))
    number = draw(st.sampled_from(ODD_NUMBERS[:-4])) % (1 << 8 * size)
    new = number.to_bytes(size, "little" if draw(st.booleans()) else "big")
    place = _place(draw, content)
    return content[:place] + bytes(new) + content[place + size :]


def _cut(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    return content[: _place(draw, content)]


def _delete(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _span(draw, content)
    return content[:start] + content[stop:]


def _insert(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    place = _place(draw, content)
    return content[:place] + draw(st.binary(min_size=1, max_size=16)) + content[place:]


def _splice(draw: st.DrawFn, content: bytes, seeds: Sequence[bytes]) -> bytes:
    other = draw(st.sampled_from(seeds))
    start, stop = _span(draw, other)
    place = _place(draw, content)
    return content[:place] + other[start:stop] + content[place + draw(st.sampled_from([0, stop - start])) :]


def _repeat(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    start, stop = _span(draw, content)
    times = draw(st.sampled_from([2, 10, 1000, 100_000]))
    return content[:start] + (content[start:stop] * times)[:_MOST_BYTES] + content[stop:]


def _renumber(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    """Writes another number where one stands as text, also longer than it was."""
    found = list(_DIGITS.finditer(content))
    if not found:
        return content
    number = draw(st.sampled_from(found))
    words = (*map(_write, ODD_NUMBERS), b"1e999", b"-1e-999", b"NaN", b"Infinity", b"nan", b"inf", b"0x7f")
    return content[: number.start()] + draw(st.sampled_from(words)) + content[number.end() :]


def _nest(draw: st.DrawFn, content: bytes, _: Sequence[bytes]) -> bytes:
    opening = draw(st.sampled_from([b"[", b"{", b'{"a":', b"(", b"a{", b"[a."]))
    place, depth = _place(draw, content), draw(st.sampled_from([10, 1000, 100_000]))
    return content[:place] + (opening * depth)[:_MOST_BYTES] + content[place:]


def _write(number: int) -> bytes:
    """Returns a number as text, also one of more digits than Python likes to write."""
    return b"1" + b"0" * 5000 if number == 10**5000 else str(number).encode()


_CHANGES: tuple[Change, ...] = (
    _flip, _flip, _overwrite, _cut, _delete, _insert, _splice, _repeat, _renumber, _renumber, _nest,
)  # fmt: skip
