"""The PyTorch module that `trtq export` is told: by import path, by a library's name for it, or as a file."""

from __future__ import annotations

import importlib
import inspect
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import MissingDependency, ModelError, UsageError
from trtq.models.families import imagenet, of_transformer
from trtq.models.inputs import ModuleInput
from trtq.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

_FORMS = (
    "package.module:callable, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, or a .pt2, .pt or .pth file"
)
_FILES = (".pt2", ".pt", ".pth", ".ts")


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module and what its source tells of it.

    Attributes:
        module: Takes the inputs by position.
        inputs: Those that it takes; empty if only the user knows.
        spec: Preprocessing and profiles of its family.
        holds_weights: Whether weights were loaded with it, so that it needs none.
    """

    module: torch.nn.Module
    inputs: tuple[ModuleInput, ...] = ()
    spec: ModelSpec = field(default_factory=ModelSpec)
    holds_weights: bool = True


def load_module(target: str, *, pretrained: bool, trust: bool = False) -> LoadedModule:
    """Returns the module that the target names.

    Args:
        target: `package.module:callable`, `torchvision:NAME`, `timm:NAME`, `hf:NAME_OR_FOLDER`, or a file.
        pretrained: Whether a library's own weights are wanted; they may be downloaded.
        trust: Whether a pickled module may be loaded, which runs the code in it.

    Raises:
        UsageError: The target has none of these forms.
        ModelError: It does not import, does not exist, or gives no module.
        MissingDependency: A library is not installed.
    """
    lazy.require("torch", "export", "exporting a PyTorch module")
    scheme, _, name = target.partition(":")
    if scheme in _LIBRARIES and name:
        return _LIBRARIES[scheme](name, pretrained)
    if Path(target).suffix in _FILES:
        return _from_file(Path(target), trust)
    if not (scheme and name):
        raise UsageError(f"{target!r} is no target to export; write {_FORMS}")
    return LoadedModule(_from_import(target, scheme, name), holds_weights=False)


@contextmanager
def importable_here() -> Iterator[None]:
    """Makes the modules of the current folder importable, before any others."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_import(target: str, module_name: str, attribute: str) -> torch.nn.Module:
    import torch

    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"{target!r} does not import: {error}; run trtq in the folder of {module_name}, or install it"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = (
                [name for name in vars(found) if not name.startswith("_")][:8]
                if hasattr(found, "__dict__")
                else []
            )
            raise ModelError(f"{module_name} has no {attribute!r}; it has {', '.join(names) or 'nothing'}")
        found = getattr(found, part)
    if isinstance(found, torch.nn.Module):
        return found
    if not callable(found):
        raise ModelError(f"{target!r} is a {type(found).__name__}, not a callable that returns an nn.Module")
    if missing := _required(found):
        raise ModelError(
            f"{target!r} needs the arguments {', '.join(missing)}; name a function without any that returns "
            f"the module"
        )
    module = found()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{target!r} returned a {type(module).__name__}, not an nn.Module")
    return module


def _required(function: Callable[..., Any]) -> list[str]:
    """Returns the arguments that a callable cannot do without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C, without a signature
        return []
    by_name = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in parameters if item.default is item.empty and item.kind not in by_name]


def _from_torchvision(name: str, pretrained: bool) -> LoadedModule:
    models = _library("torchvision.models", f"torchvision:{name}")
    if name not in models.list_models():
        raise ModelError(f"torchvision has no model {name!r}{_near(name, models.list_models())}")
    with _told(f"torchvision:{name}"):
        module = models.get_model(name, weights="DEFAULT" if pretrained else None)
    weights = next(iter(models.get_model_weights(name)), None)
    steps = weights.transforms() if weights is not None else None
    if steps is None or not hasattr(steps, "crop_size"):
        return LoadedModule(module, holds_weights=pretrained)
    size = int(steps.crop_size[0])
    spec = imagenet(size, int(steps.resize_size[0]), tuple(steps.mean), tuple(steps.std))
    return LoadedModule(module, (ModuleInput("image", ("N", 3, size, size)),), spec, pretrained)


def _from_timm(name: str, pretrained: bool) -> LoadedModule:
    timm = _library("timm", f"timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
    with _told(f"timm:{name}"):
        module = timm.create_model(name, pretrained=pretrained)
    config: Mapping[str, Any] = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    share = float(config.get("crop_pct") or 1.0)
    spec = imagenet(height, round(height / share), tuple(config["mean"]), tuple(config["std"]))
    return LoadedModule(module, (ModuleInput("image", ("N", channels, height, width)),), spec, pretrained)


def _from_transformers(name: str, pretrained: bool) -> LoadedModule:
    transformers = _library("transformers", f"hf:{name}")
    with _told(f"hf:{name}"):
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = next(iter(config.architectures or ()), None)
        kind = getattr(transformers, architecture or "AutoModel", transformers.AutoModel)
        config.use_cache = False
        if pretrained:
            module = kind.from_pretrained(name, config=config, attn_implementation="eager")
        else:
            module = kind._from_config(config, attn_implementation="eager")
    inputs, spec = of_transformer(config)
    return LoadedModule(_by_position(module, [item.name for item in inputs]), inputs, spec, pretrained)


def _by_position(module: torch.nn.Module, names: list[str]) -> torch.nn.Module:
    """Returns the module with inputs by position, and the tensors that it returns as a tuple."""
    import torch

    class ByPosition(torch.nn.Module):  # type: ignore[misc]  # the untyped base is PyTorch's
        """Calls a module by the names of its inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.model(**dict(zip(names, inputs, strict=True)), return_dict=True)
            return tuple(value for value in outputs.values() if isinstance(value, torch.Tensor))

    return ByPosition()


def _from_file(path: Path, trust: bool) -> LoadedModule:
    import torch

    if not path.is_file():
        raise ModelError(
            f"there is no file {path}; name a .pt2, TorchScript or, with --trust, pickled module"
        )
    if path.suffix == ".pt2":
        try:
            program = torch.export.load(path)
        except (RuntimeError, ValueError, OSError, AssertionError, KeyError, zipfile.BadZipFile) as error:
            raise ModelError(f"{path} is no exported program: {str(error).splitlines()[0]}") from error
        return LoadedModule(program.module(), tuple(_inputs_of(program)))
    try:
        return LoadedModule(torch.jit.load(path, map_location="cpu"))
    except RuntimeError as error:
        if not trust:
            raise ModelError(
                f"{path} is no TorchScript module; if it is a pickled module, loading it runs the code in "
                f"it: add --trust if you know where it comes from"
            ) from error
    module = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{path} holds a {type(module).__name__}, not a module; for weights use --weights")
    return LoadedModule(module)


def _inputs_of(program: Any) -> Iterator[ModuleInput]:
    """Yields the inputs of an exported program; its open dims are called N, or dim1 and so on."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            dims = tuple(
                dim if isinstance(dim, int) else f"D{axis}" if axis else "N"
                for axis, dim in enumerate(value.shape)
            )
            yield ModuleInput(node.name, dims, str(value.dtype).rpartition(".")[2])


def _library(module: str, target: str) -> ModuleType:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: torchvision, made for another PyTorch
        raise MissingDependency(
            f"{target} needs {package}, which cannot be imported here ({error}); install the {package} that "
            f"fits this PyTorch: pip install {package}"
        ) from error


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Tells what a library raises when it makes a model: no network, no such name, no such file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{target} cannot be made: {lines[0][:300]}; for a model whose weights you have, give --weights"
        ) from error


def _near(name: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, names, n=3)
    return f"; the nearest are {', '.join(close)}" if close else ""


_LIBRARIES: Mapping[str, Callable[[str, bool], LoadedModule]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf": _from_transformers,
}
