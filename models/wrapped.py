"""Modules as training leaves them: in wrappers, and in the precision that they were trained in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trtq.models.inputs import FLOATS, ModuleInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "ModelEmaV2": "module",  # this one and the next are timm's
    "ModelEmaV3": "module",
}
"""The attribute that holds the module itself, by the names of the classes."""


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """Returns the module out of `torch.compile`, DataParallel and averages of weights, one in another too."""
    for kind in type(module).__mro__:
        if kind.__name__ in _WRAPPERS:
            return unwrap(getattr(module, _WRAPPERS[kind.__name__]))
    return module


def to_float32(
    module: torch.nn.Module, inputs: Sequence[ModuleInput]
) -> tuple[tuple[ModuleInput, ...], tuple[str, ...]]:
    """Turns all floating weights of a module into float32, in place; what is built decides on less.

    Returns:
        The inputs, float32 where they were floating, and the names of the other types that there were.
    """
    tensors = [*module.parameters(), *module.buffers()]
    found = {str(value.dtype).rpartition(".")[2] for value in tensors if value.is_floating_point()}
    found |= {item.dtype for item in inputs if item.dtype in FLOATS}
    changed = [replace(item, dtype="float32") if item.dtype in FLOATS else item for item in inputs]
    if others := tuple(sorted(found - {"float32"})):
        module.float()
    return tuple(changed), others
