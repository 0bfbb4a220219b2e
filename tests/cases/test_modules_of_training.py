"""Modules and checkpoints as training leaves them are exported as they are meant to be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from trtq.errors import GateError, ModelError
from trtq.models.checkpoint import load_weights
from trtq.models.inputs import parse_input
from trtq.models.parity import TOLERANCE
from trtq.models.target import load_module
from trtq.pipeline.export import ExportOptions, export
from trtq.progress import Log, Silent

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")

_NETS = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
def net():
    torch.manual_seed(0)
    head = (nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *head).eval()
def half(): return net().half()
def bfloat(): return net().bfloat16()
def double(): return net().double()
def mixed():
    module = net()
    module[0].half()
    return module
def compiled(): return torch.compile(net())
def parallel(): return nn.DataParallel(net())
def averaged(): return AveragedModel(net())
def all_at_once(): return torch.compile(nn.DataParallel(AveragedModel(net().half())))
class Cast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x)
class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x) * torch.rand(1)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The net, which is also found as train_nets:net in the current folder."""
    (tmp_path / "train_nets.py").write_text(_NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "train_nets", raising=False)
    module: nn.Module = load_module("train_nets:net", pretrained=False).module
    return module


def differ(path: Path, module: nn.Module) -> float:
    """Returns the largest difference of an ONNX file from a module in float32, whose outputs are below 2."""
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    session = ort.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    return float(np.abs(found - module(torch.from_numpy(x)).detach().numpy()).max())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("half", "float32"),
        ("half", "float16"),
        ("bfloat", "bfloat16"),
        ("double", "float32"),
        ("mixed", "float32"),
    ],
)
def test_a_module_in_another_precision_is_exported_in_float32(net: nn.Module, name: str, dtype: str) -> None:
    log = Log(Silent())
    options = ExportOptions(inputs=(parse_input(f"x:Nx3x8x8:{dtype}"),))
    exported = export(f"train_nets:{name}", "out.onnx", options=options, watcher=log)
    assert exported.difference <= TOLERANCE
    assert any("it is exported in float32, with float32 inputs" in note for note in log.notes)
    assert differ(exported.path, net) < (0.05 if name == "bfloat" else 0.005)


def test_exported_programs_and_torchscript_in_half_precision_are_exported(net: nn.Module) -> None:
    module, x = load_module("train_nets:half", pretrained=False).module, torch.zeros(2, 3, 8, 8).half()
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=batch), "half.pt2")
    torch.jit.trace(module, x).save("half.ts")
    assert differ(export("half.pt2", "a.onnx").path, net) < 0.005  # what it takes stands in it
    options = ExportOptions(inputs=(parse_input("x:Nx3x8x8"),))
    assert differ(export("half.ts", "b.onnx", options=options).path, net) < 0.005


@pytest.mark.parametrize("name", ["compiled", "parallel", "averaged", "all_at_once"])
def test_a_module_is_taken_out_of_what_training_wraps_around_it(net: nn.Module, name: str) -> None:
    assert type(load_module(f"train_nets:{name}", pretrained=False).module) is type(net)
    options = ExportOptions(inputs=(parse_input("x:Nx3x8x8"),))
    exported = export(f"train_nets:{name}", "out.onnx", options=options)
    assert differ(exported.path, net) < 0.005


def test_a_module_that_casts_inside_is_judged_by_the_rounding_of_that_type(net: nn.Module) -> None:
    log, options = Log(Silent()), ExportOptions(inputs=(parse_input("x:Nx3x8x8"),))
    exported = export("train_nets:Cast", "out.onnx", options=options, watcher=log)
    assert exported.difference <= 0.08
    assert any("computes in bfloat16 inside" in warning for warning in log.warnings)
    with pytest.raises(GateError, match=r"differs from PyTorch's by .* at most 0\.08 is rounding"):
        export("train_nets:Loud", "loud.onnx", options=options)


def zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.zeros_like(value) for name, value in state.items()}


_AVERAGED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ema": lambda state: {"model": zeros(state), "ema": state, "epoch": 3},
    "ema/module": lambda state: {"model": zeros(state), "ema": {"module": state, "updates": 3}},
    "state_dict_ema": lambda state: {"state_dict": zeros(state), "state_dict_ema": state},
    "model_ema": lambda state: {"model_ema": state, "model": zeros(state)},
    "params_ema": lambda state: {"params": zeros(state), "params_ema": state},
}


@pytest.mark.parametrize("key", _AVERAGED)
def test_averaged_weights_are_taken_before_those_of_the_last_step(net: nn.Module, key: str) -> None:
    torch.save(_AVERAGED[key](net.state_dict()), "c.pt")
    target = zeroed(net)
    (note,) = load_weights(target, Path("c.pt"))
    assert f"the weights of {key!r} are taken, not those of " in note
    assert all(map(torch.equal, target.state_dict().values(), net.state_dict().values()))


def zeroed(net: nn.Module) -> nn.Module:
    target: nn.Module = load_module("train_nets:net", pretrained=False).module
    target.load_state_dict(zeros(net.state_dict()))
    return target


def test_an_average_that_is_missing_is_not_taken(net: nn.Module) -> None:
    torch.save({"ema": None, "model": net.state_dict()}, "c.pt")
    target = zeroed(net)
    assert load_weights(target, Path("c.pt")) == ()
    assert torch.equal(target.state_dict()["0.weight"], net.state_dict()["0.weight"])


def test_what_stands_beside_a_whole_state_is_left_out_and_named(net: nn.Module) -> None:
    torch.save(AveragedModel(net).state_dict(), "c.pt")
    target = zeroed(net)
    assert load_weights(target, Path("c.pt")) == ("c.pt: without n_averaged, which the module does not have",)
    assert torch.equal(target.state_dict()["0.weight"], net.state_dict()["0.weight"])


def test_what_stands_beside_a_state_that_is_not_whole_is_told(net: nn.Module) -> None:
    state = AveragedModel(net).state_dict()
    del state["module.4.bias"]
    torch.save(state, "c.pt")
    with pytest.raises(ModelError, match=r"c\.pt does not fit Sequential: .*unexpected: n_averaged"):
        load_weights(zeroed(net), Path("c.pt"))


def test_a_checkpoint_without_a_state_tells_its_keys(net: nn.Module) -> None:
    torch.save({"shadow_params": list(net.parameters()), "decay": 0.9}, "c.pt")
    with pytest.raises(ModelError, match="it has the keys shadow_params, decay"):
        load_weights(net, Path("c.pt"))


def test_a_pickle_of_a_class_that_is_not_here_is_told(net: nn.Module) -> None:
    import train_nets  # type: ignore[import-not-found]

    torch.save({"model": train_nets.Cast()}, "c.pt")
    del train_nets.Cast
    with pytest.raises(
        ModelError, match=r"c\.pt cannot be loaded: AttributeError.*Cast.*run trtq where the classes in it"
    ):
        load_weights(net, Path("c.pt"), trust=True)
