"""What runs where there is no fcntl and no resource, and where files have the rules of Windows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtq.cli

_BUILD = """
import sys
import as_on_windows
as_on_windows.hide()
import numpy as np
import trtq
options = {"backend": "onnxruntime", "effort": "quick", "int8": True, "min_cosine": -1}
for method in ("minmax", "mse"):  # the second replaces the folder of the first
    folder = trtq.build(sys.argv[1], sys.argv[2], calib_method=method, output=sys.argv[3], **options).output
trtq.package(folder, "models", trtq.PackageSpec(name="net", ignore_gate=True))
print(trtq.load(folder).run(np.ones((3, 16), np.float32))["y"].shape, trtq.verify(folder).is_intact)
"""


@pytest.mark.slow
def test_a_model_is_built_replaced_run_and_packaged(
    path_of: Callable[..., Path], torchless: str, tmp_path: Path
) -> None:
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    model = path_of("g (float[N,16] x) => (float[N,16] y) { y = MatMul (x, w) }", w=weight)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(16, 16)).astype(np.float32))
    process = subprocess.run(
        [sys.executable, "-c", _BUILD, model, "data.npz", "out.trtq"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{Path(__file__).parent / 'shared'}{os.pathsep}{torchless}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("(3, 16)")
    assert (tmp_path / "models/net/1/model.onnx").is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_code_page_without_bars_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", page)
    with pytest.raises(SystemExit):
        trtq.cli.main(["completion", "bash"])
    print("\N{FULL BLOCK} é", flush=True)
    assert page.buffer.getvalue().decode("cp1252").splitlines()[-1] == "? é"
