"""`trtq export` as a call: the file, the settings beside it, the comparison with PyTorch."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from trtq.calibrators.settings import read_spec
from trtq.errors import ArtifactError, DataError, GateError, ModelError, UsageError
from trtq.models.inputs import parse_input
from trtq.models.parity import TOLERANCE
from trtq.models.spec import InputSpec, ModelSpec
from trtq.models.target import LoadedModule, import_from_here
from trtq.pipeline.export import ExportOptions, export
from trtq.progress import Log, Silent

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")

_NETS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 5)
    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))
class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 1
class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)
class Short(nn.Module):
    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.zeros(8, 3))
    def forward(self, x, return_dict):
        return {"y": x + self.places[:x.shape[1]]}
class Fixed(nn.Module):
    def forward(self, x):
        return x + (x.shape[1] - 64) if torch.compiler.is_exporting() else x + 0
def scripted():
    return torch.jit.script(Branching())
"""
X = (parse_input("x:Nx3xHxW"),)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of the user's."""
    (tmp_path / "export_nets.py").write_text(_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "export_nets", None)
    del sys.modules["export_nets"]
    return tmp_path


def axes(path: Path) -> list[str | int]:
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


def test_a_users_module_is_exported_simplified_and_compared(here: Path) -> None:
    np.savez(here / "more.npz", x=np.ones((3, 3, 16, 24), np.float32))
    options = ExportOptions(inputs=X, sizes={"H": 16, "W": 16}, data=here / "more.npz")
    exported = export("export_nets:Net", here / "net.onnx", options=options)
    assert exported.difference <= TOLERANCE
    assert (exported.num_compared, exported.settings) == (5, None)
    assert axes(here / "net.onnx") == ["N", 3, "H", "W"]
    types = [node.op_type for node in onnx.load(here / "net.onnx").graph.node]
    assert types == ["Conv", "Relu", "ReduceMean", "Gemm"]


def test_weights_are_loaded_into_it(here: Path) -> None:
    sys.path.insert(0, str(here))
    try:
        import export_nets  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(here))
    net = export_nets.Net()
    torch.save(net.state_dict(), here / "w.pt")
    options = ExportOptions(inputs=(parse_input("x:Nx3x8x8"),), weights=here / "w.pt")
    export("export_nets:Net", here / "net.onnx", options=options)
    head = next(i for i in onnx.load(here / "net.onnx").graph.initializer if i.name == "head.weight")
    assert np.array_equal(onnx.numpy_helper.to_array(head), net.head.weight.detach().numpy())


def test_a_family_writes_settings_once(here: Path) -> None:
    options = ExportOptions(inputs=(parse_input("image:Nx3x224x224"),), family="imagenet")
    exported = export("export_nets:Net", here / "net.onnx", options=options)
    assert exported.settings == here / "net.toml"
    assert read_spec(here / "net.toml").inputs["image"].max == (32, 3, 224, 224)
    log = Log(Silent())
    assert export("export_nets:Net", here / "net.onnx", options=options, watcher=log).settings is None
    assert any("stays as it is" in note for note in log.notes)


def test_a_profile_that_the_model_cannot_have_is_left_out(here: Path) -> None:
    options = ExportOptions(inputs=(parse_input("image:4x3x32x32"),), family="imagenet")
    export("export_nets:Net", here / "net.onnx", options=options)
    assert read_spec(here / "net.toml").inputs == {}


def test_torchscript_keeps_its_control_flow_and_goes_to_the_old_exporter(here: Path) -> None:
    log = Log(Silent())
    options = ExportOptions(inputs=(parse_input("x:Nx3"),))
    export("export_nets:scripted", here / "net.onnx", options=options, watcher=log)
    assert "If" in [node.op_type for node in onnx.load(here / "net.onnx").graph.node]
    assert any("the exporter of PyTorch 1" in warning for warning in log.warnings)


def test_control_flow_over_values_is_told_with_the_line(here: Path) -> None:
    options = ExportOptions(inputs=(parse_input("x:Nx3"),))
    with pytest.raises(
        ModelError,
        match=r"its control flow depends on values .*at .*export_nets.py, line 12: `if x.sum\(\) > 0:`",
    ):
        export("export_nets:Branching", here / "net.onnx", options=options)
    assert not (here / "net.onnx").exists()


def test_a_module_that_computes_otherwise_each_time_fails_the_gate(here: Path) -> None:
    options = ExportOptions(inputs=(parse_input("x:Nx3"),))
    with pytest.raises(GateError, match=r"differs from PyTorch's by"):
        export("export_nets:Random", here / "net.onnx", options=options)
    assert not (here / "net.onnx").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, r"the inputs of this module are not known; give one --input"),
        ({"inputs": X, "data": Path("none.npz")}, DataError, r"cannot read the inputs none.npz"),
        ({"inputs": X, "data": Path("other.npz")}, DataError, r"other.npz has no array 'x'; it has y"),
        (
            {"inputs": X, "data": Path("flat.npz")},
            DataError,
            r"'x' of flat.npz has shape \(3,\), the input is x:N",
        ),
        (
            {"inputs": X, "sizes": {"L": 3}},
            UsageError,
            r"a size is given for 'L', but the dynamic dims are H, N, W",
        ),
        (
            {"inputs": (parse_input("x:Nx4xHxW"),)},
            ModelError,
            r"Net fails on inputs of shape \(2, 4, 64, 64\)",
        ),
    ],
)
def test_bad_input_is_told(options: dict[str, Any], error: type[Exception], message: str, here: Path) -> None:
    np.savez(here / "other.npz", y=np.zeros(3))
    np.savez(here / "flat.npz", x=np.zeros(3))
    with pytest.raises(error, match=message):
        export("export_nets:Net", here / "net.onnx", options=ExportOptions(**options))


def test_other_sizes_of_open_dims_are_compared(here: Path) -> None:
    options = ExportOptions(inputs=(parse_input("x:NxL"),))
    with pytest.raises(GateError, match=r"differs from PyTorch's by"):
        export("export_nets:Fixed", here / "net.onnx", options=options)


def test_the_usual_length_of_the_settings_is_the_examples(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with import_from_here():
        module = importlib.import_module("export_nets").Short()
    spec = ModelSpec(inputs={"x": InputSpec((1, 1, 3), (2, 8, 3), (4, 8, 3))})
    inputs = (parse_input("x:NxLx3"),)
    loaded = LoadedModule(module, inputs, spec, takes_names=True, unknown="nobody knows its mean")
    monkeypatch.setattr("trtq.pipeline.export.load_module", lambda *_, **__: loaded)
    log = Log(Silent())
    exported = export("hf:short", here / "net.onnx", watcher=log)
    assert (exported.num_compared, axes(here / "net.onnx")) == (4, ["N", "L", 3])
    assert read_spec(here / "net.toml").inputs == loaded.spec.inputs
    assert any(warning.startswith("nobody knows its mean; set them in ") for warning in log.warnings)


def test_a_large_model_keeps_its_weights_beside_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtq.models.session.INLINE_LIMIT_BYTES", 100)
    export("export_nets:Net", here / "net.onnx", options=ExportOptions(inputs=X))
    assert sorted(path.name for path in here.glob("net.onnx*")) == ["net.onnx", "net.onnx.data"]


def test_what_cannot_be_written_or_told_is_refused(here: Path) -> None:
    (here / "folder").mkdir()
    with pytest.raises(ArtifactError, match=r"it is a folder; name a file in it"):
        export("export_nets:Net", here / "folder")
    with pytest.raises(UsageError, match=r"input 'x' is given twice"):
        ExportOptions(inputs=(*X, *X))


def test_an_unknown_family_and_a_missing_folder_are_told(here: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no family 'gan'; use imagenet, yolo, encoder"):
        ExportOptions(family="gan")
    with pytest.raises(ArtifactError, match=r"there is no folder"):
        export("export_nets:Net", here / "absent" / "net.onnx")


def test_a_task_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^there is no task 'chat'; use text-generation$"):
        ExportOptions(task="chat")


def test_no_checkpoint_and_no_data_is_written_over(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("net.pt2", "best.pt", "x.npz")]
    for path in files:
        path.write_bytes(b"anything")
    options = ExportOptions(weights=files[1], data=files[2])
    for path in files:
        with pytest.raises(ArtifactError, match="is read by this command; choose another file"):
            export(str(files[0]), path, options=options)
    assert [path.read_bytes() for path in files] == [b"anything"] * 3
