"""Models with operators of a library of the user's own, here those of onnxruntime-extensions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq

from trtq.errors import ModelError, UsageError
from trtq.models.operators import use_operators
from trtq.models.session import open_session
from trtq.models.spec import OperatorSpec
from trtq.pipeline.graph.load import load

extensions = pytest.importorskip(
    "onnxruntime_extensions", reason="onnxruntime-extensions, a library of operators, is not installed"
)
LIBRARY = str(extensions.get_library_path())
TEXT = """
    <ir_version: 9, opset_import: ["" : 19, "ai.onnx.contrib" : 1]>
    g (float[N,64] x) => (float[N,64] y) {
      [first] a = MatMul (x, v)
      [parts] p, n = ai.onnx.contrib.NegPos (a)
      [sum] s = Add (p, n)
      [second] y = MatMul (s, w)
    }"""
pytestmark = pytest.mark.usefixtures("no_libraries")
BUILD = (
    "build",
    "net.onnx",
    "--int8",
    "--calib-data",
    "x.npz",
    "--repair",
    "none",
    "--calib-method",
    "minmax",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model that has such a node, and data."""
    monkeypatch.chdir(tmp_path)
    model, rng = onnx.parser.parse_model(TEXT), np.random.default_rng(0)
    for name in "vw":
        weight = rng.standard_normal((64, 64)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, "net.onnx")
    np.savez("x.npz", x=rng.standard_normal((16, 64)).astype(np.float32))
    return tmp_path


def test_a_build_for_onnx_runtime_calibrates_compares_and_runs_with_them(folder: Path) -> None:
    operators = ("--ort-custom-ops", LIBRARY)
    result = trtq(*BUILD, *operators, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert "PASS" in result.stdout
    nodes = {node.name: node for node in onnx.load("net.trtq/model.int8.onnx").graph.node}
    makers = {name: node for node in nodes.values() for name in node.output}
    assert nodes["parts"].domain == "ai.onnx.contrib"
    assert all(makers[name].op_type == "DequantizeLinear" for name in nodes["second"].input)
    readers = [node.op_type for node in nodes.values() if {*node.input} & {*nodes["parts"].output}]
    assert readers == ["Add"]  # nothing stands between the operator and what reads it
    use_operators(OperatorSpec())
    assert trtq("run", "net.trtq", "--data", "x.npz", "-o", "y.npz", *operators).exit_code == 0
    assert trtq("compare", "net.onnx", "net.trtq", "--data", "x.npz", *operators).exit_code == 0
    settings = json.loads(Path("net.trtq/manifest.json").read_bytes())["settings"]["model"]["operators"]
    assert settings["ort_custom_ops"] == [LIBRARY]
    without = trtq("run", "net.trtq", "--data", "x.npz")
    assert (without.exit_code, "--ort-custom-ops names a library that has it" in without.stderr) == (2, True)


def test_a_language_model_writes_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 19, "ai.onnx.contrib" : 1]>
        g (int64[N,S] input_ids) => (float[N,S,8] logits) {
            a = Cast <to = 1> (input_ids) p, n = ai.onnx.contrib.NegPos (a) s = Add (p, n)
            places = Cast <to = 7> (s) logits = Gather (table, places) }""")
    table = np.roll(np.eye(8, dtype=np.float32), 1, axis=1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(model, "m.onnx")
    Path("p.txt").write_text("1 2")
    Path("named.toml").write_text(f'[operators]\nort_custom_ops = ["{LIBRARY}"]\n')
    command = ("compare", "m.onnx", "m.onnx", "--generate", "3", "--prompt-ids", "p.txt")
    for named in (("--ort-custom-ops", LIBRARY), ("--spec", "named.toml")):
        use_operators(OperatorSpec())
        result = trtq(*command, *named)
        assert "m.onnx again  3 4 5" in result.stdout, result.output
    assert trtq(*command).exit_code == 2


def test_where_only_one_of_the_two_has_an_operator_the_other_option_is_named(folder: Path) -> None:
    result = trtq(*BUILD, "--backend", "onnxruntime")
    assert (
        "TensorRT has it only as a plugin: --plugins names its library, and --ort-custom-ops" in result.stderr
    )
    shutil.copy(LIBRARY, "plugin.so")
    result = trtq(*BUILD, "--plugins", "plugin.so", "--backend", "onnxruntime")
    assert result.exit_code == 2
    assert "error: node 'parts' is ai.onnx.contrib::NegPos: TensorRT has its plugin by" in result.stderr
    assert "compare; name a library that has it for ONNX Runtime with --ort-custom-ops" in result.stderr
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    result = trtq(*BUILD, "--ort-custom-ops", LIBRARY, "--backend", "tensorrt-rtx")
    assert result.exit_code == 2
    assert (
        "but TensorRT does not know it; name the library of its plugin with --plugins, or use"
        in result.stderr
    )


def test_settings_beside_a_model_load_no_library_until_they_are_trusted(folder: Path) -> None:
    shutil.copy(LIBRARY, "ops.so")
    Path("net.toml").write_text('[operators]\nort_custom_ops = ["ops.so"]\n')
    quick = (*BUILD, "--backend", "onnxruntime", "-q")
    result = trtq(*quick)
    assert (result.exit_code, "as [operators] ort_custom_ops" in result.stderr) == (2, True)
    assert trtq(*quick, "--trust").exit_code == 0
    assert trtq(*quick, "--ort-custom-ops", LIBRARY).exit_code == 0


def test_what_is_no_library_of_operators_is_told(folder: Path) -> None:
    Path("no.so").write_bytes(b"text")
    use_operators(OperatorSpec(ort_custom_ops=("no.so",)))
    with pytest.raises(UsageError, match=r"^ONNX Runtime cannot load the custom operators of .*no\.so: "):
        open_session(Path("net.onnx"), optimize=False)
    use_operators(OperatorSpec())
    with pytest.raises(ModelError, match=r"--ort-custom-ops names a library that has it$"):
        open_session(Path("net.onnx"), optimize=False)
    with pytest.raises(
        ModelError, match=r"^node 'parts' is ai\.onnx\.contrib::NegPos, which is not a standard"
    ):
        load(Path("net.onnx"), min_opset=19)
