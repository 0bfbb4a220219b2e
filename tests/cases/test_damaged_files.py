"""Files that fuzzing found to end in a traceback, or in words of many lines: one line now, exit code 2."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import pytest

import trtq
from trtq.cli.build_file import read_builds
from trtq.errors import ArtifactError, DataError, ModelError, TrtqError, UsageError, quote
from trtq.files import refuse_damage
from trtq.models import session
from trtq.models.program import open_module
from trtq.pipeline.graph.load import read_runnable
from trtq.pipeline.graph.opset import infer_shapes

_LONG = "9" * 5000


def _observe(folder: Path, name: str) -> None:
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(folder / name)))
    trtq.observe(folder / "m.onnx", spec=spec)


def _build(folder: Path, **spec: object) -> trtq.Report:
    quick = trtq.QuantizationSpec(repair=("none",))
    data = trtq.CalibrationSpec(data=str(folder / "x.npz"), method="minmax")
    given = trtq.ModelSpec(calibration=data, quantization=quick)
    target = trtq.Target(backend="onnxruntime")
    return trtq.build(folder / "m.onnx", spec=given, target=target, output=folder / "m.trtq", **spec)  # type: ignore[arg-type]


def test_words_of_a_library_are_one_short_line() -> None:
    assert quote(ValueError("a\n  b\t c")) == "a b c"
    assert quote(KeyError("x")) == "KeyError: 'x'"
    assert quote(MemoryError()) == "MemoryError: "
    assert quote(RecursionError("maximum recursion depth exceeded")) == "it is nested too deeply"
    assert len(quote(ValueError("x" * 100_000))) < 400


def test_whatever_a_parser_raises_becomes_our_error_and_ours_stays() -> None:
    with (
        pytest.raises(DataError, match=r"^x\.npz is damaged: EOFError: $"),
        refuse_damage(DataError, "x.npz is damaged"),
    ):
        raise EOFError
    with pytest.raises(UsageError, match=r"^ours$"), refuse_damage(DataError, "x.npz is damaged"):
        raise UsageError("ours")


def test_names_from_files_neither_break_nor_lengthen_a_message() -> None:
    assert str(TrtqError("it has a\nPASS")) == r"it has a\nPASS"
    assert str(TrtqError("2 are wrong:\n  a\n  b")) == "2 are wrong:\n  a\n  b"
    assert len(str(TrtqError(f"it has {'x' * 100_000}; rename it"))) < 8100
    assert str(TrtqError(f"it has {'x' * 100_000}; rename it")).endswith("; rename it")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("length", _LONG, "which are no numbers; export the model again"),
        ("length", "3", "with length 3, but their shape takes"),
        ("offset", "²", "which are no numbers; export the model again"),
        ("location", "x" * 300, "which is not next to the model; copy that file"),
        ("location", "a\0b", "which is not next to the model; copy that file"),
        ("location", "../w.bin", "outside of the model's folder; save the model again"),
        ("location", "/dev/zero", "outside of the model's folder; save the model again"),
    ],
)
def test_external_data_that_cannot_be_is_refused(
    tmp_path: Path, small_model: Callable[[Path], None], key: str, value: str, words: str
) -> None:
    small_model(tmp_path)
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.name = ""  # with which ONNX's checker sees a copy without outer weights
    (tmp_path / "w.bin").write_bytes(bytes(256))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for name, content in {"location": "w.bin", "offset": "0", "length": "256", key: value}.items():
        tensor.external_data.add(key=name, value=content)
    onnx.save(model, tmp_path / "m.onnx")
    for read in (trtq.inspect, trtq.lint):
        with pytest.raises(ModelError, match=words):
            read(tmp_path / "m.onnx")


def test_a_model_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx is a device, a pipe or a socket, not a file; name an"):
        trtq.inspect(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("x" * 5000, "File name too long", "cannot be built:"),
        ("a\0b", "embedded null byte", "has the character .u0000 in a text"),
    ],
)
def test_a_model_of_a_name_that_no_system_takes_is_refused(
    tmp_path: Path, name: str, words: str, told: str
) -> None:
    with pytest.raises(ModelError, match=f"cannot read the model .*: {words}$"):
        trtq.build(tmp_path / name, random_data=True)
    (tmp_path / "trtq.toml").write_text(
        f"[[build]]\nmodel = {json.dumps(name)}\noutput = {json.dumps(name)}\n"
    )
    with pytest.raises(UsageError, match=rf"trtq\.toml {told}"):
        read_builds(tmp_path / "trtq.toml")


def test_a_call_of_a_function_with_too_many_inputs_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 19, "ours" : 1]>
        g (float[2] x) => (float[2] y) { y = ours.Twice (x, x, x) }
        <domain: "ours", opset_import: ["" : 19]> Twice (a) => (b) { b = Add (a, a) }"""
    (tmp_path / "m.onnx").write_bytes(onnx.parser.parse_model(text).SerializeToString())
    with pytest.raises(ModelError, match="the model's own functions cannot be inlined: "):
        trtq.inspect(tmp_path / "m.onnx")


def test_random_numbers_for_an_absurd_shape_are_refused(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**53
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2**53
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        DataError, match=r"input 'x' has shape \(9007199254740992, 4\): .* too many to generate"
    ):
        trtq.observe(tmp_path / "m.onnx", random_data=True)


def test_a_name_of_many_lines_in_data_is_told_in_one(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        stream = io.BytesIO()
        np.save(stream, np.ones((2, 4), np.float32))
        archive.writestr("x\nPASS\n.npy", stream.getvalue())
    with pytest.raises(DataError, match=r"has no array 'x'; it has x\\nPASS\\n, the model takes x$"):
        _observe(tmp_path, "d.npz")


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"x": {"array": 3, "polygraphy_class": "ndarray"}}]'])
def test_inputs_of_polygraphy_that_are_none_are_refused(
    tmp_path: Path, small_model: Callable[[Path], None], content: str
) -> None:
    small_model(tmp_path)
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(DataError, match=r"d\.json is not a file of inputs saved by Polygraphy: "):
        _observe(tmp_path, "d.json")


@pytest.mark.parametrize("text", [f"x = {_LONG}", "x = 0x" + "f" * 5000 + "g"])
def test_a_number_in_settings_that_nobody_can_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(UsageError, match=r"m\.toml is not valid TOML: "):
        trtq.read_spec(tmp_path / "m.toml")


def test_a_key_of_settings_that_would_take_minutes_to_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.toml").write_text(f"[inputs{'.x' * 400_000}]")
    with pytest.raises(UsageError, match=r"m\.toml has a key of more than 200 parts; remove it$"):
        trtq.read_spec(tmp_path / "m.toml")


def test_statistics_whose_arrays_have_a_damaged_head_are_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3, np.int32))
    broken = stream.getvalue().replace(b"{", b"(")
    with zipfile.ZipFile(tmp_path / "s.npz", "w") as archive:
        archive.writestr("document.npy", broken)
    with pytest.raises(ArtifactError, match=r"s\.npz is not a whole statistics file; write it again with"):
        trtq.read_statistics(tmp_path / "s.npz")


def test_a_checkpoint_with_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    import torch

    from trtq.models.checkpoint import load_weights

    module = torch.nn.Linear(2, 2)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for name in old.namelist():
            is_pickle = name.endswith("data.pkl")
            new.writestr(name, pickle.PROTO + b"\x02" + pickle.BINPERSID if is_pickle else old.read(name))
    with pytest.raises(ModelError, match=r"bad\.pt is not a PyTorch checkpoint: IndexError: pop from empty"):
        load_weights(module, tmp_path / "bad.pt")


def test_a_build_with_a_damaged_model_is_not_packaged(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    build = Path(_build(tmp_path).output)
    model = onnx.load(build / "model.int8.onnx")
    model.graph.initializer[0].data_type = 99
    onnx.save(model, build / "model.int8.onnx")
    _seal_again(build)
    with pytest.raises(ArtifactError, match=r"model\.int8\.onnx is not a whole model; build again: "):
        trtq.package(build, tmp_path / "repository")


def test_a_build_whose_model_is_none_is_not_run(tmp_path: Path, small_model: Callable[[Path], None]) -> None:
    small_model(tmp_path)
    build = Path(_build(tmp_path).output)
    (build / "model.int8.onnx").write_bytes(b"no model at all")
    _seal_again(build)
    with (
        pytest.raises(ArtifactError, match=r"model\.int8\.onnx is not a whole model; build again: "),
        trtq.load(build, backend="onnxruntime") as engine,
    ):
        engine.runner("x")


def _seal_again(build: Path) -> None:
    """Has the manifest of a build know its model as it is now."""
    document = json.loads((build / "manifest.json").read_bytes())
    document["outputs"]["model.int8.onnx"] = hashlib.sha256(
        (build / "model.int8.onnx").read_bytes()
    ).hexdigest()
    del document["sha256"]
    rest = json.dumps(document, indent=1).encode() + b"\n"
    own = hashlib.sha256(rest).hexdigest()
    (build / "manifest.json").write_bytes(rest.replace(b"{\n", f'{{\n "sha256": "{own}",\n'.encode(), 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda node: setattr(node.attribute[0], "ref_attr_name", "m"),
            r"its attribute 'mode' stands for the attribute 'm' of a function, and is in none; export the",
        ),
        (
            lambda node: setattr(node.attribute[0], "s", b"nea\xf2est"),
            r"its attribute 'mode' is not UTF-8 text: b'nea\\xf2est'; export the model again",
        ),
    ],
)
def test_an_attribute_without_a_value_is_refused(
    tmp_path: Path, change: Callable[[onnx.NodeProto], None], words: str
) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1,2] x, float[1] s) => (float[N,M] y) '
        '{ y = Pad <mode = "reflect"> (x, p) }'
    )
    model.graph.initializer.append(onnx.helper.make_tensor("p", onnx.TensorProto.INT64, [4], [0, 0, 0, 1]))
    change(model.graph.node[0])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=words):
        trtq.inspect(tmp_path / "m.onnx")


def test_a_model_of_an_opset_that_nobody_knows_is_refused(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    model = onnx.load(tmp_path / "m.onnx")
    model.opset_import[0].version = 2**31 - 1
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"is in opset 2147483647, and the newest that onnx .* knows is "):
        trtq.inspect(tmp_path / "m.onnx")


def _change_build(build: Path, name: str, change: Callable[[dict[str, object]], object]) -> None:
    """Changes a JSON of a build, and the digests that tell of it."""
    path, manifest = build / name, build / "manifest.json"
    document = json.loads(manifest.read_bytes())
    if path != manifest:
        found = json.loads(path.read_bytes())
        change(found)
        path.write_text(json.dumps(found))
        document["outputs"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        change(document)
    del document["sha256"]
    rest = json.dumps(document, indent=1).encode() + b"\n"
    own = hashlib.sha256(rest).hexdigest()
    manifest.write_bytes(rest.replace(b"{\n", f'{{\n "sha256": "{own}",\n'.encode(), 1))


def test_a_gate_that_is_no_number_is_left_out_of_the_page(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    build = Path(_build(tmp_path).output)
    accuracy = {"min_cosine": ["0.99"], "max_drop": 1.0}
    _change_build(build, "manifest.json", lambda found: found["settings"]["model"].update(accuracy=accuracy))  # type: ignore[index]
    assert b"The gate:" not in trtq.report(build)


def test_counts_that_no_data_has_are_refused(tmp_path: Path, small_model: Callable[[Path], None]) -> None:
    small_model(tmp_path)
    build = Path(_build(tmp_path).output)
    _change_build(build, "tensors.json", lambda found: found["tensors"][0].update(counts=[10**400]))  # type: ignore[index]
    with pytest.raises(ArtifactError, match=r"1000\d* is not a number of values"):
        trtq.report(build)


def test_a_name_in_a_manifest_that_no_system_takes_is_refused(
    tmp_path: Path, small_model: Callable[[Path], None]
) -> None:
    small_model(tmp_path)
    build = Path(_build(tmp_path).output)
    _change_build(build, "manifest.json", lambda found: found["outputs"].update({"y" * 300: "0" * 64}))  # type: ignore[attr-defined]
    with pytest.raises(ArtifactError, match=r"cannot read .*yyy: File name too long"):
        trtq.verify(build)


def test_words_of_onnx_runtime_that_are_no_text_are_an_error_of_ours() -> None:
    words = r"^ONNX Runtime cannot load the model: 'utf-8' codec can't decode"
    with pytest.raises(ModelError, match=words), session._explain("load"):
        b"\xe5".decode()


def test_an_exported_program_that_contradicts_itself_is_refused() -> None:
    class Program:
        def module(self) -> None:
            raise IndexError("list index out of range")

    with pytest.raises(
        ModelError, match=r"^the exported program makes no module: IndexError: list index .*export.save$"
    ):
        open_module(Program())


def test_a_nameless_last_output_needs_no_shape(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> g (float[1,2] x) => (float[1,2] y) { y = Dropout (x) }'
    )
    model.graph.node[0].output.append("")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    read, _ = read_runnable(tmp_path / "m.onnx")
    infer_shapes(read)
    assert read.graph.outputs[0].shape == (1, 2)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ("RandomNormalLike <scale = 0.0> (x)", "'scale' is 0, and random numbers need one above 0"),
        ("RandomNormal <shape = [2, 4], scale = -1.0> ()", "'scale' is -1, and random numbers need"),
        ("RandomUniformLike <low = 2.0> (x)", "'low' leaves no random numbers from 2 to 1"),
        ("RandomUniform <shape = [2, 4], high = -1.0> ()", "'high' leaves no random numbers from 0 to -1"),
    ],
)
def test_random_numbers_over_which_onnx_runtime_aborts_are_refused(
    tmp_path: Path, node: str, told: str
) -> None:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2,4] x) => (float[2,4] y) {{ y = {node} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=f"its attribute {told}"):
        read_runnable(tmp_path / "m.onnx")
