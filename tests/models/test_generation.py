"""How a causal language model is described and called, by a stand-in for `transformers`."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trtq.errors import ModelError, UsageError
from trtq.models.generation import OTHER_SIZES, describe_cached, take_caches
from trtq.models.target import load_module

CONFIG = SimpleNamespace(vocab_size=20, max_position_embeddings=64)


class _Cache:
    """Keys and values of each layer."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if layer == len(self.layers):
            self.layers.append(SimpleNamespace(keys=keys, values=values))
        else:
            held = self.layers[layer]
            held.keys, held.values = torch.cat([held.keys, keys], 2), torch.cat([held.values, values], 2)
        return self.layers[layer].keys, self.layers[layer].values


class _Decoder(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not followed
    """Adds up what it has seen: 2 heads of keys of 4 and values of 6; `cache` has its older name."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.lm_head, self.num_layers = torch.nn.Linear(1, 20), layers

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        return_dict: bool = False,
    ) -> dict[str, Any]:
        assert use_cache
        assert return_dict
        cache = past_key_values or _Cache()
        signal = input_ids[:, None, :, None].float()
        for layer in range(self.num_layers):
            keys, _ = cache.update(signal.expand(-1, 2, -1, 4), signal.expand(-1, 2, -1, 6), layer)
            signal = signal + keys.sum((1, 2, 3), keepdim=True)
        return {"logits": self.lm_head(signal[:, 0]), "past_key_values": cache}


def test_inputs_and_outputs_are_those_of_each_layer() -> None:
    found = describe_cached(_Decoder(), CONFIG)
    assert [str(item) for item in found.inputs] == [
        "input_ids:batchxsequence:int64",
        "attention_mask:batchxpast+sequence:int64",
        "position_ids:batchxsequence:int64",
        "past_key_values.0.key:batchx2xpastx4:float32",
        "past_key_values.0.value:batchx2xpastx6:float32",
        "past_key_values.1.key:batchx2xpastx4:float32",
        "past_key_values.1.value:batchx2xpastx6:float32",
    ]
    assert found.outputs == (
        "logits",
        *(item.name.replace("past_key_values", "present") for item in found.inputs[3:]),
    )
    assert found.inputs[0].example({}).max() > 1  # more tokens than two


def test_one_profile_is_for_prompts_and_one_for_each_token_after() -> None:
    profiles = describe_cached(_Decoder(), CONFIG).profiles
    prompt, step = profiles["past_key_values.0.key"].all
    assert (prompt.opt, prompt.max) == ((1, 2, 0, 4), (8, 2, 0, 4))
    assert (step.min, step.opt, step.max) == ((1, 2, 1, 4), (1, 2, 63, 4), (8, 2, 63, 4))
    assert [item.max for item in profiles["input_ids"].all] == [(8, 64), (8, 1)]
    assert [item.max for item in profiles["attention_mask"].all] == [(8, 64), (8, 64)]


def test_a_token_behind_a_cache_is_one_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(DynamicCache=_Cache))
    module = _Decoder()
    called = take_caches(module)
    assert [name for name, _ in called.named_parameters()] == ["lm_head.weight", "lm_head.bias"]
    ids, ones = torch.tensor([[3, 1, 4]]), torch.ones(1, 3, dtype=torch.int64)
    nothing = [torch.zeros(1, 2, 0, width) for width in (4, 6, 4, 6)]
    _, *caches = called(ids, ones, ids, *nothing)
    assert [tuple(cache.shape) for cache in caches] == [(1, 2, 3, 4), (1, 2, 3, 6)] * 2
    whole = module(torch.tensor([[3, 1, 4, 1]]), use_cache=True, return_dict=True)["past_key_values"]
    _, *caches = called(ids[:, 1:2], ones, ids[:, :1], *caches)
    assert torch.equal(caches[0], whole.layers[0].keys)
    assert {dim for sizes in OTHER_SIZES for dim in sizes} == {"past", "sequence"}


def test_a_model_without_a_cache_in_each_layer_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"^_Decoder does not keep the keys and values of all tokens in each"
    ):
        describe_cached(_Decoder(layers=0), CONFIG)
    with pytest.raises(ModelError, match=r"Linear fails on two tokens: TypeError: .*take a causal language"):
        describe_cached(torch.nn.Linear(2, 2), CONFIG)


def test_a_task_is_for_models_of_transformers() -> None:
    with pytest.raises(UsageError, match=r"^--task is for models of transformers, hf:.*; 'a.b:c' is none$"):
        load_module("a.b:c", pretrained=False, task="text-generation")
