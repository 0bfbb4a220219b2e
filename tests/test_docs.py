"""Every command of the README and of docs/ is run, in a folder with the demo model, in the order of the page.

A command may end with another exit code than 0 where its line says so: `# exit 2`. One for the backend
tensorrt must end with 5 where TensorRT is not installed, as must one that exports from a library that is not;
what reads its file is then left out.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from cached_decoder import write_data, write_decoder
from click.testing import CliRunner
from kinds_of_models import save_kinds

import trtq
from trtq.calibrators import METHODS, list_choices
from trtq.calibrators.settings import read_spec
from trtq.cli import main
from trtq.models.demo import write_demo
from trtq.models.option import list_options
from trtq.models.preprocess import Preprocess
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    LayerSpec,
    OperatorSpec,
    QuantizationSpec,
)
from trtq.pipeline.build.keep import NO_KERNEL
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.graph import attention, packed, placement, worth

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY"))]
NOT_OURS = {"pip", "git", "apt-get", "docker", "make", "openssl"}
"""Looked at, not run: make's targets must exist, and the files that docker is given."""
NUM_SAMPLES = 128
OLD_SCRIPT = """
import tensorrt as trt

class Calibrator(trt.IInt8EntropyCalibrator2):
    def get_batch(self, names):
        return None
"""

NETS = """
import torch

def detector():
    return torch.nn.Conv2d(3, 8, 3)
"""


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yields the fenced blocks of a page."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_every_calibration_method_has_its_row_with_its_options() -> None:
    text = (ROOT / "docs" / "ranges.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w[\w-]*)`(?: \(default\))? \| (.*) \|$", text, re.MULTILINE))
    assert rows.keys() == list_choices().keys()
    options = {option.name for method in METHODS.values() for option in list_options(method).values()}
    assert options == {word for row in rows.values() for word in re.findall(r"`?(--[\w-]+)", row)}


def test_the_settings_of_the_pages_are_read_and_every_key_is_listed(tmp_path: Path) -> None:
    pages = {page.name: "".join(blocks(page, "toml")) for page in (PAGES[0], ROOT / "docs" / "settings.md")}
    for text in pages.values():
        (tmp_path / "model.toml").write_text(text)
        spec = read_spec(tmp_path / "model.toml")
    assert spec.preprocess == Preprocess()  # the last page says that these are the defaults
    assert (spec.accuracy, spec.evaluation.samples) == (AccuracySpec(min_speedup=1.05), 1000)
    sections = (CalibrationSpec, QuantizationSpec, EvaluationSpec, AccuracySpec, LayerSpec, Preprocess)
    keys = {field.name for section in (*sections, OperatorSpec) for field in fields(section)} - {"parameters"}
    keys |= {name for method in METHODS.values() for name in list_options(method)}
    assert {key for key in keys if not re.search(rf"\b{key}\b", pages["settings.md"])} == set()


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Yields the commands of a page's shell blocks with their comments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" #")
            if command.strip():
                yield command.strip(), comment


def write_other_formats(place: Path, s3: Any) -> None:
    """Writes the calibration data in tar shards and in Parquet, and to a bucket."""
    with np.load(place / "evaluation.npz") as data:
        images, labels = data["image"], data["labels"]
    pyarrow.parquet.write_table(
        pyarrow.table({"image": [image.tolist() for image in images], "labels": labels}),
        place / "rows.parquet",
    )
    (place / "shards").mkdir()
    for index, part in enumerate(np.split(images, 2)):
        with tarfile.open(place / "shards" / f"shard-{index:03}.tar", "w") as archive:
            for number, image in enumerate(part):
                content = io.BytesIO()
                np.save(content, image)
                member = tarfile.TarInfo(f"{number:04}.npy")
                member.size = content.tell()
                archive.addfile(member, io.BytesIO(content.getvalue()))
    s3.mkdir("bucket")
    s3.put(str(place / "calibration.npz"), "bucket/calibration.npz")
    s3.put(str(place / "shards"), "bucket/shards", recursive=True)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, keys: Callable[[str], Path], s3: Any) -> Path:
    """A folder with everything that the pages speak of."""
    place = tmp_path_factory.mktemp("stock")
    write_demo(place)
    for name in ("calibration.npz", "evaluation.npz"):  # a part of the data: many commands read it
        with np.load(place / name) as data:
            few = {key: data[key][:NUM_SAMPLES] for key in data.files}
        np.savez(place / name, **few)
    write_other_formats(place, s3)
    save_kinds(place)
    (place / "cached").mkdir()
    write_decoder(place / "cached" / "model.onnx")
    write_data(place / "cached" / "tokens.npz", 5)
    np.save(place / "cached" / "text.npy", np.arange(48).reshape(2, 24))
    _, farm = (block for block in blocks(ROOT / "docs" / "build-all.md", "toml") if "[[build]]" in block)
    (place / "farm.toml").write_text(farm)
    for name in ("private", "public"):
        shutil.copy(keys(name), place / f"{name}.pem")
    (place / "old_script.py").write_text(OLD_SCRIPT)
    (place / "batches.py").write_text(next(blocks(ROOT / "docs" / "migrating.md", "python")))
    model, ranges, cache = (str(place / name) for name in ("model.onnx", "ranges.json", "calibration.cache"))
    for arguments in (
        ("calibrate", model, "--calib-method", "entropy", "--repair", "none", "-o", ranges, "-q"),
        ("cache", "export", ranges, "--tensorrt", "8.6.1", "--model", model, "-o", cache),
        ("build", model, "--int8", "--calib-data", str(place / "calibration.npz"), "-q"),  # of most pages
    ):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    (place / "ranges.json").unlink()
    shutil.copy(place / "model.trtq" / "model.int8.onnx", place / "quantized.onnx")
    (place / "mypackage").mkdir()
    (place / "mypackage" / "nets.py").write_text(NETS)
    torch = importlib.import_module("torch")
    torch.save(torch.nn.Conv2d(3, 8, 3).state_dict(), place / "best.pt")
    return place


@pytest.fixture
def folder(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, current."""
    monkeypatch.chdir(shutil.copytree(stock, tmp_path / "current"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where nobody listens
    return Path.cwd()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_run(page: Path, folder: Path) -> None:
    missing: set[str] = set()
    for command, comment in commands(page):
        words = shlex.split(command)
        if words[0] in NOT_OURS:
            _looks_right(words)
            continue
        assert words[0] == "trtq", command
        if missing & set(words):
            continue
        arguments = words[1 : words.index(">")] if ">" in words else words[1:]
        result = CliRunner().invoke(main, arguments, prog_name="trtq")
        expected = _expected_exit(command, comment)
        assert result.exit_code == expected, f"{command}\n{result.output}"
        if expected == 5 and "-o" in words:
            missing.add(words[words.index("-o") + 1])


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


def _expected_exit(command: str, comment: str) -> int:
    if re.search(r"--backend tensorrt(\s|$)", command) and BACKENDS["tensorrt"].why_not():
        return 5
    if (library := re.search(r"trtq export (torchvision|timm|hf):", command)) and not find_spec(library[1]):
        return 5
    if "--workers ray" in command:  # of no cluster that is there
        return 5
    exit_code = re.search(r"exit (\d)", comment)
    return int(exit_code[1]) if exit_code else 0


def _looks_right(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for option, value in pairwise(words):
        if words[0] == "docker" and option in ("-f", "--file"):
            assert (ROOT / value).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_in_the_text_of_a_page_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for words in map(str.split, re.findall(r"`trtq ([^`]+)`", text)):
        command: click.Command | None = main
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            name = words.pop(0).split("\\|")[0]
            command = command.get_command(click.Context(command), name)
            assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts} if command else set()
        assert {word for word in words if word.startswith("-")} <= known | {"--help", "-h"}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_is_named_in_the_readme() -> None:
    readme = PAGES[0].read_text("utf-8")
    topics = [page for page in (ROOT / "docs").glob("*.md") if page.name not in ("index.md", "api.md")]
    assert len(topics) > 10
    assert [page.name for page in topics if f"docs/{page.name}" not in readme] == []


def test_every_page_of_the_design_is_named_in_its_index() -> None:
    folder = ROOT / "docs" / "design"
    named = re.findall(r"^\| \[\w+\]\((\w+\.md)\) \|", (folder / "index.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in folder.glob("*.md") if path.name != "index.md")


def test_every_rule_of_placement_has_its_row_and_what_force_overrules_is_named() -> None:
    text = (ROOT / "docs" / "placement.md").read_text("utf-8")
    rows = re.findall(r"^\| ([a-z -]+) \| (?!what)", text, re.MULTILINE)
    overruled = {*_rules_in(worth), *_rules_in(packed), NO_KERNEL.removesuffix(": ")}
    first = rows.index("indices")
    assert {*rows[first:]} == overruled
    assert rows[-1] == "no-kernel"
    unsaid = {"weighted-input", "residual-add", "softmax-input"}
    assert {*rows[:first]} == {*_rules_in(placement), *_rules_in(attention), *unsaid}
    assert "overrules the rules from *indices* to *no-kernel*" in text


def _rules_in(module: ModuleType) -> set[str]:
    """Returns the rules that the reasons in a module begin with."""
    nodes = ast.walk(ast.parse(inspect.getsource(module)))
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {found[1] for text in texts if (found := re.match(r"([a-z][a-z -]+): (?!.*\n)", text))}


def test_the_compute_capabilities_of_the_docs_are_those_of_the_builder() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'")
    names = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    *first, last = [f"{name[2:-1]}.{name[-1]}" for name in names]
    text = (ROOT / "docs" / "backends.md").read_text("utf-8")
    assert f"for compute capability {', '.join(first)} and {last} |" in text


def test_the_workflows_do_what_is_said_of_them() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    folder = ROOT / ".github" / "workflows"
    assert {*re.findall(r"[Tt]he workflow `(\w+)`", text)} == {path.stem for path in folder.iterdir()}
    test = (folder / "test.yml").read_text("utf-8")
    assert {"make test", "make docs", "make docker-cpu"} <= {*re.findall(r"run: (.*)", test)}
    said = text[text.index("CI tests Python") :].split(", and Python")[0]
    for tested in (said, test[test.index("matrix:") :].splitlines()[1]):
        assert re.findall(r"3\.\d+", tested) == ["3.10", "3.12", "3.13"]


def test_the_reference_has_every_public_name_once() -> None:
    names = re.findall(r"^::: trtq\.(\w+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(names) == trtq.__all__


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text("utf-8").splitlines()) <= 250
