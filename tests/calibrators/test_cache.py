"""Tests of TensorRT's calibration cache: worked values, byte for byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtq.calibrators.cache import CalibrationCache, format_cache, parse_cache
from trtq.errors import ArtifactError

CACHE = b"""TRT-8601-EntropyCalibration2
images: 3b66eddc
input_1:0: 3c010a14
(Unnamed Layer* 64) [Shuffle]_output: 0
"""
NAMES = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)
SCALES = st.floats(min_value=0, width=32, allow_infinity=False, allow_nan=False)


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
        CACHE.replace(b"\n", b" \n").replace(b"Calibration2 \n", b"Calibration2\n"),
    ],
)
def test_blank_lines_line_ends_and_spaces_do_not_matter(content: bytes) -> None:
    assert parse_cache(content) == parse_cache(CACHE)


def test_a_cache_without_tensors_is_empty() -> None:
    assert parse_cache(b"TRT-101600-EntropyCalibration2\n") == CalibrationCache()


@pytest.mark.parametrize(
    "header", ["", "images: 3c010a14", "TRT-8601", "TRT-8601-", "TRT-x-Entropy", "TRT-²-Entropy", "trt-1-A"]
)
def test_another_first_line_is_refused(header: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        parse_cache(f"{header}\nx: 0\n".encode())
    assert str(caught.value) == (
        f"not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2', got {header!r}"
    )


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
