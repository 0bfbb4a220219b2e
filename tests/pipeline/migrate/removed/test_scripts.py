"""`check_scripts`: one script, a folder of them, and what is not read."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from trtq.errors import UsageError
from trtq.pipeline.migrate.removed.scripts import ScriptFinding, check_scripts

_SAMPLE = '''\
#!/usr/bin/env python3
"""Builds an engine from ONNX, as one did for TensorRT 8."""

import argparse
import os

import numpy as np
import pycuda.autoinit
import pycuda.driver as cuda
import tensorrt as trt

LOGGER = trt.Logger(trt.Logger.WARNING)
EXPLICIT_BATCH = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)


class ImageCalibrator(trt.IInt8EntropyCalibrator2):
    """Hands batches of images to TensorRT."""

    def __init__(self, batches, cache_file):
        trt.IInt8EntropyCalibrator2.__init__(self)
        self.batches = iter(batches)
        self.cache_file = cache_file
        self.memory = cuda.mem_alloc(batches.num_bytes)

    def get_batch_size(self):
        return 8

    def get_batch(self, names):
        try:
            batch = next(self.batches)
        except StopIteration:
            return None
        cuda.memcpy_htod(self.memory, np.ascontiguousarray(batch))
        return [int(self.memory)]

    def read_calibration_cache(self):
        if os.path.exists(self.cache_file):
            with open(self.cache_file, "rb") as file:
                return file.read()

    def write_calibration_cache(self, cache):
        with open(self.cache_file, "wb") as file:
            file.write(cache)


class EngineBuilder:
    def __init__(self, workspace):
        self.builder = trt.Builder(LOGGER)
        self.config = self.builder.create_builder_config()
        self.config.max_workspace_size = workspace * (1 << 30)
        self.precision = None

    def create_engine(self, onnx_path, engine_path, precision, calibrator):
        self.precision = precision
        network = self.builder.create_network(EXPLICIT_BATCH)
        parser = trt.OnnxParser(network, LOGGER)
        with open(onnx_path, "rb") as file:
            if not parser.parse(file.read()):
                raise SystemExit(parser.get_error(0))
        if precision in ("fp16", "int8") and self.builder.platform_has_fast_fp16:
            self.config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            self.config.set_flag(trt.BuilderFlag.INT8)
            self.config.int8_calibrator = calibrator
            self.config.set_calibration_profile(self.profile(network))
            for index in range(network.num_layers):
                layer = network.get_layer(index)
                if layer.type == trt.LayerType.SOFTMAX:
                    layer.precision = trt.float32
                    layer.set_output_type(0, trt.float32)
        with self.builder.build_engine(network, self.config) as engine, open(engine_path, "wb") as file:
            file.write(engine.serialize())

    def profile(self, network):
        profile = self.builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, (1, 3, 224, 224), (8, 3, 224, 224), (8, 3, 224, 224))
        return profile


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--precision", choices=["fp32", "fp16", "int8"])
    args = options.parse_args()
    EngineBuilder(4).create_engine("m.onnx", "m.plan", args.precision, None)
    os.system(f"trtexec --loadEngine=m.plan --{args.precision} --buildOnly")
'''


def _write(path: Path, text: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def _brief(findings: tuple[ScriptFinding, ...], root: Path) -> list[tuple[str, int, str, str]]:
    return [(str(item.path.relative_to(root)), item.line, item.kind, item.name) for item in findings]


def test_an_old_sample_is_read_from_top_to_bottom(tmp_path: Path) -> None:
    script = _write(tmp_path / "build_engine.py", _SAMPLE)
    findings = check_scripts(script)
    assert [(item.line, item.name, item.since) for item in findings] == [
        (13, "NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "11.0"),
        (16, "IInt8EntropyCalibrator2", "11.0"),
        (20, "IInt8EntropyCalibrator2", "11.0"),
        (50, "IBuilderConfig.max_workspace_size", "10.0"),
        (60, "Builder.platform_has_fast_fp16", "11.0"),
        (61, "BuilderFlag.FP16", "11.0"),
        (63, "BuilderFlag.INT8", "11.0"),
        (64, "IBuilderConfig.int8_calibrator", "11.0"),
        (65, "IBuilderConfig.set_calibration_profile", "11.0"),
        (69, "ILayer.precision", "11.0"),
        (70, "ILayer.set_output_type", "11.0"),
        (71, "Builder.build_engine", "10.0"),
        (85, "trtexec --buildOnly", "10.0"),
    ]
    assert all(item.kind == "removed" and not item.guarded for item in findings)
    assert findings[6] == ScriptFinding(
        script,
        63,
        50,
        "self.config.set_flag(trt.BuilderFlag.INT8)",
        "BuilderFlag.INT8",
        "11.0",
        "put Q/DQ nodes into the model: `trtq build model.onnx --int8 --calib-data DATA` does, and builds it",
    )


def test_the_advice_names_the_way_out() -> None:
    from trtq.pipeline.migrate.removed.names import REMOVED

    assert "trtq migrate model.onnx calibration.cache" in REMOVED["IInt8EntropyCalibrator2"].advice
    assert "model.fp16.onnx" in REMOVED["BuilderFlag.FP16"].advice
    assert "create_network(0)" in REMOVED["NetworkDefinitionCreationFlag.EXPLICIT_BATCH"].advice


def test_a_folder_is_read_in_order_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    use = "import tensorrt as trt\ntrt.BuilderFlag.INT8\n"
    for name in ("b.py", "a/z.py", "a.py", ".github/workflows/ci.py", "tool"):
        _write(tmp_path / name, ("#!/usr/bin/python3\n" if name == "tool" else "") + use)
    _write(tmp_path / "clean.py", "import tensorrt\n")
    _write(tmp_path / "other.py", "this is not Python, and nothing of ours\n")
    _write(tmp_path / "old.py", "import tensorrt\nprint 'Python 2'\n")
    _write(tmp_path / "latin.py", b"import tensorrt\n# \xe9\n")
    _write(tmp_path / "coded.py", b"# -*- coding: latin-1 -*-\nimport tensorrt as t\n'\xe9', t.UffParser\n")
    _write(tmp_path / "marked.py", b"\xef\xbb\xbf" + use.encode().replace(b"\n", b"\r\n"))
    _write(tmp_path / "binary.py", b"tensorrt\0")
    _write(tmp_path / "huge.py", b"# tensorrt\n" * 200_000)
    _write(tmp_path / "deep.py", "import tensorrt\nx = " + "(" * 5000 + ")" * 5000)
    _write(tmp_path / "notes.ipynb", "{}")
    _write(tmp_path / "Makefile", "engine:\n\ttrtexec --int8\n")
    _write(tmp_path / "Dockerfile.gpu", "RUN trtexec --fp16\n")
    _write(tmp_path / "run.sh", b"trtexec --best # \xff\n")
    _write(tmp_path / "ci.yml", "- trtexec\n- --calib=c\n")
    _write(tmp_path / "build", "#!/usr/bin/env bash\ntrtexec --bf16\n")
    for name in ("README.md", "data", "a.txt", "__pycache__/x.py", "trtexec.log"):
        _write(tmp_path / name, "trtexec --int8\n" + use)
    for name in (
        ".git/x.py",
        "node_modules/x.py",
        "site-packages/x.py",
        "mine/pyvenv.cfg",
        "x.egg-info/x.py",
    ):
        _write(tmp_path / name, use)
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "link.py").symlink_to("a.py")
    os.mkfifo(tmp_path / "pipe.py")

    findings = check_scripts(tmp_path)

    int8 = "BuilderFlag.INT8"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    syntax = f"it is not Python {version}: "
    brief = [
        (path, line, kind, name.removeprefix(syntax)) for path, line, kind, name in _brief(findings, tmp_path)
    ]
    deep = next(item for item in brief if item[0] == "deep.py")
    assert deep[2] == "unreadable"
    assert [item for item in brief if item not in (deep,) and item[0] != "old.py"] == [
        (".git", 0, "skipped", "a hidden folder"),
        (".github/workflows/ci.py", 2, "removed", int8),
        ("Dockerfile.gpu", 1, "removed", "trtexec --fp16"),
        ("Makefile", 2, "removed", "trtexec --int8"),
        ("a/z.py", 2, "removed", int8),
        ("a.py", 2, "removed", int8),
        ("again", 0, "skipped", "a link to a folder"),
        ("b.py", 2, "removed", int8),
        ("binary.py", 0, "skipped", "it is a binary file"),
        ("build", 2, "removed", "trtexec --bf16"),
        ("ci.yml", 2, "removed", "trtexec --calib"),
        ("coded.py", 3, "removed", "UffParser"),
        ("huge.py", 0, "skipped", "it has 2200000 bytes, and scripts of up to 2097152 are read"),
        ("latin.py", 0, "unreadable", "its text is not utf-8"),
        ("link.py", 2, "removed", int8),
        ("loop.py", 0, "skipped", "a link that leads nowhere"),
        ("marked.py", 2, "removed", int8),
        ("mine", 0, "skipped", "a virtual environment"),
        ("node_modules", 0, "skipped", "installed or generated files"),
        ("notes.ipynb", 0, "skipped", "a notebook"),
        ("pipe.py", 0, "skipped", "it is not a regular file"),
        ("run.sh", 1, "removed", "trtexec --best"),
        ("site-packages", 0, "skipped", "installed or generated files"),
        ("tool", 3, "removed", int8),
        ("x.egg-info", 0, "skipped", "installed or generated files"),
    ]
    (old,) = (item for item in findings if item.path.name == "old.py")
    assert (old.kind, old.line, old.column, old.advice) == ("unreadable", 2, 1, "it was not checked")
    assert findings == check_scripts(tmp_path)


def test_places_are_counted_in_characters_and_long_lines_are_cut(tmp_path: Path) -> None:
    line = "'é\u2028'; trt.UffParser()" + " # and so on" * 20
    script = _write(tmp_path / "s.py", f"import tensorrt as trt\n\x0c\n    \nif 1:\n    {line}\n")
    (finding,) = check_scripts(script)
    assert (finding.line, finding.column) == (5, 15)
    assert finding.code == line[:117] + "..."


def test_guarded_uses_say_so(tmp_path: Path) -> None:
    script = _write(
        tmp_path / "s.py",
        "import tensorrt as trt\nif hasattr(trt.BuilderFlag, 'INT8'):\n    f = trt.BuilderFlag.INT8\n",
    )
    assert [finding.guarded for finding in check_scripts(script)] == [True]


def test_a_script_without_findings_has_none(tmp_path: Path) -> None:
    assert check_scripts(_write(tmp_path / "s.py", "print('hello')\n")) == ()
    assert check_scripts(tmp_path) == ()
    with pytest.raises(
        UsageError, match=r"cannot check .*empty\.sh: it is empty: expected a script of Python"
    ):
        check_scripts(_write(tmp_path / "empty.sh"))
    (tmp_path / "none").mkdir()
    with pytest.raises(
        UsageError, match=r"cannot check .*none: it holds nothing to check: expected a script"
    ):
        check_scripts(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.py", b"x = 1\nx ===\n", r"cannot check .*s\.py, line 2: it is not Python 3\.\d+: invalid syntax"),
        ("s.py", b"x = 1\0", r"cannot check .*s\.py(, line \d)?: it is a binary file"),
        ("s.py", b"#" * 3_000_000, r"s\.py: it has 3000000 bytes, and scripts of up to 2097152 are read"),
        ("s.py", b"# coding: ascii\n'\xe9'\n", r"s\.py(, line \d)?: its text is not ascii"),
        ("s.py", b"x = " + b"-" * 200_000 + b"1", r"s\.py.*: (its expressions are nested|it is not Python)"),
        ("notes.txt", b"trtexec", r"notes\.txt: expected a script of Python or a shell, a Makefile"),
        ("notes", b"trtexec", r"notes: expected a script of Python"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_checked_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_scripts(_write(tmp_path / name, content))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file or folder .*nothing\.py"):
        check_scripts(tmp_path / "nothing.py")
    with pytest.raises(UsageError, match=r"there is no file or folder|cannot check .*: File name too long"):
        check_scripts(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe.sh")
    with pytest.raises(UsageError, match=r"pipe\.sh: it is not a regular file"):
        check_scripts(tmp_path / "pipe.sh")


def test_what_the_system_does_not_let_read_is_refused_alone_and_said_in_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = _write(tmp_path / "s.py", "import tensorrt\n")
    tool = _write(tmp_path / "tool", "#!/bin/sh\n")
    _write(tmp_path / "closed" / "x.py")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    scandir = os.scandir
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "scandir", lambda path: refuse() if path.name == "closed" else scandir(path))
    for path in (script, tool):
        with pytest.raises(UsageError, match=rf"cannot check .*{path.name}: Permission denied"):
            check_scripts(path)
    assert _brief(check_scripts(tmp_path), tmp_path) == [
        ("closed", 0, "unreadable", "Permission denied"),
        ("s.py", 0, "unreadable", "Permission denied"),
        ("tool", 0, "unreadable", "Permission denied"),
    ]


@pytest.mark.slow
def test_every_file_of_this_repository_can_be_read() -> None:
    root = Path(__file__).parents[4]
    found = [
        finding
        for part in ("pipeline/engine", "pipeline/migrate", "tests/pipeline/migrate")
        for finding in check_scripts(root / part)
    ]
    assert [finding for finding in found if finding.kind == "unreadable"] == []
