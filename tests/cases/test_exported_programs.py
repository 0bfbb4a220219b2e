"""An exported program runs nothing that somebody has put into it, unless the user trusts it."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtq.errors import ModelError
from trtq.models.program import load_program
from trtq.models.target import load_module

torch = pytest.importorskip("torch")
Change = Callable[[str, bytes], bytes]


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch RAN",))


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exported program with an open batch and a symbolic size, in the current folder."""
    monkeypatch.chdir(tmp_path)

    class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return self.linear(x).reshape(x.shape[0] // 2, 8)

    shapes = ({0: 2 * torch.export.Dim("half")},)
    torch.export.save(torch.export.export(Net(), (torch.zeros(6, 4),), dynamic_shapes=shapes), "good.pt2")
    return tmp_path / "good.pt2"


def write(good: Path, change: Change, *more: tuple[str, bytes]) -> Path:
    bad = good.with_name("bad.pt2")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
        for name, content in more:
            target.writestr(name, content)
    return bad


def pickled(value: object) -> bytes:
    with io.BytesIO() as buffer:
        torch.save({"a": value}, buffer)
        return buffer.getvalue()


def test_a_good_program_loads_without_trust(good: Path) -> None:
    loaded = load_module(str(good), pretrained=True)
    assert [item.name for item in loaded.inputs] == ["x"]
    assert loaded.module(torch.zeros(10, 4)).shape == (5, 8)


def test_pickled_sample_inputs_are_refused(good: Path) -> None:
    bad = write(good, lambda name, content: pickled(Evil()) if name.endswith(".pt") else content)
    with pytest.raises(ModelError, match=r"bad\.pt2 holds a pickle of more than tensors; .* add --trust"):
        load_module(str(bad), pretrained=True)
    assert not Path("RAN").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.parametrize("name", ["opaque_obj_0", "custom_obj_0"])
def test_pickled_objects_are_refused(good: Path, name: str) -> None:
    bad = write(good, lambda _, content: content, (f"good/data/constants/{name}", b"x"))
    with pytest.raises(ModelError, match=rf"holds good/data/constants/{name}, which is more than tensors"):
        load_program(bad, trust=False)


def test_a_pickled_weight_is_refused(good: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weight_0"):
            return pickled(Evil())
        return (
            content.replace(b'"use_pickle": false', b'"use_pickle": true')
            if "weights_config" in name
            else content
        )

    with pytest.raises(ModelError, match=r"bad\.pt2"):
        load_program(write(good, change), trust=False)
    assert not Path("RAN").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.load_library",
        "_operator.call",
        "torchx.os.system",
        "torch.ops.aten.__class__",
        "_operator.attrgetter",
    ],
)
def test_a_node_that_calls_more_than_an_operator_is_refused(good: Path, target: str) -> None:
    bad = write(good, lambda _, content: content.replace(b"torch.ops.aten.reshape.default", target.encode()))
    with pytest.raises(ModelError, match=rf"bad\.pt2 calls '{target}', which is no operator of a graph"):
        load_program(bad, trust=False)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch RAN')",
        "exec('x')",
        "(1).__class__",
        "x[0]",
        "1 +",
        "S('a b')",
        "[x for x in y]",
    ],
)
def test_a_size_that_is_more_than_arithmetic_is_refused(good: Path, text: str) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        value = json.loads(content)
        replace_sizes(value, text)
        return json.dumps(value).encode()

    with pytest.raises(ModelError, match=r"bad\.pt2 calls .* which is no operator of a graph"):
        load_program(write(good, change), trust=False)
    assert not Path("RAN").exists()


def replace_sizes(value: Any, text: str) -> None:
    if isinstance(value, dict) and "expr_str" in value:
        value["expr_str"] = text
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        replace_sizes(item, text)


def test_guards_are_not_compiled(good: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        value = json.loads(content)
        value["guards_code"] = ["__import__('os').system('touch RAN') == 0"]
        return json.dumps(value).encode()

    loaded = load_module(str(write(good, change)), pretrained=True)
    assert loaded.module(torch.zeros(4, 4)).shape == (2, 8)
    assert not Path("RAN").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(good: Path) -> None:
    bad = write(good, lambda _, content: content, ("good/models/model.json", b"{}"))
    with pytest.raises(ModelError, match=r"bad\.pt2 holds two members of one name"):
        load_program(bad, trust=False)


def test_who_trusts_the_file_may_load_it(good: Path) -> None:
    bad = write(good, lambda name, content: pickled(Evil()) if name.endswith(".pt") else content)
    load_program(bad, trust=True)
    assert Path("RAN").exists()
