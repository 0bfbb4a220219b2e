"""A model that PyTorch exported has the names of its modules, not the numbers of its exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from trtq.cli import main
from trtq.models.foreign import silence
from trtq.pipeline.formats.scheme import WeightScheme
from trtq.pipeline.graph.load import load, load_as_it_is
from trtq.pipeline.graph.placement import place
from trtq.pipeline.rewrite.weights.choose import choose_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("torchlib_is_read_once")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a small language model's file as `torch.onnx.export` writes it; it is not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    module = torch.nn.Module()
    module.emb, module.lm_head = torch.nn.Embedding(80, 64), torch.nn.Linear(64, 80, bias=False)
    module.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False)])

    def forward(ids: Any) -> Any:
        return module.lm_head(torch.relu(module.layers[0](module.emb(ids))))

    module.forward = forward
    ids = torch.zeros(2, 7, dtype=torch.long)
    with silence():
        torch.onnx.export(module.eval(), (ids,), dynamo=True, verbose=False).save(path)
    assert "node_linear" in {node.name for node in onnx.load(path).graph.node}
    return path


def test_the_names_are_those_of_the_modules(exported: Path) -> None:
    names = ["emb/Gather", "layers.0/MatMul", "Relu", "lm_head/MatMul"]
    assert [node.name for node in load(exported, min_opset=19).model.graph] == names
    assert [node.name for node in load_as_it_is(exported).graph] == names


def test_lm_head_is_a_sensitive_name(exported: Path) -> None:
    model = load(exported, min_opset=21).model
    placement = choose_weights(model, WeightScheme("int4"))
    assert [node.name for node in placement.quantized] == ["emb/Gather", "layers.0/MatMul"]
    assert [(node.name, node.reason) for node in placement.kept] == [
        ("lm_head/MatMul", "its name is a sensitive one")
    ]


def test_a_pattern_may_name_a_module(exported: Path) -> None:
    placement = place(load(exported, min_opset=19).model, skip=[r"^layers\."])
    assert [(node.name, node.reason) for node in placement.kept] == [
        ("layers.0/MatMul", r"skipped by '^layers\\.'")
    ]


def test_the_written_model_keeps_the_names(exported: Path, tmp_path: Path) -> None:
    written = tmp_path / "q.onnx"
    arguments = ["quantize", str(exported), "--weights", "int4", "--output", str(written), "-q"]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    names = {node.name for node in onnx.load(written).graph.node}
    assert {"layers.0/MatMul", "lm_head/MatMul"} <= names
    assert {node.name for node in load_as_it_is(written).graph} == names
