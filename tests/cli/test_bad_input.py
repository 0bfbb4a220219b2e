"""Models and data that cannot be built: one clear error, exit code 2, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from click.testing import Result

QUANTIZED = """
    <ir_version: 9, opset_import: ["" : 19]>
    quantized (float[N,4] x) => (float[N,4] y)
    <float s = {0.5}, %s> { [first] q = QuantizeLinear (x, s, z) [second] y = DequantizeLinear (q, s, z) }"""
ASKED = "--calib-data data.npz"


def test_the_good_model_and_data_are_good(trtq: Callable[..., Result]) -> None:
    result = trtq("build", "model.onnx", "--calib-data", "data.npz", "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


# Models


def _write(data: bytes) -> None:
    Path("bad.onnx").write_bytes(data)


def _truncate(keep: float) -> None:
    data = Path("model.onnx").read_bytes()
    _write(data[: int(len(data) * keep)])


def _lose_weights() -> None:
    model = onnx.load("model.onnx")
    onnx.save(model, "bad.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").unlink()


def _cut_weights() -> None:
    model = onnx.load("model.onnx")
    onnx.save(model, "bad.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    Path("w.bin").write_bytes(Path("w.bin").read_bytes()[:-4])


def _lose_outputs() -> None:
    model = onnx.load("model.onnx")
    del model.graph.output[:]
    onnx.save(model, "bad.onnx")


def _lose_a_node() -> None:
    model = onnx.load("model.onnx")
    del model.graph.node[0]
    onnx.save(model, "bad.onnx")


def _parse(text: str) -> None:
    onnx.save(onnx.parser.parse_model(text), "bad.onnx")


HEAD = '<ir_version: 9, opset_import: ["" : 19]>'


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        pytest.param(lambda: None, "cannot read the model bad.onnx: No such file", id="no file"),
        pytest.param(lambda: Path("bad.onnx").mkdir(), "bad.onnx is a folder; give the .onnx", id="folder"),
        pytest.param(lambda: _write(b""), "bad.onnx is empty; export the model again", id="empty"),
        pytest.param(lambda: _write(b"hello world\n"), "bad.onnx is not an ONNX model, or is cut", id="text"),
        pytest.param(lambda: _write(b"<html>" * 99), "bad.onnx is not an ONNX model", id="web page"),
        pytest.param(lambda: _truncate(0.99), "bad.onnx is not an ONNX model, or is cut short", id="cut"),
        pytest.param(lambda: _truncate(0.5), "bad.onnx is not an ONNX model, or is cut short", id="half"),
        pytest.param(_lose_weights, "bad.onnx: the weights of 'w1' lie in 'w.bin'", id="no external data"),
        pytest.param(_cut_weights, "bad.onnx: external data 'w.bin' has ", id="cut external data"),
        pytest.param(_lose_outputs, "bad.onnx: the graph has no outputs", id="no outputs"),
        pytest.param(_lose_a_node, "bad.onnx is not a valid ONNX model: ", id="invalid"),
        pytest.param(
            lambda: _parse(f"{HEAD} g (string[N] x) => (string[N] y) {{ y = Identity (x) }}"),
            "input 'x' is a tensor of strings, which TensorRT cannot take; cut",
            id="strings",
        ),
        pytest.param(
            lambda: _parse(QUANTIZED % "uint8 z = {3}"),
            "node 'first' (QuantizeLinear): it has the zero point 3; TensorRT takes symmetric",
            id="asymmetric",
        ),
        pytest.param(
            lambda: _parse(QUANTIZED % "uint8 z = {0}"),
            "node 'first' (QuantizeLinear): its quantized values are uint8, which TensorRT reads as int8",
            id="uint8",
        ),
    ],
)
def test_a_bad_model_is_refused(
    prepare: Callable[[], object], message: str, check_refused: Callable[[str, str], None]
) -> None:
    prepare()
    check_refused(f"bad.onnx {ASKED}", message)


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_folder_by_any_name_is_refused(
    folder: Path, name: str, check_refused: Callable[[str, str], None], trtq: Callable[..., Result]
) -> None:
    check_refused(name, f"{name} is a folder; give the .onnx file in it")
    result = trtq("quantize", name, "--ranges", "none.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_an_operator_that_the_builder_lacks_is_named(check_refused: Callable[[str, str], None]) -> None:
    _parse(
        f"{HEAD} g (float[4] x) => (float[4] y, int64[M] i, int64[M] j, int64[M] k) "
        "{ y = Relu (x) [odd] u, i, j, k = Unique (y) }"
    )
    check_refused(
        "bad.onnx --fp16", "TensorRT-RTX does not take this model: node 'odd' (Unique): this operator"
    )


# Data


def _samples(count: int = 20) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.ones((count, 3, 8, 8), np.float32)


def _with_nan(value: float) -> None:
    array = _samples()
    array[17, 2, 0, 0] = value
    np.savez("bad.npz", x=array)


def _folder_of_feeds() -> None:
    Path("bad").mkdir()
    np.savez("bad/0.npz", x=_samples(4))
    np.savez("bad/1.npz", x=_samples(4)[:, :, :4])


def _folder_of_text() -> None:
    Path("bad").mkdir()
    Path("bad/cat.png").write_text("meow")


@pytest.mark.parametrize(
    ("prepare", "name", "message"),
    [
        pytest.param(lambda: None, "bad.npz", "there is no data bad.npz; give ", id="no file"),
        pytest.param(
            lambda: np.savez("bad.npz", image=_samples()),
            "bad.npz",
            "bad.npz (samples 0 to 7) has no array 'x'; it has image, the model takes x",
            id="name",
        ),
        pytest.param(
            lambda: np.savez("bad.npz", x=_samples(), label=_samples()),
            "bad.npz",
            "bad.npz (samples 0 to 7) has an array 'label' that the model does not take; its inputs are x",
            id="more names",
        ),
        pytest.param(
            lambda: np.savez("bad.npz", x=_samples()[:, :1]),
            "bad.npz",
            "input 'x' of bad.npz (samples 0 to 7) has shape (8, 1, 8, 8), the model expects (N, 3, 8, 8)",
            id="shape",
        ),
        pytest.param(
            lambda: np.save("bad.npy", _samples().reshape(20, -1)),
            "bad.npy",
            "input 'x' of bad.npy (samples 0 to 7) has shape (8, 192), the model expects (N, 3, 8, 8)",
            id="rank",
        ),
        pytest.param(
            lambda: np.savez("bad.npz", x=_samples().astype(np.uint8)),
            "bad.npz",
            "input 'x' of bad.npz (samples 0 to 7) is uint8, the model expects float32",
            id="dtype",
        ),
        pytest.param(
            lambda: _with_nan(np.nan),
            "bad.npz",
            "input 'x' of bad.npz (samples 16 to 19) has 1 NaN or infinite value, the first in its sample 1",
            id="NaN",
        ),
        pytest.param(
            lambda: _with_nan(np.inf),
            "bad.npz",
            "input 'x' of bad.npz (samples 16 to 19) has 1 NaN or infinite value",
            id="infinity",
        ),
        pytest.param(
            lambda: np.savez("bad.npz", x=_samples(0)), "bad.npz", "bad.npz holds no samples", id="no samples"
        ),
        pytest.param(lambda: np.savez("bad.npz"), "bad.npz", "bad.npz holds no samples", id="no arrays"),
        pytest.param(
            lambda: Path("bad.npz").write_bytes(b""), "bad.npz", "bad.npz cannot be read as .npz", id="empty"
        ),
        pytest.param(
            lambda: Path("bad.npz").write_text("hello"),
            "bad.npz",
            "bad.npz cannot be read as .npz: File is not a zip file",
            id="text",
        ),
        pytest.param(
            lambda: Path("bad.csv").write_text("1,2"),
            "bad.csv",
            "bad.csv is not a kind of data that trtq reads; give an .npz",
            id="kind",
        ),
        pytest.param(
            lambda: Path("bad").mkdir(),
            "bad",
            "bad holds neither .npz files nor images (.bmp,",
            id="empty folder",
        ),
        pytest.param(
            _folder_of_feeds,
            "bad",
            "input 'x' of bad/1.npz has shape (4, 3, 4, 8), the model expects (N, 3, 8, 8)",
            id="feed",
        ),
        pytest.param(_folder_of_text, "bad", "bad/cat.png cannot be read as an image: ", id="image"),
        pytest.param(
            lambda: Path("bad.py").write_text("def feeds():\n    yield 1\n"),
            "bad.py:feeds",
            "bad.py:feeds must yield dicts of arrays, item 0 is int",
            id="script",
        ),
        pytest.param(
            lambda: Path("bad.py").write_text("def feeds():\n    return 1 / 0\n"),
            "bad.py:feeds",
            "bad.py:feeds failed: ZeroDivisionError: division by zero",
            id="failing script",
        ),
        pytest.param(
            lambda: Path("bad.json").write_text("{}"), "bad.json", "bad.json ", id="not of Polygraphy"
        ),
    ],
)
def test_bad_data_is_refused(
    prepare: Callable[[], object], name: str, message: str, check_refused: Callable[[str, str], None]
) -> None:
    prepare()
    check_refused(f"model.onnx --calib-data {name}", message)


def test_no_data_is_refused_with_the_ways_to_give_it(check_refused: Callable[[str, str], None]) -> None:
    check_refused("model.onnx", "model.onnx cannot be calibrated without data; give --calib-data with")


# What is odd, said, and built


def test_a_skip_that_matches_nothing_is_built_with_a_warning(
    folder: Path, trtq: Callable[..., Result]
) -> None:
    arguments = ["model.onnx", "--calib-data", "data.npz", "--backend", "onnxruntime", "--skip", "frist"]
    result = trtq("build", *arguments)
    assert result.exit_code == 0
    assert "warning: 'frist' matches no node; the nearest names are first\n" in result.stderr
    assert (folder / "model.trtq" / "report.json").is_file()


def test_dynamic_shapes_without_a_profile_are_taken_from_the_data_and_that_is_said(
    trtq: Callable[..., Result],
) -> None:
    result = trtq("build", "model.onnx", "--calib-data", "data.npz")
    assert result.exit_code == 0
    assert "note: input 'x' is dynamic: profile from the data, min 1x3x8x8, opt 8x3x8x8, max 8x3x8x8; " in (
        result.stderr
    )
    assert "  profile of x: min 1x3x8x8  opt 8x3x8x8  max 8x3x8x8\n" in result.stdout


def test_a_model_that_is_quantized_already_is_built_as_it_is_and_that_is_said(
    trtq: Callable[..., Result],
) -> None:
    _parse(QUANTIZED % "int8 z = {0}")
    result = trtq("build", "bad.onnx", "--opt-shapes", "x:2x4")
    assert result.exit_code == 0
    assert result.stderr == (
        "note: the model is quantized already: it is built as it is, without calibration\n"
    )
    assert "bad.onnx  QUANTIZED  tensorrt-rtx " in result.stdout
