"""Language models of `transformers` that give token after token, with their cache as inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trtq.errors import ModelError
from trtq.models.foreign import explain_failures, silence
from trtq.models.inputs import ModuleInput
from trtq.models.spec import InputSpec, ProfileSpec

if TYPE_CHECKING:
    import torch

_CACHES = ("cache", "past_key_values")
"""What `transformers` calls a cache, the newer name first."""
BATCH, SEQUENCE, PAST = "batch", "sequence", "past"
TOTAL = f"{PAST}+{SEQUENCE}"
OTHER_SIZES: tuple[Mapping[str, int], ...] = ({PAST: 0}, {SEQUENCE: 1})
"""Of what is compared beside the usual sizes: a prompt, and the token after one."""
_MOST_SEQUENCES, _MOST_TOKENS, _USUAL_PROMPT = 8, 2048, 128


@dataclass(frozen=True, slots=True)
class CachedDecoder:
    """What a causal language model takes and gives, with its cache as tensors.

    Attributes:
        inputs: `input_ids`, `attention_mask`, `position_ids`, and for each layer `past_key_values.N.key` and
            `past_key_values.N.value`, float32, shape (batch, heads, past, width).
        outputs: `logits`, and `present.N.key` and `.value`, with what is new behind the past.
        profiles: Of the inputs: the first for prompts, with an empty cache, the second for one token each.
    """

    inputs: tuple[ModuleInput, ...]
    outputs: tuple[str, ...]
    profiles: Mapping[str, InputSpec]


def describe_cached(module: torch.nn.Module, config: Any) -> CachedDecoder:
    """Returns what a causal language model takes and gives, by running it on two tokens.

    Raises:
        ModelError: It fails, or has no cache of keys and values in each layer.
    """
    most = min(int(getattr(config, "max_position_embeddings", None) or _MOST_TOKENS), _MOST_TOKENS)
    caches = dict(_find_caches(module))
    inputs = (
        ModuleInput("input_ids", (BATCH, SEQUENCE), "int64", below=int(config.vocab_size)),
        ModuleInput("attention_mask", (BATCH, TOTAL), "int64"),
        ModuleInput("position_ids", (BATCH, SEQUENCE), "int64", below=most),
        *(
            ModuleInput(f"past_key_values.{name}", (BATCH, heads, PAST, width))
            for name, (heads, width) in caches.items()
        ),
    )
    outputs = ("logits", *(f"present.{name}" for name in caches))
    return CachedDecoder(inputs, outputs, {item.name: _list_profiles(item, most) for item in inputs})


def _list_profiles(item: ModuleInput, most: int) -> InputSpec:
    """Returns the sizes of an input: of prompts without a past, and of one token behind one."""
    usual = min(_USUAL_PROMPT, most)
    prompt = [_size(item, *sizes) for sizes in ((1, 1, 0), (1, usual, 0), (_MOST_SEQUENCES, most, 0))]
    step = [_size(item, *sizes) for sizes in ((1, 1, 1), (1, 1, usual - 1), (_MOST_SEQUENCES, 1, most - 1))]
    return InputSpec(*prompt, profiles=(ProfileSpec(*step),))


def _size(item: ModuleInput, batch: int, sequence: int, past: int) -> tuple[int, ...]:
    return item.shape({BATCH: batch, SEQUENCE: sequence, PAST: past})


def _find_caches(module: torch.nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields the caches, such as `0.key`, with their heads and their width."""
    import torch

    name = type(module).__name__
    advice = "take a causal language model, or leave --task out"
    with explain_failures(f"{name} fails on two tokens", advice), silence(), torch.no_grad():
        made = module(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=True, return_dict=True)
    layers = _list_layers(made)
    for layer, tensors in enumerate(layers):
        for part, tensor in zip(("key", "value"), tensors, strict=True):
            if tensor is None or tensor.ndim != 4 or tensor.shape[2] != 2:
                layers = []
                break
            yield f"{layer}.{part}", (tensor.shape[1], tensor.shape[3])
    if not layers:
        raise ModelError(
            f"{name} does not keep the keys and values of all tokens in each layer; --task text-generation "
            f"takes models that do: export it without"
        )


def _list_layers(made: Mapping[str, Any]) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Returns the keys and values of each layer of what a model of `transformers` gave."""
    cache = next((made[name] for name in _CACHES if name in made), None)
    layers = getattr(cache, "layers", ())
    return [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]


def take_caches(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a module that takes what `describe_cached` says by position, and gives it as a tuple."""
    import torch
    from transformers import DynamicCache

    parameters = inspect.signature(module.forward).parameters
    word = next((name for name in _CACHES if name in parameters), _CACHES[-1])

    class WithCache(torch.nn.Module):  # type: ignore[misc]  # the untyped base is PyTorch's
        def __init__(self) -> None:
            super().__init__()
            for name, child in module.named_children():  # under their own names
                self.add_module(name, child)

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            ids, mask, positions, *past = inputs
            cache = DynamicCache()  # which keeps all tokens, whatever the layers attend to
            for layer, (keys, values) in enumerate(zip(past[::2], past[1::2], strict=True)):
                cache.update(keys, values, layer)
            given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, word: cache}
            made = module(**given, use_cache=True, return_dict=True)
            return (made["logits"], *(tensor for pair in _list_layers(made) for tensor in pair))

    WithCache.__name__ = type(module).__name__  # the name that messages give
    return WithCache()
