"""Weights from files: what fits is loaded, what does not is named, and no code in a file is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch as files
import torch

from trtq.errors import ModelError
from trtq.models.checkpoint import load_weights


def net() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def same(first: Any, second: Any) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_state_is_found_under_its_usual_keys_and_prefixes(wrap: Any, prefix: str, tmp_path: Path) -> None:
    source, target = net(), net()
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save(wrap(state), tmp_path / "c.pt")
    load_weights(target, tmp_path / "c.pt")
    assert same(source, target)


def test_safetensors_are_read(tmp_path: Path) -> None:
    source, target = net(), net()
    files.save_file(source.state_dict(), tmp_path / "c.safetensors")
    load_weights(target, tmp_path / "c.safetensors")
    assert same(source, target)
    (tmp_path / "c.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_weights(target, tmp_path / "c.safetensors")


def test_missing_and_unexpected_names_are_told(tmp_path: Path) -> None:
    state = net().state_dict()
    state["2.weight"] = state.pop("1.weight")
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(
        ModelError, match=r"does not fit Sequential: 1 missing: 1\.weight; 1 unexpected: 2\.weight$"
    ):
        load_weights(net(), tmp_path / "c.pt")


def test_tied_weights_and_the_count_of_batches_may_be_missing(tmp_path: Path) -> None:
    def tied() -> Any:
        layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
        layers[2].weight = layers[0].weight
        return layers

    source, target = tied(), tied()
    state = source.state_dict()
    del state["2.weight"], state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "c.pt")
    load_weights(target, tmp_path / "c.pt")
    assert same(source, target)
    del state["2.bias"]
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"1 missing: 2\.bias$"):
        load_weights(target, tmp_path / "c.pt")


def test_a_shape_that_does_not_fit_is_told(tmp_path: Path) -> None:
    state = {**net().state_dict(), "1.bias": torch.zeros(7)}
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"'1.bias' has shape \(7,\), the module expects \(2,\)"):
        load_weights(net(), tmp_path / "c.pt")


def test_a_pickle_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    source, target = net(), net()
    torch.save(source, tmp_path / "c.pt")
    with pytest.raises(ModelError, match=r"holds more than tensors, .* add --trust"):
        load_weights(target, tmp_path / "c.pt")
    load_weights(target, tmp_path / "c.pt", trust=True)
    assert same(source, target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"junk", r"holds more than tensors|is not a PyTorch checkpoint"),
        ([1], "holds no state_dict"),
    ],
)
def test_what_is_no_checkpoint_is_told(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load_weights(net(), path)
