"""Tests of exporting PyTorch modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from trtq.errors import ArtifactError, GateError, ModelError
from trtq.models.export import export, to_onnx
from trtq.models.parity import TOLERANCE, check_parity, run_outputs

pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")


def _module() -> Any:
    """Returns a convolution, batch norm and activation, and a head; (batch, 1, 4, 4) to (batch, 3)."""
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def _images(batch: int) -> Any:
    """Returns float32 images, shape (batch, 1, 4, 4)."""
    return torch.linspace(-1, 1, batch * 16).reshape(batch, 1, 4, 4)


def _of(function: Callable[..., Any]) -> Any:
    """Returns a module that computes the function."""
    module = torch.nn.Module()
    module.forward = function
    return module


def _export(
    module: Any, path: Path, *inputs: Any, outputs: tuple[str, ...] = ("y",), **options: Any
) -> float:
    names = ["a", "b"][: len(inputs)]
    return export(module, inputs, path, input_names=names, output_names=outputs, **options)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the file of `_module`, alone in its folder; it is not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert 0 <= _export(_module(), path, _images(2)) <= TOLERANCE
    return path


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("batch", [1, 2])
def test_the_file_computes_the_same_on_any_batch(tmp_path: Path, exported: Path, batch: int) -> None:
    path = exported
    if batch == 1:
        path = tmp_path / "model.onnx"
        assert 0 <= _export(_module(), path, _images(batch)) <= TOLERANCE
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (_axes(model.graph.input[0]), _axes(model.graph.output[0])) == (["batch", 1, 4, 4], ["batch", 3])
    assert check_parity(_module().eval(), path, [_images(7)]) <= TOLERANCE


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    _export(_module(), tmp_path / "model.onnx", _images(2), dynamic_batch=False)
    assert _axes(onnx.load(tmp_path / "model.onnx").graph.input[0]) == [2, 1, 4, 4]


def test_everything_is_in_one_file(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(exported, load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in model.graph.initializer)


def test_the_file_names_no_folder_of_the_machine(exported: Path) -> None:
    data = exported.read_bytes()
    assert b".py" not in data
    assert b"pkg." not in data


def test_nodes_and_tensors_are_named_for_their_modules(exported: Path) -> None:
    nodes = onnx.load(exported).graph.node
    assert [(node.name, node.output[0]) for node in nodes] == [
        ("0.0/Conv", "0.0/Conv_output_0"),
        ("0.2/Relu", "0.2/Relu_output_0"),
        ("1/ReduceMean", "1/ReduceMean_output_0"),
        ("2/Reshape", "2/Reshape_output_0"),
        ("3/Gemm", "y"),
    ]


def test_nodes_of_one_module_are_numbered(tmp_path: Path) -> None:
    _export(_of(lambda x: torch.relu(x + x) + x), tmp_path / "model.onnx", _images(2))
    assert [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node] == ["Add", "Relu", "Add_1"]


def test_modules_keep_their_modes(tmp_path: Path) -> None:
    module = _module()
    module[0].eval()
    _export(module, tmp_path / "model.onnx", _images(2))
    assert module.training
    assert module[3].training
    assert not module[0].training


@pytest.mark.parametrize(
    "make", [lambda a, b: (a + b, a * b), lambda a, b: [a + b, a * b], lambda a, b: {"u": a + b, "v": a * b}]
)
def test_several_inputs_and_outputs_are_compared(tmp_path: Path, make: Any) -> None:
    _export(_of(make), tmp_path / "model.onnx", _images(2), -_images(2), outputs=("sum", "product"))
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["a", "b"]
    assert [value.name for value in graph.output] == ["sum", "product"]


def test_an_export_that_computes_otherwise_is_not_written(tmp_path: Path) -> None:
    module = _of(lambda x: x * 2 if torch.compiler.is_exporting() else x)
    with pytest.raises(
        GateError, match=r"output 'y' of the exported model differs .* by 0\.5 of its range, at most"
    ):
        _export(module, tmp_path / "model.onnx", _images(2))
    assert list(tmp_path.iterdir()) == []


def test_a_doctored_weight_is_found(exported: Path) -> None:
    module = _module()
    model = onnx.load(exported)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "3.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name)
    )
    with pytest.raises(GateError, match=r"differs from PyTorch's by .* look for code"):
        check_parity(module.eval(), ir.from_proto(model), [_images(2)])


def test_a_result_that_is_no_number_is_a_difference(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="differs from PyTorch's by nan"):
        _export(_of(lambda x: torch.log(x)), tmp_path / "model.onnx", _images(2))


def test_another_output_shape_is_told(tmp_path: Path) -> None:
    _export(_of(lambda x: x + 1), tmp_path / "model.onnx", _images(2))
    with pytest.raises(GateError, match=r"'y' has shape \(2, 1, 4, 4\) in the exported model, \(2, 16\) in"):
        check_parity(_of(lambda x: x.flatten(1)), tmp_path / "model.onnx", [_images(2)])


def test_a_model_that_does_not_run_is_told(tmp_path: Path) -> None:
    _export(_module(), tmp_path / "model.onnx", _images(2), dynamic_batch=False)
    with pytest.raises(
        ModelError, match=r"does not run the exported model on inputs of shape \(3, 1, 4, 4\)"
    ):
        check_parity(_module().eval(), tmp_path / "model.onnx", [_images(3)])


def test_a_module_that_cannot_be_traced_is_told(tmp_path: Path) -> None:
    module = _of(lambda x: x + 1 if x.sum() > 0 else x - 1)
    with pytest.raises(
        ModelError, match=r"PyTorch cannot export Module: .*data-dependent.*; change the module"
    ):
        _export(module, tmp_path / "model.onnx", _images(2))


@pytest.mark.parametrize(
    ("function", "outputs"),
    [
        (lambda x: {"a": x + 1, "b": (x * 2, [x * 3])}, ("u", "v", "w")),
        (lambda x: (x + 1, None), ("u",)),
        (lambda x: (x, x + 1), ("same", "more")),
    ],
)
def test_outputs_may_be_nested_absent_or_inputs(tmp_path: Path, function: Any, outputs: Any) -> None:
    assert _export(_of(function), tmp_path / "model.onnx", _images(2), outputs=outputs) <= TOLERANCE
    assert [value.name for value in onnx.load(tmp_path / "model.onnx").graph.output] == list(outputs)


def test_an_output_called_like_the_input_that_it_is_gets_a_name_of_its_own() -> None:
    model, _ = to_onnx(_of(lambda x: x), [_images(2)], {"x": {0: "N"}}, opset=18)
    assert [value.name for value in model.graph.outputs] == ["x_output"]
    onnx.checker.check_model(ir.to_proto(model).SerializeToString())


def test_torchscript_that_has_no_operators_in_onnx_is_told() -> None:
    module = torch.jit.trace(_of(torch.linalg.svdvals), _images(2))
    with pytest.raises(ModelError, match=r"PyTorch cannot export this TorchScript: .*svd"):
        to_onnx(module, [_images(2)], {"x": {0: "N"}}, opset=18)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: x + torch.ones(3),
            r"Module fails on inputs of shape \(2, 1, 4, 4\) float32: RuntimeError: .*at",
        ),
        (lambda x: (x, 3), r"Module returns a int; return tensors only"),
    ],
)
def test_a_module_that_fails_or_returns_something_else_is_told(function: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        run_outputs(_of(function), [_images(2)])


def test_another_number_of_outputs_is_told(tmp_path: Path) -> None:
    _export(_of(lambda x: x + 1), tmp_path / "model.onnx", _images(2))
    with pytest.raises(GateError, match=r"has the 1 outputs y, the module returns 2 tensors"):
        check_parity(_of(lambda x: (x + 1, x + 2)), tmp_path / "model.onnx", [_images(2)])


def test_outputs_without_values_or_in_bfloat16_are_compared(tmp_path: Path) -> None:
    _export(_of(lambda x: x + 1), tmp_path / "model.onnx", _images(2))
    assert check_parity(_of(lambda x: x + 1), tmp_path / "model.onnx", [_images(0)]) == 0
    with pytest.raises(GateError, match="differs"):  # it has eight bits
        check_parity(_of(lambda x: (x + 1).bfloat16()), tmp_path / "model.onnx", [_images(2)])


def test_a_missing_output_name_is_told(tmp_path: Path) -> None:
    module = _of(lambda x: (x + 1, x * 2))
    with pytest.raises(
        ModelError, match=r"has the outputs y, .* names given are y; give one name for each of the 2"
    ):
        _export(module, tmp_path / "model.onnx", _images(2))


def test_an_opset_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"exported with opset \d+ and cannot convert this model to opset 99"
    ):
        _export(_of(lambda x: x + 1), tmp_path / "model.onnx", _images(2), opset=99)


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot write .*absent"):
        _export(_of(lambda x: x + 1), tmp_path / "absent" / "model.onnx", _images(2))
