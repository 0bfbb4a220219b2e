"""Weights from a file into a module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import ModelError
from trtq.files import refuse_damage
from trtq.models.foreign import silence

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "ema")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COUNTER = "num_batches_tracked"  # of BatchNorm, which needs it for training only
_MOST_NAMED = 4


def load_weights(module: torch.nn.Module, path: Path, *, trust: bool = False) -> None:
    """Loads a checkpoint into the module.

    The state may lie under a key such as `state_dict`, and all names may have prefixes such as `module.`. A
    name may be missing whose tensor another one gives (tied weights), and BatchNorm's count of batches.

    Args:
        module: Takes the weights, in place.
        path: `.safetensors`, or a PyTorch file.
        trust: Whether a pickle that holds more than tensors may be loaded, which runs the code in it.

    Raises:
        ModelError: The file cannot be read, is such a pickle, or does not fit: the names are given.
    """
    state = _state(_read(path, trust), path)
    wanted = module.state_dict()
    state = _without_prefixes(state, set(wanted))
    given = {(wanted[name].data_ptr(), wanted[name].shape) for name in state if name in wanted}
    missing = [
        name
        for name, value in wanted.items()
        if name not in state and not name.endswith(_COUNTER) and (value.data_ptr(), value.shape) not in given
    ]
    unexpected = [name for name in state if name not in wanted]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:_MOST_NAMED])}{' ...' if len(names) > _MOST_NAMED else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ] or [
        f"{name!r} has shape {tuple(value.shape)}, the module wants {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if value.shape != wanted[name].shape
    ][:1]
    if problems:
        raise ModelError(f"{path} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state, strict=False)  # what may be missing was looked at above


def holds_weights(path: Path) -> bool:
    """Returns whether a PyTorch file holds tensors by name, alone or among other plain values."""
    try:
        return isinstance(_load(path, trust=False), Mapping)
    except ModelError:
        return False


def _read(path: Path, trust: bool) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; give --weights a .pt or .safetensors file")
    if path.suffix == ".safetensors":
        files = lazy.require("safetensors.torch", "export", "loading .safetensors")
        with refuse_damage(ModelError, f"{path} is not a safetensors file"):
            return files.load_file(path)
    return _load(path, trust)


def _load(path: Path, trust: bool) -> Any:
    torch = lazy.require("torch", "export", "loading weights")
    with refuse_damage(ModelError, f"{path} is not a PyTorch checkpoint"), silence():
        try:
            return torch.load(path, map_location="cpu", weights_only=not trust)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"{path} holds more than tensors, and loading it would run the code in it; save the "
                f"state_dict alone, or add --trust if you know where it comes from"
            ) from error


def _state(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors by name; a whole module gives its own."""
    import torch

    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict())
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping | torch.nn.Module):
            return _state(content[key], path)
    items = content.items() if isinstance(content, Mapping) else [("", content)]
    if not all(isinstance(value, torch.Tensor) for _, value in items) or not isinstance(content, Mapping):
        raise ModelError(f"{path} holds no state_dict: a mapping of names to tensors")
    return {str(name): value for name, value in items}


def _without_prefixes(state: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Returns the state with the prefixes taken off that all names have, as long as they fit better so."""
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            shorter = _without_prefixes({name[len(prefix) :]: value for name, value in state.items()}, wanted)
            if len(wanted & set(shorter)) > len(wanted & set(state)):
                return shorter
    return state
