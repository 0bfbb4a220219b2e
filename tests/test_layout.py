"""The house rules that a tool can check: who may import whom, where things lie, what a wheel holds."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Set
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest

import trtq
from trtq.cli import main

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "trtq"
LINKS = ("calibrators", "models", "pipeline")
GROUND = {
    f"trtq.{name}"
    for name in (
        "cluster",
        "errors",
        "files",
        "json",
        "kept",
        "lazy",
        "locks",
        "numbers",
        "sums",
        "progress",
        "records",
        "temporary",
        "workers",
    )
}
ROOMS = ("models", "calibrators", "pipeline", "cli")
"""Each may import from itself, from those before it, and from the ground."""
STAGES = ("formats", "graph", "rewrite", "engine", "judge", "deliver")
"""The folders of the pipeline in the order of the work; each may import from itself and those before it."""
COMMANDS = {
    "bench", "build", "build_all", "cache", "calibrate", "compare", "doctor", "export", "init", "inspect",
    "lint", "load", "migrate", "package", "plan", "quantize", "report", "run", "sensitivity", "sign",
    "verify",
}  # fmt: skip
"""What lies in the pipeline beside the stages: one file or folder a command, and `load`, which has none."""
ELSEWHERE = {
    "demo": "models/demo.py",
    "merge-statistics": "calibrators/statistics_file.py",
    "completion": "src/trtq/cli/completion.py",
}
"""Commands that need nothing of the pipeline."""
UNNAMED = {"build_all", "cache", "plan"}
"""Commands whose functions have other names, or which have none."""
OPTIONAL = (
    "tensorrt",
    "tensorrt_rtx",
    "pycuda",
    "onnxruntime",
    "polygraphy",
    "torch",
    "PIL",
    "av",
    "fsspec",
    "pyarrow",
    "sklearn",
    "cv2",
    "cryptography",
    "mlflow",
)


@cache
def modules() -> dict[str, Path]:
    """Returns the files of the package by their dotted names, read through the links."""
    found = {}
    for folder in (PACKAGE, *(PACKAGE / link for link in LINKS)):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path) -> Iterator[str]:
    """Yields the modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "trtq")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "trtq":
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in modules() else str(node.module)


def why_not(importer: str, imported: str) -> str | None:
    """Returns the rule that an import breaks; None if it may stand."""
    if imported in GROUND:
        return None
    if importer in GROUND or imported == "trtq":
        return f"{importer} imports {imported}: the ground imports nothing above it, nobody the front door"
    if importer in ("trtq", "trtq.__main__"):
        return None
    ours, theirs = importer.split(".")[1], imported.split(".")[1]
    if ROOMS.index(theirs) > ROOMS.index(ours):
        return f"{importer} imports {imported}: imports go cli -> pipeline -> calibrators -> models"
    if ours == theirs == "pipeline" and (stage := importer.split(".")[2:3]) and stage[0] in STAGES:
        other = imported.split(".")[2]
        if other not in STAGES:
            return f"{importer} imports {imported}: the stages do not know the job"
        if STAGES.index(other) > STAGES.index(stage[0]):
            return f"{importer} imports {imported}: a stage uses none that comes after it"
    return None


def test_imports_go_one_way() -> None:
    edges = [(name, imported) for name, path in modules().items() for imported in imports_of(path)]
    assert len(edges) > 100
    assert [reason for edge in edges if (reason := why_not(*edge))] == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("trtq.models.spec", "trtq.calibrators.ranges"),
        ("trtq.calibrators.observe", "trtq.pipeline.graph.load"),
        ("trtq.pipeline.build", "trtq.cli.console"),
        ("trtq.pipeline.graph.load", "trtq.pipeline.build"),
        ("trtq.pipeline.deliver.report", "trtq.pipeline.build.job"),
        ("trtq.pipeline.rewrite.qdq", "trtq.pipeline.engine.rtx"),
        ("trtq.pipeline.engine.rtx", "trtq.pipeline.judge.gate"),
        ("trtq.errors", "trtq.models.spec"),
        ("trtq.pipeline.build", "trtq"),
    ],
)
def test_a_back_edge_is_seen(importer: str, imported: str) -> None:
    assert why_not(importer, imported)


def test_the_rules_are_told_as_they_are_held() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ground = re.search(r"The ground is (.*?)\.", text)
    assert ground
    assert {f"trtq.{name}" for name in re.findall(r"`(\w+)`", ground[1])} == GROUND
    assert f"`{' -> '.join((*reversed(ROOMS), 'ground'))}`" in text
    house = text[text.index("the stages, in the order of work:") : text.index("\ncalibrators/")]
    assert tuple(re.findall(r"^  (\w+)/ ", house, re.MULTILINE)) == STAGES


def parents_of(name: str) -> set[str]:
    """Returns the packages that Python imports before a module, from the outermost."""
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


def begins(imports: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """Returns which modules may begin while one of them is being imported: what it imports, and its packages.

    A module's own packages begin before it. So if a module needs one that has begun and not ended, then there
    is a circle here; and if there is none, any module can be the first that is imported.
    """
    return {
        name: set[str]().union(*({other} | (parents_of(other) - parents_of(name)) for other in others))
        - {name}
        for name, others in imports.items()
    }


def test_no_modules_import_each_other_in_a_circle_whichever_comes_first() -> None:
    imports = {name: set(imports_of(path)) - {name} for name, path in modules().items() if name != "trtq"}
    graph = {name: others - {"trtq"} for name, others in begins(imports).items()}
    assert sum(map(len, graph.values())) > 1000
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    "imports",
    [
        {"a": {"b"}, "b": {"a"}},
        {"p": {"p.c"}, "p.c": {"p"}},  # a name of a package that is not there yet
        {"y": {"p.c"}, "p": {"x"}, "x": {"y"}},  # only if y is imported first: p begins before p.c
    ],
)
def test_a_circle_of_imports_is_seen(imports: dict[str, set[str]]) -> None:
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(begins(imports)).prepare()


def test_a_package_may_import_what_lies_in_it() -> None:
    graphlib.TopologicalSorter(begins({"p": {"p.c", "p.d"}, "p.c": {"p.d"}})).prepare()


@pytest.mark.parametrize("name", LINKS)
def test_the_links_are_relative_and_resolve(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", name)
    assert link.resolve() == ROOT / name
    assert (link / "__init__.py").is_file()


def test_the_pipeline_holds_the_commands_and_the_stages() -> None:
    found = {path.stem for path in (PACKAGE / "pipeline").iterdir() if path.name[0] != "_"}
    assert found == COMMANDS | set(STAGES)


def test_every_command_has_its_files() -> None:
    commands = main.list_commands(click.Context(main))
    files = {name: (ROOT / "src/trtq/cli" / f"{name.replace('-', '_')}.py").is_file() for name in commands}
    assert all(files.values()), files
    rooms = {name.replace("-", "_") for name in commands if name not in ELSEWHERE}
    assert rooms == COMMANDS - {"load"}
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())


def test_a_command_is_a_public_function_of_its_name() -> None:
    assert COMMANDS - {*trtq.__all__} == UNNAMED


def test_only_what_shows_or_replaces_a_folder_takes_a_manifest_unchecked() -> None:
    readers = {
        name for name, path in modules().items() if "read_manifest" in path.read_text(encoding="utf-8")
    }
    assert readers == {
        "trtq.cli.tables",
        "trtq.pipeline.inspect",
        "trtq.pipeline.deliver.folder",
        "trtq.pipeline.deliver.manifest",
    }


def test_no_two_classes_share_a_name() -> None:
    names = Counter(
        node.name
        for path in modules().values()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length >= 400} == {}


def test_no_file_is_called_after_nothing_in_particular() -> None:
    vague = re.compile(r"(^|_)(utils?|helpers?|base|common|misc|manager)($|_)")
    assert [name for name in modules() if vague.search(name.rpartition(".")[2])] == []


def test_no_folder_of_tests_is_left_out(pytestconfig: pytest.Config) -> None:
    """As pytest leaves out folders called "build", "dist" and more, unless it is told what to leave out."""
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    names = {name for folder in folders for name in folder.relative_to(ROOT).parts}
    patterns = pytestconfig.getini("norecursedirs")
    assert [name for name in sorted(names) for pattern in patterns if fnmatch(name, pattern)] == []


def test_no_helper_of_tests_is_written_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                body = node.body[bool(ast.get_docstring(node)) :]
                if len(body) > 1:
                    places["\n".join(map(ast.unparse, body))].append(f"{path.name}: {node.name}")
    assert len(places) > 1000
    assert [twice for twice in places.values() if len(twice) > 1] == []


def test_no_class_is_a_manager() -> None:
    names = {
        node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert len(names) > 50
    assert [name for name in names if re.search("Manager|Helper|Util", name)] == []


_IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None  # as if it were not installed
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def test_every_module_can_be_imported_without_the_optional_libraries() -> None:
    command = [sys.executable, "-c", _IMPORT_ALL, ",".join(OPTIONAL), *modules()]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def build_wheel(folder: Path, **environment: str) -> Path:
    """Returns a wheel of the checkout, built in a copy of it."""
    copy = folder / "copy"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in ("src", *LINKS):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    if _setuptools() >= 77:  # what pyproject.toml asks for; an older one must not be used
        command.append("--no-build-isolation")
    process = subprocess.run(
        [*command, str(copy)], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert process.returncode == 0, process.stderr
    return next(folder.glob("trtq-*.whl"))


def _setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def names_in(path: Path) -> set[str]:
    """Returns the files of a wheel."""
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def test_a_wheel_holds_every_room(tmp_path: Path) -> None:
    names = names_in(path := build_wheel(tmp_path))
    code = {str(path.relative_to(PACKAGE.parent)) for path in modules().values()}
    assert code == {name for name in names if name.endswith(".py")}
    assert {
        "trtq/pipeline/build/__init__.py",
        "trtq/models/assets/digits.onnx",
        "trtq/models/assets/digits.npz",
    } <= names
    page = {"page.html.jinja", "tensors.html.jinja", "page.css", "page.js", "graph.js"}
    page |= {path.name for path in (PACKAGE / "pipeline/deliver/html").glob("*.min.js")}
    assert {f"trtq/pipeline/deliver/html/{name}" for name in page} <= names
    assert "trtq/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    sources = (*(PACKAGE / "calibrators").glob("*.c"), PACKAGE / "calibrators/values.h")
    assert {f"trtq/calibrators/{path.name}" for path in sources} <= names
    if shutil.which("cc") or shutil.which("gcc"):
        assert "trtq/calibrators/kernel_c.so" in names
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert path.name == f"trtq-{importlib.metadata.version('trtq')}-py3-none-{platform}.whl"


def test_a_pure_wheel_has_no_kernel_and_fits_every_platform(tmp_path: Path) -> None:
    path = build_wheel(tmp_path, TRTQ_PURE="1")
    assert path.name.endswith("-py3-none-any.whl")
    assert [name for name in names_in(path) if name.endswith(".so")] == []
