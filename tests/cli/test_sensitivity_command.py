"""`trtq sensitivity` and `trtq build --auto` as a user runs them: exit code and whole output."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from command_line import lines_of, trtq

from trtq.cli.chart import Bar, draw_bars


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three layers, of which the one in the middle takes a channel 300 times as large as the others."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19]>
        net (float[N,3,8,8] x) => (float[N,4,8,8] y) {
          a = Conv <kernel_shape = [3,3], pads = [1,1,1,1]> (x, w1)
          s = Mul (a, scale)
          h = Conv <kernel_shape = [1,1]> (s, w2)
          y = Conv <kernel_shape = [1,1]> (h, w3)
        }""")
    scale = np.ones((1, 8, 1, 1), np.float32)
    scale[0, 0] = 300
    for name, shape in (("w1", (8, 3, 3, 3)), ("w2", (8, 8, 1, 1)), ("w3", (4, 8, 1, 1))):
        array = rng.standard_normal(shape).astype(np.float32) / (scale if name == "w2" else 1)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, "scale"))
    for node, name in zip(proto.graph.node, ("a/first", "spread", "b & c", "third"), strict=True):
        node.name = name
    onnx.save(proto, tmp_path / "net.onnx")
    x = rng.standard_normal((16, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, labels=np.zeros(16, np.int64))
    (tmp_path / "net.toml").write_text(
        '[calibration]\ndata = "data.npz"\nmethod = "minmax"\nbatch_size = 4\n[layers]\nforce = ["."]\n'
    )
    return tmp_path / "net.onnx"


@pytest.fixture
def plain(model: Path) -> Callable[[str], list[str]]:
    """Makes output comparable: the folder as DIR, fractions as #, no rules."""

    def make(text: str) -> list[str]:
        text = re.sub(r"-?\d+\.\d+%?", "#", text.replace(str(model.parent), "DIR"))
        return lines_of(text)

    return make


def test_the_worst_layer_stands_first(model: Path, plain: Callable[[str], list[str]]) -> None:
    result = trtq("sensitivity", model)
    assert result.exit_code == 0
    assert re.fullmatch(
        r"note: settings are read from .*\nnote: no channels are rescaled: .*\n", result.stderr
    )
    lines = plain(result.stdout)
    bar = "\N{FULL BLOCK}" * 20
    assert lines[:2] == ["layer type MACs alone dB cosine without dB", f"b & c Conv {bar} # # # #"]
    assert {line.split()[0] for line in lines[2:4]} == {"a/first", "third"}
    assert lines[4:] == [
        "all quantized: SQNR # dB, cosine #",
        "alone: only this layer quantized; without: all but this one",
        "on 16 samples of DIR/data.npz",
        "written to DIR/net.sensitivity.json",
    ]
    again = trtq("sensitivity", model)
    assert again.stdout == result.stdout
    assert plain(again.stderr)[1:] == [
        "note: DIR/net.sensitivity.json holds all 3 layers: nothing has changed"
    ]


def test_it_prints_one_document_as_json_and_nothing_when_quiet(model: Path) -> None:
    document = json.loads(trtq("sensitivity", model, "--json", "-q").stdout)
    assert (document["schema_version"], document["kind"], document["num_layers"]) == (1, "sensitivity", 3)
    assert [layer["name"] for layer in document["layers"]] == ["a/first", "b & c", "third"]
    assert json.loads((model.parent / "net.sensitivity.json").read_text()) == document
    assert trtq("sensitivity", model, "-q").stdout == ""


def test_the_chart_is_an_svg_with_a_row_for_each_layer(model: Path) -> None:
    result = trtq("sensitivity", model, "--metric", "cosine", "--chart", model.parent / "layers.svg")
    assert result.exit_code == 0
    root = ET.parse(model.parent / "layers.svg").getroot()
    texts = [item.text for item in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Sensitivity of net.onnx, 3 layers"
    assert texts[1] == "quantized alone: 1 - cosine, %"
    assert texts[3] == "b & c"
    widths = [
        float(str(item.get("width")))
        for item in root.iter("{http://www.w3.org/2000/svg}rect")
        if item.get("class") == "first"
    ][1:]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 3


def test_layers_are_ranked_by_a_metric_of_ones_own(model: Path, plain: Callable[[str], list[str]]) -> None:
    script = model.parent / "own.py"
    script.write_text("def near(outputs, labels):\n    return float(abs(outputs['y']).mean()) / 1000\n")
    arguments = ("--eval-data", model.parent / "labelled.npz", "--labels", "labels")
    result = trtq("sensitivity", model, *arguments, "--metric", f"{script}:near", "-v", "-q", "--json")
    document = json.loads(result.stdout)
    assert document["metric"] == f"{script}:near"
    assert document["float_score"] == pytest.approx(document["layers"][2]["alone"]["score"], rel=0.1)
    shown = plain(trtq("sensitivity", model, *arguments, "--metric", f"{script}:near").stdout)
    assert shown[0] == "layer type MACs alone dB cosine without dB near of own.py without"
    assert shown[-4].startswith("all quantized: SQNR # dB, cosine #, near of own.py # (float #)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metric", "accuracy"), "--metric accuracy needs --labels; without labels take sqnr or cosine"),
        (("--metric", "best"), "metric must be top-1, top-5 or script.py:function, got 'best'"),
        (("--chart", "layers.png"), "the chart is an SVG file, layers.png is not named .svg"),
        (("--skip", "."), "has no layer that is quantized; `trtq inspect --placement` shows why"),
    ],
)
def test_what_cannot_be_done_is_told(model: Path, arguments: tuple[str, ...], message: str) -> None:
    result = trtq("sensitivity", model, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--chart", "--output"])
def test_what_cannot_be_written_is_told_before_the_work(model: Path, option: str) -> None:
    missing = model.parent / "missing" / "layers.svg"
    result = trtq("sensitivity", model, option, missing)
    assert result.exit_code == 2
    assert f"cannot write {missing}: there is no folder {missing.parent}; make it" in result.stderr
    assert "Calibrating" not in result.stderr
    assert not (model.parent / "net.sensitivity.json").exists()


def test_missing_labels_are_told_before_the_work(model: Path) -> None:
    result = trtq("sensitivity", model, "--metric", "accuracy")
    assert result.exit_code == 2
    assert "Calibrating" not in result.stderr
    assert not (model.parent / "net.sensitivity.json").exists()


def test_a_metric_script_is_run_once(model: Path) -> None:
    script, marks = model.parent / "own.py", model.parent / "marks"
    script.write_text(
        f"open({str(marks)!r}, 'a').write('x')\ndef f(outputs, labels):\n    return 0.5\n", encoding="utf-8"
    )
    result = trtq("sensitivity", model, "--metric", f"{script}:f", "-q")
    assert result.exit_code == 0, result.output
    assert marks.read_text() == "x"


def test_a_long_name_is_cut_at_its_front_and_equal_bars_are_drawn() -> None:
    chart = draw_bars("t", ("a", "b"), [Bar("x" * 60 + "<end>", 0.0, 0.0, "0")]).decode()
    assert f">\N{HORIZONTAL ELLIPSIS}{'x' * 42}&lt;end&gt;</text>" in chart
    assert 'width="0.0"' in chart
    ET.fromstring(chart)


def test_a_failed_gate_offers_auto_which_mends_it(model: Path) -> None:
    arguments = ("build", model, "--int8", "--backend", "onnxruntime", "--high-precision", "fp16")
    failed = trtq(*arguments)
    assert failed.exit_code == 3
    assert failed.stderr.endswith(" --auto  # keeps layers in float until the gate passes\n")
    result = trtq(*arguments, "--auto")
    assert result.exit_code == 0
    assert "--auto: the gate passes: 1 of 3 layers are kept out of INT8, 79.5% of the MACs" in result.stdout
    assert r"  to reproduce: --skip '^b\ \&\ c$'" in result.stdout
    reproduced = trtq(*arguments, "--skip", r"^b\ \&\ c$")
    assert reproduced.exit_code == 0


def test_a_build_folder_has_its_own_settings(model: Path) -> None:
    assert trtq("build", model, "--int8", "--backend", "onnxruntime", "-q").exit_code == 3
    folder = model.with_suffix(".trtq")
    result = trtq("sensitivity", folder)
    assert result.exit_code == 0, result.output
    assert f"ranges (minmax()) and repairs are those of {folder}" in result.stderr
    assert result.stdout.endswith(f"written to {model.with_suffix('.sensitivity.json')}\n")
    refused = trtq("sensitivity", folder, "--calib-method", "mse")
    assert refused.exit_code == 2
    assert refused.stderr == (
        f"error: --calib-method has no effect with the build folder {folder}: its own layers and "
        "ranges are measured; give the model instead\n"
    )
