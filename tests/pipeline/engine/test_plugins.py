"""Plugins of TensorRT: loaded before anything is parsed, in the process that builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from host_memory import HostMemory

from trtq.errors import ModelError, UsageError
from trtq.models.operators import PLUGINS, use_operators
from trtq.models.spec import OperatorSpec
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.tensorrt import TensorRt

Module = Callable[[str], str]
pytestmark = pytest.mark.usefixtures("no_libraries")
CREATORS = "void *getCreators(int *count) { *count = 0; return 0; }"
ADDS = """
#include <stdio.h>
__attribute__((constructor)) static void load(void) { fclose(fopen("LOADED", "w")); }
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Compiles a library in the current folder."""
    monkeypatch.chdir(tmp_path)

    def compile_library(code: str) -> Path:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler is here")
        (tmp_path / "plugin.c").write_text(code)
        path = tmp_path / f"plugin{len(list(tmp_path.glob('*.so')))}.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", path, "plugin.c"], check=True)
        return path

    return compile_library


@pytest.fixture
def plain(path_of: Callable[..., Path]) -> Path:
    return path_of("g (float[1,4] x) => (float[1,4] y) { y = Relu (x) }")


def test_tensorrt_registers_the_creators_that_a_library_gives(
    tensorrt_module: Module, one_gpu: None, library: Callable[[str], Path], plain: Path
) -> None:
    own, static = library(CREATORS), library(ADDS)
    use_operators(OperatorSpec(plugins=(str(own), str(static))))
    backend = TensorRt(tensorrt_module("10.16.1.11"), HostMemory)
    plan = backend.build(BuildRequest(plain)).plan
    assert plan is not None
    assert json.loads(plan)["plugins"] == ["TensorRT's own", f"creators of {own}"]
    assert Path("LOADED").exists()  # by the loader itself, as REGISTER_TENSORRT_PLUGIN wants it
    command = backend.command(BuildRequest(plain))
    assert f" --staticPlugins={own} --staticPlugins={static} " in command
    use_operators(OperatorSpec())
    assert "Plugins" not in backend.command(BuildRequest(plain))


def test_tensorrt_rtx_loads_them_before_it_parses(
    library: Callable[[str], Path], path_of: Callable[..., Path]
) -> None:
    if reason := TensorRtRtx().why_not():
        pytest.skip(reason)
    unknown = path_of("g (float[1,4] x) => (float[1,4] y) { [n] y = Mine (x) }")
    use_operators(OperatorSpec(plugins=(str(library(ADDS)),)))
    with pytest.raises(ModelError, match=r"TensorRT-RTX does not take this model: node 'n' .*Mine"):
        TensorRtRtx().build(BuildRequest(unknown))
    assert Path("LOADED").exists()


def test_what_is_no_library_is_refused(tmp_path: Path, plain: Path) -> None:
    missing = tmp_path / "no.so"
    with pytest.raises(UsageError, match=r"^there is no library .*no\.so; --plugins takes the path of a"):
        use_operators(OperatorSpec(plugins=(str(missing),)))
    missing.write_bytes(b"text")
    use_operators(OperatorSpec(plugins=(str(missing),)))
    assert os.environ[PLUGINS] == str(missing)
    if reason := TensorRtRtx().why_not():
        pytest.skip(reason)
    with pytest.raises(UsageError, match=r"^the plugins of .*no\.so cannot be loaded: .*no\.so: "):
        TensorRtRtx().build(BuildRequest(plain))
