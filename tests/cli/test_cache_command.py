"""`trtq cache` as a user runs it: exit code and whole output."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from command_line import lines_of, trtq

from trtq.calibrators.cache import CalibrationCache, format_cache
from trtq.calibrators.ranges import Range, Ranges, ranges_to_json
from trtq.cli.cache import command
from trtq.errors import TrtqError

OLD = b"""TRT-8601-EntropyCalibration2
images: 3c010204
a: b: 3F000000
(Unnamed Layer* 4) [Shuffle]_output: 0
"""
NEW = b"TRT-100300-MinMaxCalibration\nimages: 3c010205\na: b: 3f000000\nhead: 3f800000\n"
MISSING = "cannot read the calibration cache {}: No such file or directory"


def cache(*arguments: str | Path) -> Result:
    return trtq(*arguments, command=command)


def refused(result: Result) -> str:
    """Returns the message of an expected failure, which `trtq` prints and ends with exit code 2."""
    assert isinstance(result.exception, TrtqError)
    assert result.exception.exit_code == 2
    assert result.output == ""
    return str(result.exception)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "old.cache").write_bytes(OLD)
    return tmp_path / "old.cache"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    (tmp_path / "new.cache").write_bytes(NEW)
    return tmp_path / "new.cache"


def test_help_lists_the_commands() -> None:
    result = cache("--help")
    assert result.exit_code == 0
    assert re.findall(r"^  (\w+)  ", result.stdout.partition("Commands:")[2], re.MULTILINE) == [
        "convert", "diff", "export", "show",
    ]  # fmt: skip


# Show


def test_a_cache_is_shown(old: Path) -> None:
    result = cache("show", old)
    assert result.exit_code == 0
    assert lines_of(result.stdout) == [
        "3 tensors by EntropyCalibration2 of TensorRT 8.6.1, 1 with scale 0",
        "tensor hex scale amax",
        "images 3c010204 0.00787402 1",
        "a: b 3f000000 0.5 63.5",
        "(Unnamed Layer* 4) [Shuffle]_output 0 0 0",
    ]


def test_a_cache_without_a_header_is_shown(new: Path) -> None:
    new.write_bytes(NEW.partition(b"\n")[2])
    assert cache("show", new).stdout.startswith("3 tensors by a calibrator that is not named (no header)\n")
    document = json.loads(cache("show", new, "--json").stdout)
    assert [document[name] for name in ("version", "tensorrt", "algorithm")] == [None, None, None]


def test_a_cache_is_shown_as_json(old: Path) -> None:
    result = cache("show", old, "--json")
    assert result.exit_code == 0
    scale = float(np.float32(1 / 127))
    assert json.loads(result.stdout) == {
        "version": 8601,
        "tensorrt": "8.6.1",
        "algorithm": "EntropyCalibration2",
        "tensors": [
            {"tensor": "images", "scale": scale, "amax": scale * 127, "hex": "3c010204"},
            {"tensor": "a: b", "scale": 0.5, "amax": 63.5, "hex": "3f000000"},
            {"tensor": "(Unnamed Layer* 4) [Shuffle]_output", "scale": 0.0, "amax": 0.0, "hex": "0"},
        ],
    }


@pytest.mark.parametrize("arguments", [("show",), ("convert", "--to", "minmax"), ("diff", "none.cache")])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    path = tmp_path / "none.cache"
    assert refused(cache(arguments[0], path, *arguments[1:])) == MISSING.format(path)


def test_a_file_that_is_no_cache_is_named(old: Path) -> None:
    old.write_bytes(b"\x00\x01")
    assert refused(cache("show", old)) == (
        f"{old}: not a calibration cache: the first line must be like 'TRT-8601-EntropyCalibration2' or "
        f"'images: 3c010a14', got '\\x00\\x01'"
    )


# Convert


def test_a_new_header_stands_above_the_same_bytes(old: Path) -> None:
    result = cache("convert", old, "--to", "minmax", "--tensorrt", "10.3")
    written = old.parent / "old.minmax-10.3.0.cache"
    assert (result.exit_code, result.stdout) == (
        0,
        "3 tensors by EntropyCalibration2 of TensorRT 8.6.1, now for MinMaxCalibration of TensorRT 10.3.0\n"
        f"written to {written}\n",
    )
    assert written.read_bytes() == OLD.replace(
        b"TRT-8601-EntropyCalibration2", b"TRT-100300-MinMaxCalibration"
    )
    assert old.read_bytes() == OLD


def test_what_is_not_given_stays(old: Path, tmp_path: Path) -> None:
    assert cache("convert", old, "--tensorrt", "8.5.10", "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out").read_bytes() == OLD.replace(b"8601", b"8510")
    assert cache("convert", old, "--to", "minmax", "-o", tmp_path / "min").exit_code == 0
    assert (tmp_path / "min").read_bytes() == OLD.replace(b"EntropyCalibration2", b"MinMaxCalibration")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["min", "old.cache", "out"]


def test_other_calibrators_stand_in_the_name_of_the_file(old: Path) -> None:
    old.write_bytes(OLD.replace(b"EntropyCalibration2", b"LegacyCalibration"))
    assert cache("convert", old, "--tensorrt", "8.6").exit_code == 0
    assert (old.parent / "old.LegacyCalibration-8.6.0.cache").is_file()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (OLD, (), r"^nothing to convert to: give --to, --tensorrt or both$"),
        (OLD, ("--tensorrt", "x"), r"^'x' is not a TensorRT version; write it like 8\.6\.1 or 10\.3$"),
        (OLD, ("--tensorrt", "11"), r"^TensorRT 11 reads no calibration cache, those of 5 to 10 do; for "),
        (
            b"x: 0\n",
            ("--tensorrt", "10.3"),
            r"has no header, so its calibrator is not known; name it with --to",
        ),
        (b"x: 0\n", ("--to", "minmax"), r"MinMaxCalibration, and its header has no version; name that with"),
        (b"x: y\n", ("--to", "minmax"), r"old\.cache: not a calibration cache"),
    ],
)
def test_what_cannot_be_converted_is_told_and_writes_nothing(
    old: Path, content: bytes, arguments: tuple[str, ...], message: str
) -> None:
    old.write_bytes(content)
    assert re.search(message, refused(cache("convert", old, *arguments)))
    assert list(old.parent.iterdir()) == [old]


def test_a_folder_that_is_not_there_is_told(old: Path, tmp_path: Path) -> None:
    output = tmp_path / "none" / "out.cache"
    assert refused(cache("convert", old, "--to", "minmax", "-o", output)).startswith(
        f"cannot write {output}: "
    )


# Diff


def test_equal_caches_are_equal_whatever_their_headers(old: Path, tmp_path: Path) -> None:
    (tmp_path / "same.cache").write_bytes(OLD.replace(b"8601", b"100300"))
    result = cache("diff", old, tmp_path / "same.cache")
    assert (result.exit_code, result.stdout) == (
        0,
        "first:  3 tensors by EntropyCalibration2 of TensorRT 8.6.1\n"
        "second: 3 tensors by EntropyCalibration2 of TensorRT 10.3.0\n"
        "equal\n",
    )
    assert json.loads(cache("diff", old, tmp_path / "same.cache", "--json").stdout)["equal"] is True


def test_what_differs_is_shown(old: Path, new: Path) -> None:
    result = cache("diff", old, new)
    assert result.exit_code == 0
    assert lines_of(result.stdout) == [
        "first: 3 tensors by EntropyCalibration2 of TensorRT 8.6.1",
        "second: 3 tensors by MinMaxCalibration of TensorRT 10.3.0",
        "3 tensors differ",
        "tensor first second second / first",
        "(Unnamed Layer* 4) [Shuffle]_output 0 - -",
        "head - 1 -",
        "images 0.00787402 0.00787402 1.0000001",
    ]


def test_what_differs_is_json(old: Path, new: Path) -> None:
    (old.parent / "zero.cache").write_bytes(format_cache(CalibrationCache({"images": 0.0}, 8601)))
    document = json.loads(cache("diff", old.parent / "zero.cache", new, "--json").stdout)
    scale = float(np.nextafter(np.float32(1 / 127), np.float32(1)))
    assert document == {
        "equal": False,
        "first": {"version": 8601, "tensorrt": "8.6.1", "algorithm": "EntropyCalibration2"},
        "second": {"version": 100300, "tensorrt": "10.3.0", "algorithm": "MinMaxCalibration"},
        "only_first": [],
        "only_second": ["a: b", "head"],
        "changed": [{"tensor": "images", "first": 0.0, "second": scale, "ratio": None}],
    }


# Export


@pytest.fixture
def ranges(tmp_path: Path) -> Path:
    tensors = {"x": Range(1.0, -1.0, 1.0), "c": Range(127.0, 0.0, 200.0)}
    path = tmp_path / "ranges.json"
    path.write_bytes(ranges_to_json(Ranges(tensors, "entropy()", "0" * 64, "calib.npz", 8)))
    return path


def test_ranges_are_written_as_a_cache(ranges: Path, tmp_path: Path) -> None:
    output = tmp_path / "calibration.cache"
    result = cache("export", ranges, "--tensorrt", "8.6.1", "-o", output)
    assert (result.exit_code, result.stdout) == (
        0,
        "names are those of trtq's own graph; --model takes those of the file\n"
        "2 tensors for EntropyCalibration2 of TensorRT 8.6.1\n"
        f"written to {output}\n",
    )
    assert output.read_bytes() == b"TRT-8601-EntropyCalibration2\nx: 3c010205\nc: 3f800000\n"


def test_ranges_get_the_names_of_the_file(ranges: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N,1,4,4] x) => (float[N,1,4,4] y) '
        "<float[1,1,1,1] w = {2}, float[1] s = {1}> "
        "{ c = Conv(x, w) b = BatchNormalization(c, s, s, s, s) y = Conv(b, w) }"
    )
    onnx.save(model, tmp_path / "model.onnx")
    arguments = ("--to", "minmax", "--model", tmp_path / "model.onnx", "-o", tmp_path / "out")
    result = cache("export", ranges, "--tensorrt", "10.3", *arguments)
    assert (result.exit_code, result.stdout) == (
        0,
        f"2 tensors for MinMaxCalibration of TensorRT 10.3.0\nwritten to {tmp_path / 'out'}\n",
    )
    assert (tmp_path / "out").read_bytes() == b"TRT-100300-MinMaxCalibration\nx: 3c010205\nb: 3f800000\n"


def test_ranges_that_are_none_are_told(old: Path, tmp_path: Path) -> None:
    message = refused(cache("export", old, "--tensorrt", "8.6", "-o", tmp_path / "out"))
    assert message.startswith(f"{old} is not a ranges file")
    assert not (tmp_path / "out").exists()
