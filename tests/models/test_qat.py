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
