"""Weights from a file into a module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import ModelError
from trtq.files import refuse_damage
from trtq.models.foreign import explain_failures, silence
from trtq.models.wrapped import unwrap

if TYPE_CHECKING:
    import torch

_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "params", "weights")
"""Under which a state is kept, but for averaged ones, whose keys have the word `ema` in them."""
_PREFIXES = ("module.", "_orig_mod.", "ema_model.", "model.")
_COUNTER = "num_batches_tracked"  # of BatchNorm, which needs it for training only
_MOST_NAMED = 4


def load_weights(module: torch.nn.Module, path: Path, *, trust: bool = False) -> tuple[str, ...]:
    """Loads a checkpoint into the module; returns what was chosen of it, as sentences.

    The state may lie under a key such as `state_dict`. Where there is an averaged one (`ema`) too, that is
    taken, as it is what is used after training. All names may have prefixes such as `module.`, and what has
    none may stand beside a state that is whole. A name may be missing whose tensor another one gives (tied
    weights), and BatchNorm's count of batches.

    Args:
        module: Takes the weights, in place.
        path: `.safetensors`, or a PyTorch file.
        trust: Whether a pickle that holds more than tensors may be loaded, which runs the code in it.

    Raises:
        ModelError: The file cannot be read, is such a pickle, or does not fit: the names are given.
    """
    content = _read(path, trust)
    found = _find_state(content)
    if found is None:
        keys = f"the keys {_name([*map(str, content)])}" if isinstance(content, Mapping) else "something else"
        raise ModelError(f"{path} holds no state_dict, a mapping of names to tensors: it has {keys}")
    key, state = found
    notes, others = [], [name for name in _list_keys(content) if key and name != key.partition("/")[0]]
    if others:
        notes.append(f"{path}: the weights of {key!r} are taken, not those of {' and '.join(others)}")
    wanted = module.state_dict()
    state, left = _without_prefixes(state, set(wanted))
    notes += [f"{path}: without {_name(left)}, which the module does not have"] if left else []
    given = {(wanted[name].data_ptr(), wanted[name].shape) for name in state if name in wanted}
    missing = [
        name
        for name, value in wanted.items()
        if name not in state and not name.endswith(_COUNTER) and (value.data_ptr(), value.shape) not in given
    ]
    unexpected = [name for name in state if name not in wanted]
    problems = [
        f"{len(names)} {kind}: {_name(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ] or [
        f"{name!r} has shape {tuple(value.shape)}, the module expects {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if value.shape != wanted[name].shape
    ][:1]
    if problems:
        raise ModelError(f"{path} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state, strict=False)  # what may be missing was looked at above
    return tuple(notes)


def _name(names: Sequence[str]) -> str:
    """Returns the first names."""
    return ", ".join(names[:_MOST_NAMED]) + (" ..." if len(names) > _MOST_NAMED else "")


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
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if trust:
                return _load_trusted(path)
            raise ModelError(
                f"{path} holds more than tensors, and loading it would run the code in it; save the "
                f"state_dict alone, or add --trust if you know where it comes from"
            ) from error


def _load_trusted(path: Path) -> Any:
    """Returns what a pickle holds, whatever it runs."""
    torch = lazy.require("torch", "export", "loading weights")
    with (
        silence(),
        explain_failures(f"{path} cannot be loaded", "run trtq where the classes in it can be imported"),
    ):
        return torch.load(path, map_location="cpu", weights_only=False)


def _find_state(content: Any) -> tuple[str, dict[str, torch.Tensor]] | None:
    """Returns the tensors by name, and under which keys they lie; a whole module gives its own."""
    import torch

    if isinstance(content, torch.nn.Module):
        return "", dict(unwrap(content).state_dict())
    if not isinstance(content, Mapping):
        return None
    for key in _list_keys(content):
        if (found := _find_state(content[key])) is not None:
            return f"{key}/{found[0]}".rstrip("/"), found[1]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return ("", tensors) if content and len(tensors) == len(content) else None


def _list_keys(content: Any) -> list[str]:
    """Returns the keys that a state may lie under, the averaged ones first."""
    import torch

    if not isinstance(content, Mapping):
        return []
    keys = [str(key) for key, item in content.items() if isinstance(item, Mapping | torch.nn.Module)]
    averaged = [key for key in keys if "ema" in key.lower().split("_")]
    return averaged + [key for key in _KEYS if key in keys]


def _without_prefixes(
    state: dict[str, torch.Tensor], wanted: set[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Returns the state without prefixes, and the names that are no part of it.

    Prefixes that all names have are taken off as long as they fit better so. What lacks one is left out, such
    as the step of an average, where the names that have it are all that are wanted.
    """
    for prefix in _PREFIXES:
        inner = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
        others = [name for name in state if not name.startswith(prefix)]
        if inner and len(inner) < len(state):
            shorter, left = _without_prefixes(inner, wanted)
            if wanted <= set(shorter):
                return shorter, [*others, *left]
        elif inner:
            shorter, left = _without_prefixes(inner, wanted)
            if len(wanted & set(shorter)) > len(wanted & set(state)):
                return shorter, left
    return state, []
