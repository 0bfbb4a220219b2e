"""Tests of TensorRT's calibration cache: worked values, byte for byte."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.calibrators.cache import (
    CacheDifference,
    CalibrationCache,
    ScalePair,
    compare_caches,
    format_cache,
    format_version,
    parse_cache,
    parse_version,
    read_cache,
    replace_header,
    to_cache,
    to_hex,
)
from trtq.calibrators.ranges import Range, Ranges
from trtq.errors import ArtifactError, UsageError

CACHE = b"""TRT-8601-EntropyCalibration2
images: 3b66eddc
input_1:0: 3c010a14
(Unnamed Layer* 64) [Shuffle]_output: 0
"""
NAMES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
SCALES = st.floats(min_value=0, width=32, allow_infinity=False, allow_nan=False)
ODD_NAMES = (
    "input_1:0",
    "a: b",
    "(Unnamed Layer* 8) [Constant]_output",
    "/conv1/Conv_output_0",
    "x: 3c010a14",
)


def test_a_cache_of_tensorrt_is_read_and_written_byte_for_byte() -> None:
    cache = parse_cache(CACHE)
    assert (cache.version, cache.algorithm) == (8601, "EntropyCalibration2")
    assert list(cache.scales) == ["images", "input_1:0", "(Unnamed Layer* 64) [Shuffle]_output"]
    assert format_cache(cache) == CACHE


@pytest.mark.parametrize(
    ("digits", "scale"),
    [
        ("3c010a14", 0.0078759379),  # amax 1.000244
        ("3c010204", 1 / 127),
        ("4000889d", 2.00833821),
        ("3F800000", 1.0),
        ("0", 0.0),
        ("00000000", 0.0),
        ("800000", 2.0**-126),
    ],
)
def test_scales_by_hand(digits: str, scale: float) -> None:
    found = parse_cache(f"TRT-8601-EntropyCalibration2\nx: {digits}\n".encode()).scales["x"]
    assert found == pytest.approx(scale, rel=1e-7)
    assert found == struct.unpack("!f", struct.pack("!f", found))[0]


@pytest.mark.parametrize(
    ("scale", "digits"), [(0.0, "0"), (1.0, "3f800000"), (1 / 127, "3c010204"), (2.0**-126, "800000")]
)
def test_bits_are_written_without_leading_zeros(scale: float, digits: str) -> None:
    written = format_cache(CalibrationCache({"x": scale}, 100300, "MinMaxCalibration"))
    assert written == f"TRT-100300-MinMaxCalibration\nx: {digits}\n".encode()


@given(st.dictionaries(NAMES, SCALES), st.integers(0, 10**6), st.sampled_from(["Legacy", "A-B"]))
def test_what_is_written_is_read_again(scales: dict[str, float], version: int, algorithm: str) -> None:
    cache = CalibrationCache(scales, version, algorithm)
    written = format_cache(cache)
    assert parse_cache(written) == cache
    assert list(parse_cache(written).scales) == list(scales)
    assert format_cache(parse_cache(written)) == written


@pytest.mark.parametrize(
    "content",
    [
        CACHE.replace(b"\n", b"\r\n"),
        CACHE.rstrip(b"\n"),
        CACHE.replace(b"\n", b"\n\n"),
        CACHE + b"  \n\r\n",
        CACHE.replace(b": ", b":"),
        CACHE.replace(b"3b66eddc", b"3B66EDDC"),
        CACHE.replace(b": 0\n", b": 00000000\n"),
        b"\n\n" + CACHE,
        b"\xef\xbb\xbf" + CACHE,
        CACHE.replace(b"2\nimages", b"2  \nimages"),
        CACHE.replace(b"\n", b" \n").replace(b"Calibration2 \n", b"Calibration2\n"),
    ],
)
def test_blank_lines_line_ends_and_spaces_do_not_matter(content: bytes) -> None:
    assert parse_cache(content) == parse_cache(CACHE)


def test_a_cache_without_tensors_is_empty() -> None:
    assert parse_cache(b"TRT-101600-EntropyCalibration2\n") == CalibrationCache()


@given(st.lists(st.tuples(NAMES, st.integers(0, 0x7F7FFFFF)), min_size=1), st.integers())
def test_files_as_tensorrt_writes_them_come_back_byte_for_byte(
    pool: list[tuple[str, int]], seed: int
) -> None:
    generator = random.Random(seed)
    for _ in range(100):  # hypothesis takes 100 pools, so 10,000 caches
        names = generator.sample(pool, generator.randint(0, len(pool))) + [
            (name, generator.randint(0, 0x7F7FFFFF)) for name in ODD_NAMES if generator.random() < 0.5
        ]
        version = generator.choice((7103, 8203, 8510, 8601, 100300, 101600))
        algorithm = generator.choice(("EntropyCalibration2", "MinMaxCalibration", "LegacyCalibration"))
        lines = [f"TRT-{version}-{algorithm}"]
        lines += [f"{name}: {bits:x}" for name, bits in dict(names).items()]
        written = "".join(f"{line}\n" for line in lines).encode()
        cache = parse_cache(written)
        assert [struct.unpack("!I", struct.pack("!f", x))[0] for x in cache.scales.values()] == list(
            dict(names).values()
        )
        assert format_cache(cache) == written


# What stands in files that were touched by hand, by editors or by other tools


@pytest.mark.parametrize("header", ["TRT-8601", "TRT-8601-", "TRT-²-Entropy", "trt-1-A", "TRT-1234567890-A"])
def test_another_first_line_is_refused(header: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_cache(f"{header}\nx: 0\n".encode())
    assert str(caught.value) == (
        "not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2' or "
        f"'images: 3c010a14', got {header!r}"
    )


def test_a_missing_header_leaves_the_scales() -> None:
    body = CACHE.partition(b"\n")[2]
    expected = CalibrationCache(parse_cache(CACHE).scales, None, None)
    assert parse_cache(body) == parse_cache(b"\n" + body) == expected


def test_a_version_that_other_tools_write_is_unknown() -> None:
    cache = parse_cache(b"TRT-8XXX-EntropyCalibration2\nx: 3c010204\n")
    assert (cache.version, cache.algorithm, list(cache.scales)) == (None, "EntropyCalibration2", ["x"])


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"^the calibration cache is empty; calibrate again$"):
        parse_cache(content)


def test_a_tensor_may_stand_there_twice_with_one_scale_only() -> None:
    twice = CACHE + b"images: 3b66eddc\n"
    assert parse_cache(twice) == parse_cache(CACHE)
    with pytest.raises(
        ArtifactError,
        match=r"^line 5 of the calibration cache gives 'images' the scale 1, an earlier line gives it "
        r"0\.00352[0-9]*; delete the wrong one$",
    ):
        parse_cache(CACHE + b"images: 3f800000\n")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(
        ArtifactError, match=r"^not a calibration cache: 'utf-8' codec can't decode byte 0xff"
    ):
        parse_cache(b"\xff\xfe")


@pytest.mark.parametrize(
    "line", ["conv1", "conv1:", "conv1: ", "conv1: 0x3c", "conv1: 3c010a140", ": 3c010a14"]
)
def test_a_line_that_is_no_name_and_hex_is_refused(line: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_cache(CACHE + f"{line}\n".encode())
    assert str(caught.value) == f"line 5 of the calibration cache is no 'name: hex': {line!r}"


@pytest.mark.parametrize(("digits", "scale"), [("7fc00000", "nan"), ("7f800000", "inf"), ("bf800000", "-1")])
def test_a_scale_that_none_can_be_is_refused(digits: str, scale: str) -> None:
    with pytest.raises(
        ArtifactError,
        match=rf"^line 5 of the calibration cache gives 'a:0' the scale {scale}, "
        r"which must be finite and at least 0; calibrate again$",
    ):
        parse_cache(CACHE + f"a:0: {digits}\n".encode())


def test_lines_are_counted_from_the_top_of_the_file() -> None:
    with pytest.raises(ArtifactError, match=r"^line 4 of the calibration cache is no 'name: hex': 'b'$"):
        parse_cache(b"\na: 0\n\nb\n")


# Files


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "calibration.cache").write_bytes(CACHE)
    assert read_cache(tmp_path / "calibration.cache") == parse_cache(CACHE)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_cache(tmp_path / "none.cache")
    path = tmp_path / "none.cache"
    assert str(caught.value) == f"cannot read the calibration cache {path}: No such file or directory"
    with pytest.raises(ArtifactError, match=f"^cannot read .* {tmp_path}: Is a directory$"):
        read_cache(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "calibration.cache"
    path.write_bytes(CACHE + b"a: nan\n")
    with pytest.raises(ArtifactError) as caught:
        read_cache(path)
    assert str(caught.value) == f"{path}: line 5 of the calibration cache is no 'name: hex': 'a: nan'"


# Headers


@pytest.mark.parametrize(
    ("text", "number", "shown"),
    [
        ("8.6.1", 8601, "8.6.1"),
        ("8.6.1.6", 8601, "8.6.1"),
        ("8.6.1.post1", 8601, "8.6.1"),
        ("10.0.0b6", 100000, "10.0.0"),
        ("8.6", 8600, "8.6.0"),
        ("7.1.3", 7103, "7.1.3"),
        ("8.5.10", 8510, "8.5.10"),
        ("10.3", 100300, "10.3.0"),
        ("10.3.0.26", 100300, "10.3.0"),
        ("10.16.1", 101601, "10.16.1"),
    ],
)
def test_versions_by_hand(text: str, number: int, shown: str) -> None:
    assert parse_version(text) == number
    assert format_version(number) == shown


@pytest.mark.parametrize("text", ["", "10", "8", "v8", "v8.6", "8.6.1-rc", "8.6.", "\u0661\u0660.\u0663"])
def test_what_is_no_version_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_version(text)
    assert str(caught.value) == f"{text!r} is not a TensorRT version; write it like 8.6.1 or 10.3"


@pytest.mark.parametrize("text", ["11.0", "11", "8601", "4.0.1", "8.10"])
def test_versions_without_calibration_caches_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_version(text)
    assert str(caught.value) == (
        f"TensorRT {text} reads no calibration cache, those of 5 to 10 do; for others `trtq migrate` makes a "
        f"Q/DQ model of a cache"
    )


@pytest.mark.parametrize(
    ("cache", "origin"),
    [
        (CalibrationCache({}, 8601), "EntropyCalibration2 of TensorRT 8.6.1"),
        (CalibrationCache({}, None, "MinMaxCalibration"), "MinMaxCalibration of an unknown TensorRT"),
        (CalibrationCache({}, None, None), "a calibrator that is not named (no header)"),
    ],
)
def test_who_wrote_a_cache(cache: CalibrationCache, origin: str) -> None:
    assert cache.origin == origin


ODD_BODY = b"a: b: 3C010A14\r\n\nimages: 0000\r\n x :  3f800000"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    ("head", "written"),
    [
        (b"TRT-8601-EntropyCalibration2\n", b"TRT-100300-MinMaxCalibration\n"),
        (b"TRT-8XXX-Entropy \n", b"TRT-100300-MinMaxCalibration\n"),
        (b"\r\n\nTRT-8601-EntropyCalibration2\r\n", b"TRT-100300-MinMaxCalibration\r\n"),
        (b"", b"TRT-100300-MinMaxCalibration\r\n"),
    ],
)
def test_a_new_header_leaves_every_byte_below_it(mark: bytes, head: bytes, written: bytes) -> None:
    changed = replace_header(mark + head + ODD_BODY, version=100300, algorithm="MinMaxCalibration")
    assert changed == written + ODD_BODY


def test_what_is_not_given_stays_in_the_header() -> None:
    assert replace_header(CACHE) == CACHE
    assert replace_header(CACHE, version=100300) == CACHE.replace(b"8601", b"100300")
    assert replace_header(CACHE, algorithm="X") == CACHE.replace(b"EntropyCalibration2", b"X")
    assert replace_header(b"TRT-8601-A", version=8600) == b"TRT-8600-A\n"
    assert replace_header(b"x: 0", version=8600, algorithm="A") == b"TRT-8600-A\nx: 0"


@pytest.mark.parametrize("algorithm", [None, "EntropyCalibration2"])
def test_a_header_that_lacks_something_is_not_written(algorithm: str | None) -> None:
    with pytest.raises(
        ArtifactError,
        match=r"^the calibration cache has no header, so its calibrator is not known; name it with --to, "
        r"and TensorRT's version with --tensorrt$",
    ):
        replace_header(b"x: 0\n", version=8601)
    with pytest.raises(
        ArtifactError,
        match=r"^the calibration cache is by EntropyCalibration2, and its header has no version; name that "
        r"with --tensorrt$",
    ):
        replace_header(b"x: 0\n" if algorithm else b"TRT-8XXX-EntropyCalibration2\n", algorithm=algorithm)
    with pytest.raises(ArtifactError, match="the calibration cache has no header"):
        format_cache(parse_cache(b"x: 0\n"))


def test_a_broken_cache_gets_no_header() -> None:
    with pytest.raises(ArtifactError, match=r"line 2 of the calibration cache is no 'name: hex'"):
        replace_header(b"TRT-8601-A\nx\n", version=8600)


# From ranges, and side by side


def test_the_scales_of_ranges_are_rounded_up() -> None:
    amaxes = (1.0, 127.0, 0.1, 3.4028234663852886e38, 1e-38, 0.0)
    tensors = {f"t{index}": Range(amax, -amax, amax) for index, amax in enumerate(amaxes)}
    cache = to_cache(Ranges(tensors, "entropy()", "", "x.npz", 8), 8601, "MinMaxCalibration")
    assert (cache.version, cache.algorithm) == (8601, "MinMaxCalibration")
    assert list(cache.scales) == list(tensors)
    exact = (1 / 127, 1.0, 0.1 / 127, 3.4028234663852886e38 / 127, 2.0**-126, 1 / 127)
    for scale, wanted in zip(cache.scales.values(), exact, strict=True):
        assert float(np.float32(scale)) == scale >= wanted
        assert float(np.nextafter(np.float32(scale), np.float32(0))) < wanted
    assert parse_cache(format_cache(cache)) == cache


def test_what_two_caches_do_not_share() -> None:
    first = CalibrationCache({"a": 1.0, "b": 2.0, "c": 0.0, "e": 4.0}, 8601)
    second = CalibrationCache({"d": 1.0, "e": 4.0, "c": 0.5, "b": 3.0}, 100300)
    difference = compare_caches(first, second)
    changed = (ScalePair("b", 2.0, 3.0), ScalePair("c", 0.0, 0.5))
    assert difference == CacheDifference(("a",), ("d",), changed)
    assert [pair.ratio for pair in difference.changed] == [1.5, float("inf")]
    assert difference.count == 4
    assert compare_caches(first, first).count == 0


def test_hex_by_hand() -> None:
    assert [to_hex(scale) for scale in (0.0, 1.0, 2.0**-149)] == ["0", "3f800000", "1"]
