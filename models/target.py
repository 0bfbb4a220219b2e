"""The PyTorch module that `trtq export` exports: by import path, by a library's name for it, or as a file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.errors import MissingDependency, ModelError, UsageError
from trtq.models.checkpoint import holds_weights
from trtq.models.families import describe_imagenet, describe_transformer
from trtq.models.foreign import explain_failures, silence
from trtq.models.generation import CachedDecoder, describe_cached
from trtq.models.inputs import ModuleInput
from trtq.models.program import load_program, open_module
from trtq.models.spec import ModelSpec
from trtq.models.wrapped import unwrap

if TYPE_CHECKING:
    import torch

_FORMS = (
    "package.module:callable, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, or a .pt2, .pt or .pth file"
)
TASKS = ("text-generation",)
_FILES = (".pt2", ".pt", ".pth", ".ts")
_WITHOUT_WEIGHTS = "for a model whose weights you have, give --weights"


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module and what its source says of it.

    Attributes:
        module: The module.
        inputs: Those that it takes; empty if only the user knows.
        spec: Preprocessing and profiles of its family.
        holds_weights: Whether weights were loaded with it, so that it needs none.
        caches: What it takes and gives with a cache, if `take_caches` stands before it; None: it has no task.
        takes_names: Whether it takes its inputs by name, so that `sort_by_position` must stand before it.
        unknown: What its source does not say though it should, as a sentence; empty: nothing.
    """

    module: torch.nn.Module
    inputs: tuple[ModuleInput, ...] = ()
    spec: ModelSpec = field(default_factory=ModelSpec)
    holds_weights: bool = True
    takes_names: bool = False
    caches: CachedDecoder | None = None
    unknown: str = ""


def load_module(
    target: str, *, pretrained: bool, trust: bool = False, task: str | None = None
) -> LoadedModule:
    """Returns the module that the target names, out of what training wrapped around it.

    Args:
        target: `package.module:callable`, `torchvision:NAME`, `timm:NAME`, `hf:NAME_OR_FOLDER`, or a file.
        pretrained: Whether a library's own weights are wanted; they may be downloaded.
        trust: Whether a pickled module may be loaded, which runs the code in it.
        task: "text-generation": a causal language model of `transformers`, with its cache; None: what the
            target is, without one.

    Raises:
        UsageError: The target has none of these forms, or not this task.
        ModelError: It does not import, does not exist, or gives no module.
        MissingDependency: A library is not installed.
    """
    loaded = _load(target, pretrained, trust) if task is None else _load_generator(target, pretrained)
    return replace(loaded, module=unwrap(loaded.module))


def _load(target: str, pretrained: bool, trust: bool) -> LoadedModule:
    lazy.require("torch", "export", "exporting a PyTorch module")
    scheme, _, name = target.partition(":")
    if scheme in _LIBRARIES and name:
        return _LIBRARIES[scheme](name, pretrained)
    if Path(target).suffix in _FILES:
        return _from_file(Path(target), trust)
    if not (scheme and name):
        raise UsageError(f"{target!r} cannot be exported; write {_FORMS}")
    return LoadedModule(_from_import(target, scheme, name), holds_weights=False)


@contextmanager
def import_from_here() -> Iterator[None]:
    """Makes the modules of the current folder importable, before any others."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_import(target: str, module_name: str, attribute: str) -> torch.nn.Module:
    import torch

    if "/" in module_name or module_name.endswith(".py"):
        name = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise UsageError(f"{target!r} names a file; write the module as it is imported, {name}:{attribute}")
    advice = f"run trtq in the folder of {module_name}, or install it"
    with explain_failures(f"{target!r} does not import", advice):
        found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in getattr(found, "__dict__", ()) if not name.startswith("_")][:8]
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
    with explain_failures(f"{target!r} fails", "fix it, or name another function that returns the module"):
        module = found()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{target!r} returned {type(module).__name__}, not an nn.Module")
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
    wanted: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    builder = inspect.signature(models.get_model_builder(name)).parameters
    if not pretrained and "weights_backbone" in builder:  # else it would be downloaded all the same
        wanted["weights_backbone"] = None
    with explain_failures(f"torchvision:{name} cannot be made", _WITHOUT_WEIGHTS):
        module = models.get_model(name, **wanted)
    weights = next(iter(models.get_model_weights(name)), None)
    steps: Any = weights.transforms() if weights is not None else None
    if type(steps).__name__ != "ImageClassification":  # detectors take lists, videos have another axis
        return LoadedModule(module, holds_weights=pretrained)
    size = int(steps.crop_size[0])
    spec = describe_imagenet((size, size), int(steps.resize_size[0]), tuple(steps.mean), tuple(steps.std))
    return LoadedModule(module, (ModuleInput("image", ("N", 3, size, size)),), spec, pretrained)


def _from_timm(name: str, pretrained: bool) -> LoadedModule:
    timm = _library("timm", f"timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(f"timm has no model {name!r}{_near(name, timm.list_models())}")
    with explain_failures(f"timm:{name} cannot be made", _WITHOUT_WEIGHTS):
        module = timm.create_model(name, pretrained=pretrained)
    config: Mapping[str, Any] = timm.data.resolve_model_data_config(module)
    channels, height, width = config["input_size"]
    side = int(min(height, width) / float(config.get("crop_pct") or 1.0))
    spec = describe_imagenet((height, width), side, tuple(config["mean"]), tuple(config["std"]))
    return LoadedModule(module, (ModuleInput("image", ("N", channels, height, width)),), spec, pretrained)


def _from_transformers(name: str, pretrained: bool) -> LoadedModule:
    transformers = _library("transformers", f"hf:{name}")
    with explain_failures(f"hf:{name} cannot be made", _WITHOUT_WEIGHTS):
        config = transformers.AutoConfig.from_pretrained(name)
        architecture = next(iter(config.architectures or ()), None)
        kind = getattr(transformers, architecture or "AutoModel", transformers.AutoModel)
        config.use_cache = False
        if pretrained:
            module = kind.from_pretrained(name, config=config, attn_implementation="eager")
        else:
            module = kind._from_config(config, attn_implementation="eager")
    main_input = getattr(module, "main_input_name", "input_ids")
    processor = _processor_of(transformers, name) if main_input == "pixel_values" else None
    inputs, spec = describe_transformer(config, main_input, processor)
    unknown = ""
    if main_input == "pixel_values" and processor is None:
        unknown = f"hf:{name} has no preprocessor_config.json, and ImageNet's mean and std are only a guess"
    return LoadedModule(module, inputs, spec, pretrained, takes_names=True, unknown=unknown)


def _load_generator(target: str, pretrained: bool) -> LoadedModule:
    lazy.require("torch", "export", "exporting a PyTorch module")
    scheme, _, name = target.partition(":")
    if scheme != "hf" or not name:
        raise UsageError(f"--task is for models of transformers, hf:NAME_OR_FOLDER; {target!r} is none")
    transformers = _library("transformers", target)
    with explain_failures(f"{target} cannot be made", _WITHOUT_WEIGHTS), silence():
        config = transformers.AutoConfig.from_pretrained(name)
        kind = transformers.AutoModelForCausalLM
        make = kind.from_pretrained if pretrained else kind.from_config
        given = {"config": config, "attn_implementation": "eager"}
        module = make(name, **given) if pretrained else make(**given)
    caches = describe_cached(module, config)
    spec = ModelSpec(inputs=caches.profiles)
    return LoadedModule(module, caches.inputs, spec, pretrained, caches=caches)


def _processor_of(transformers: ModuleType, name: str) -> Mapping[str, Any] | None:
    """Returns the content of a vision model's `preprocessor_config.json`; None if it has none."""
    try:
        path = transformers.utils.cached_file(name, "preprocessor_config.json")
        content: Mapping[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def sort_by_position(module: torch.nn.Module, names: Sequence[str]) -> torch.nn.Module:
    """Returns a module of `transformers` with inputs by position, and the tensors that it returns as a tuple.

    Args:
        module: Takes its inputs by name.
        names: In the order of the positions.
    """
    import torch

    class ByPosition(torch.nn.Module):  # type: ignore[misc]  # the untyped base is PyTorch's
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.model(**dict(zip(names, inputs, strict=True)), return_dict=True)
            return tuple(value for value in outputs.values() if isinstance(value, torch.Tensor))

    ByPosition.__name__ = type(module).__name__  # the name that messages give
    return ByPosition()


def _from_file(path: Path, trust: bool) -> LoadedModule:
    import torch

    if not path.is_file():
        raise ModelError(
            f"there is no file {path}; name a .pt2, TorchScript or, with --trust, pickled module"
        )
    if path.suffix == ".pt2":
        program = load_program(path, trust=trust)
        return LoadedModule(open_module(program), tuple(_inputs_of(program)))
    try:
        with silence():
            return LoadedModule(torch.jit.load(path, map_location="cpu"))
    except RuntimeError as error:
        if holds_weights(path):
            raise ModelError(
                f"{path} holds weights, not a module; name what makes the module, such as "
                f"package.module:callable, and give them with --weights"
            ) from error
        if not trust:
            raise ModelError(
                f"{path} is not a TorchScript module; if it is a pickled module, loading it runs the code in "
                f"it: add --trust if you know where it comes from"
            ) from error
    advice = "run trtq where the classes of the module can be imported"
    with explain_failures(f"{path} cannot be loaded", advice):
        module = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{path} holds a {type(module).__name__}, not a module; for weights use --weights")
    return LoadedModule(module)


def _inputs_of(program: Any) -> Iterator[ModuleInput]:
    """Yields the inputs of an exported program; its open dims are called N, D1, D2 and so on."""
    names = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            value = node.meta["val"]
            open_names = ["N", *(f"D{axis}" for axis in range(1, value.ndim))]
            dims = zip(value.shape, open_names, strict=False)
            sizes = tuple(dim if isinstance(dim, int) else name for dim, name in dims)
            yield ModuleInput(node.name, sizes, str(value.dtype).rpartition(".")[2])


def _library(module: str, target: str) -> ModuleType:
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last: torchvision, made for another PyTorch
        raise MissingDependency(
            f"{target} needs {package}, which cannot be imported here ({error}); install the {package} that "
            f"fits this PyTorch: pip install {package}"
        ) from error


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3)
    return f"; the nearest are {', '.join(close)}" if close else ""


_LIBRARIES: Mapping[str, Callable[[str, bool], LoadedModule]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "hf": _from_transformers,
}
