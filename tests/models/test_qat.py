"""Quantization-aware training: where fake-quantize stands, what it computes, and that it exports as Q/DQ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import trtq
from trtq.errors import ModelError
from trtq.models import qat
from trtq.models.export import export
from trtq.pipeline.calibrate.qat import amax_by_node
from trtq.pipeline.graph.lint import lint
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.placement import place
from trtq.pipeline.graph.quantized import find_quantized_layers

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")
NAMES: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}


@pytest.fixture(scope="module")
def net() -> Any:
    from trtq.models.train_demo import build_network

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network()
        network.train()
        for _ in range(3):  # so that the norms have something to fold
            network(torch.rand(16, 1, 8, 8))
        return network.eval()


@pytest.fixture(scope="module")
def images() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.rand(8, 1, 8, 8)


@pytest.fixture(scope="module")
def amax(net: Any, images: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What trtq's own calibration finds on the module's ONNX file."""
    folder = tmp_path_factory.mktemp("qat")
    export(net, [images], folder / "model.onnx", **NAMES)
    np.savez(folder / "data.npz", image=images.numpy())
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(folder / "data.npz"), method="minmax"))
    ranges = trtq.calibrate(folder / "model.onnx", spec=spec)
    found = amax_by_node(folder / "model.onnx", ranges)
    placed = place(load(folder / "model.onnx", min_opset=13).model)
    assert set(found) == {node.name for node in placed.quantized}
    return found


@pytest.mark.slow
def test_the_exported_pairs_stand_where_placement_puts_them(
    net: Any, images: Any, amax: dict[str, float], tmp_path: Path
) -> None:
    network = qat.freeze(qat.prepare(net, amax))
    assert qat.export(network, [images], tmp_path / "qat.onnx", **NAMES) <= qat.TOLERANCE
    graph = load(tmp_path / "qat.onnx", min_opset=13)
    assert lint(graph.model) == ()
    layers = {layer.name for layer in find_quantized_layers(graph.model)}
    assert layers == {name for name in amax if not name.endswith("/Add")}
    for node in graph.model.graph:
        if node.op_type == "Add" and str(node.name) in amax:
            makers = [value.producer() for value in node.inputs if value is not None]
            assert [maker is not None and maker.op_type == "DequantizeLinear" for maker in makers].count(
                True
            ) == 1
    types = [node.op_type for node in onnx.load(tmp_path / "qat.onnx").graph.node]
    assert "BatchNormalization" not in types


def test_preparing_changes_the_module_little_and_leaves_the_given_one_alone(
    net: Any, images: Any, amax: dict[str, float]
) -> None:
    with torch.no_grad():
        before = net(images)
        prepared = qat.prepare(net, amax)(images)
        assert torch.equal(net(images), before)
    assert 0 < float((prepared - before).abs().max()) < 0.1 * float(before.max() - before.min())


@pytest.mark.parametrize("learn", [False, True])
def test_training_moves_weights_and_with_learn_scales(
    learn: bool, net: Any, images: Any, amax: dict[str, float]
) -> None:
    network = qat.prepare(net, amax, learn=learn).train()
    names = [name for name, _ in network.named_parameters()]
    assert any(name.endswith("quantizer.scale") for name in names) == learn
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-2)
    network(images).square().mean().backward()
    optimizer.step()
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert any("weight.original" in name for name in moved)
    assert any(name.endswith("quantizer.scale") for name in moved) == learn
    frozen = qat.freeze(network)
    with torch.no_grad():
        assert torch.equal(frozen(images), frozen(images))


def test_gradients_stop_where_values_are_cut_off() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        layer[0].weight.fill_(1.0)
    network = qat.prepare(layer, {"0/Gemm": 1.0})
    values = torch.tensor([[0.5, 3.0]], requires_grad=True)
    network(values).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 0.0]]


def test_skipped_nodes_stay_float(net: Any, amax: dict[str, float]) -> None:
    network = qat.prepare(net, amax, skip=("^block1", "^head"))
    parametrized = {name for name, child in network.named_modules() if hasattr(child, "parametrizations")}
    assert parametrized == {
        name.rpartition("/")[0]
        for name in amax
        if not name.startswith(("block1", "head")) and "Add" not in name
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"nowhere/Conv": 1.0}, r"'nowhere/Conv' is not a layer or addition of this module"),
        ({"stem.conv/Conv": 0.0}, r"the range of 'stem.conv/Conv' is 0.0; it must be positive"),
        ({"pool/MaxPool": 1.0}, r"'pool' is a MaxPool2d, whose weights trtq does not quantize"),
    ],
)
def test_what_cannot_be_quantized_is_told(names: dict[str, float], message: str, net: Any) -> None:
    with pytest.raises(ModelError, match=message):
        qat.prepare(net, names)


def test_a_module_that_cannot_be_traced_is_told() -> None:
    class Branching(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch.fx cannot trace Branching: .*control flow"):
        qat.prepare(Branching(), {})


def _with_norms(forward: Any, **layers: Any) -> Any:
    """Returns a module with two norms, `a` and `b`, that are far from doing nothing."""

    class Net(torch.nn.Module):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return forward(self, x)

    module = Net()
    for name, layer in {**layers, "a": torch.nn.BatchNorm2d(4), "b": torch.nn.BatchNorm2d(4)}.items():
        setattr(module, name, layer)
    for norm, size in ((module.a, 3.0), (module.b, 0.25)):
        torch.nn.init.constant_(norm.weight, size)
        norm.running_var.fill_(size)
    return module.eval()


@pytest.mark.parametrize(
    ("forward", "norms_left"),
    [
        (lambda net, x: net.b(net.conv(net.a(net.conv(x)))), {"a", "b"}),
        (lambda net, x: net.a(net.conv(net.a(net.conv(x)))), {"a"}),
        (lambda net, x: net.a(net.conv(x)) + torch.conv2d(x, net.conv.weight), {"a"}),
        (lambda net, x: net.a(net.conv(x)) + net.a(net.other(x)), set()),  # one norm of two convolutions
        (lambda net, x: net.a(net.conv(x)) + net.b(net.tied(x)), set()),
    ],
)
def test_shared_weights_and_norms_compute_the_same(forward: Any, norms_left: set[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        conv, other, tied = (torch.nn.Conv2d(4, 4, 1) for _ in range(3))
        images = torch.rand(2, 4, 5, 5)
    tied.weight = conv.weight
    net = _with_norms(forward, conv=conv, other=other, tied=tied)
    network = qat.prepare(net, {})
    with torch.no_grad():
        torch.testing.assert_close(network(images), net(images))
    kept = {
        name
        for name, child in network.named_modules()
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm)
    }
    assert kept == norms_left


def test_a_norm_without_statistics_stays() -> None:
    conv, norm = torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4, track_running_stats=False)
    net = torch.nn.Sequential(conv, norm).eval()
    images = torch.rand(2, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(qat.prepare(net, {})(images), net(images))


def test_each_call_of_a_layer_has_a_range_and_all_share_the_weight() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 2.0)
    net = _with_norms(lambda net, x: net.fc(net.fc(x)), fc=layer)
    network = qat.prepare(net, {"fc/Gemm": 1.0, "fc/Gemm_1": 1.5})
    assert network(torch.tensor([[9.0]])).tolist() == [[pytest.approx(3.0)]]  # cut at 1, then 2 at 1.5
    parametrizations = network.fc.parametrizations.weight
    assert len(parametrizations) == 1
    with pytest.raises(ModelError, match=r"'fc/Gemm_2' is not a layer or addition"):
        qat.prepare(net, {"fc/Gemm_2": 1.0})
