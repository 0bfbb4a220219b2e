"""What `trtq export` takes for a module. Packages with the libraries' entry points stand in for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trtq.errors import MissingDependency, ModelError, UsageError
from trtq.models.inputs import ModuleInput
from trtq.models.target import import_from_here, load_module, sort_by_position

_NETS = """
from torch import nn
LIMIT = 3
net = nn.Linear(3, 2)
def make(): return nn.Linear(3, 2)
def sized(size, *rest, depth=1, **more): return nn.Linear(3, size)
def wrong(): return 7
def absent(): raise KeyError("depth")
class Holder:
    make = staticmethod(make)
"""
_TORCHVISION = """
from types import SimpleNamespace
from torch import nn
def list_models(): return ["resnet18", "r3d_18", "fcn"]
def resnet18(*, weights=None): return nn.Flatten()
def segmenter(*, weights=None, weights_backbone="more"):
    assert weights_backbone is None
    return nn.Flatten()
def get_model_builder(name): return segmenter if name == "fcn" else resnet18
def get_model(name, weights, **more):
    if weights is not None:
        raise OSError("no network here\\nmore")
    return get_model_builder(name)(weights=weights, **more)
class ImageClassification(SimpleNamespace): pass
class VideoClassification(SimpleNamespace): pass
_numbers = dict(crop_size=[224], resize_size=[256], mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
_steps = {"resnet18": ImageClassification(**_numbers), "r3d_18": VideoClassification(**_numbers)}
def get_model_weights(name):
    return [SimpleNamespace(transforms=lambda: _steps[name])] if name in _steps else []
"""
_TIMM = """
from types import SimpleNamespace
from torch import nn
def list_models(): return ["mobilenetv3_small_050"]
def is_model(name): return name in list_models()
def create_model(name, pretrained): return nn.Flatten()
_config = {"input_size": (3, 160, 192), "crop_pct": 0.8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
data = SimpleNamespace(resolve_model_data_config=lambda module: _config)
"""
_TRANSFORMERS = """
from types import SimpleNamespace
from torch import nn
class Classifier(nn.Module):
    @classmethod
    def from_pretrained(cls, name, config, attn_implementation): return cls()
    @classmethod
    def _from_config(cls, config, attn_implementation): return cls()
    def forward(self, input_ids, attention_mask, return_dict):
        assert return_dict
        return {"logits": input_ids * 2.0 * attention_mask, "hidden_states": None}
class AutoModel: pass
class Seer(Classifier):
    main_input_name = "pixel_values"
class AutoConfig:
    @staticmethod
    def from_pretrained(name):
        if name == "eyes": return SimpleNamespace(architectures=["Seer"], image_size=32)
        if name != "here": raise OSError(f"{name} is not a folder")
        return SimpleNamespace(architectures=["Classifier"], max_position_embeddings=64)
class utils:
    @staticmethod
    def cached_file(name, file): return f"{name}/{file}"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of the user's and the stand-ins."""
    packages = {
        "nets.py": _NETS, "broken.py": "import no_such_thing",
        "leaves.py": "raise SystemExit(3)", "syntax.py": "def f(:", "timm.py": _TIMM,
        "transformers.py": _TRANSFORMERS, "torchvision/__init__.py": "",
        "torchvision/models.py": _TORCHVISION,
    }  # fmt: skip
    for name, text in packages.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in list(sys.modules):
        if name.partition(".")[0] in ("nets", "broken", "timm", "transformers", "torchvision"):
            monkeypatch.delitem(sys.modules, name)
    for name in ("nets", "broken", "timm", "transformers", "torchvision", "torchvision.models"):
        monkeypatch.setitem(sys.modules, name, None)  # so that it is taken out again afterwards
        del sys.modules[name]
    return tmp_path


@pytest.mark.parametrize("target", ["nets:net", "nets:make", "nets:Holder.make"])
def test_a_module_by_its_import_path(target: str, here: Path) -> None:
    loaded = load_module(target, pretrained=True)
    assert isinstance(loaded.module, torch.nn.Linear)
    assert (loaded.inputs, loaded.holds_weights) == ((), False)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nets:none", r"nets has no 'none'; it has nn, LIMIT, net, make"),
        ("nets:LIMIT", r"'nets:LIMIT' is a int, not a callable"),
        ("nets:sized", r"'nets:sized' needs the arguments size; name a function without any"),
        ("nets:wrong", r"'nets:wrong' returned int, not an nn.Module"),
        (
            "nets:absent",
            r"'nets:absent' fails: KeyError: 'depth', at .*nets.py, line 8: `def.*; fix it, or name another",
        ),
        ("leaves:net", r"'leaves:net' does not import: SystemExit: 3, at .*leaves.py, line 1"),
        ("syntax:net", r"does not import: SyntaxError: .*, at .*syntax.py, line 1: `def f\(:`"),
        (
            "broken:net",
            r"'broken:net' does not import: ModuleNotFoundError: No module named 'no_such_thing', at .*"
            r"broken.py, line 1: `import no_such_thing`; run trtq in the folder of broken",
        ),
        (
            "no_such_module:net",
            r"does not import: ModuleNotFoundError: No module named 'no_such_module'; run trtq",
        ),
        ("torchvision:resnet81", r"torchvision has no model 'resnet81'; the nearest are resnet18"),
        ("timm:mobilenetv3", r"timm has no model 'mobilenetv3'; the nearest are mobilenetv3_small_050"),
        ("hf:nowhere", r"hf:nowhere cannot be made: OSError: nowhere is not a folder"),
        ("absent.pt2", r"there is no file absent.pt2"),
    ],
)
def test_what_gives_no_module_is_told(target: str, message: str, here: Path) -> None:
    with pytest.raises(ModelError, match=message):
        load_module(target, pretrained=True)


@pytest.mark.parametrize("target", ["./nets.py:net", "nets.py:net", "nets/:net"])
def test_a_file_of_python_is_named_as_it_is_imported(target: str, here: Path) -> None:
    with pytest.raises(UsageError, match=r"names a file; write the module as it is imported, nets:net$"):
        load_module(target, pretrained=True)


@pytest.mark.parametrize("target", ["resnet18", ":net", "nets:"])
def test_a_target_of_no_known_form_is_a_usage_error(target: str, here: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be exported; write package.module:callable"):
        load_module(target, pretrained=True)


def test_torchvision_brings_its_preprocessing(here: Path) -> None:
    loaded = load_module("torchvision:resnet18", pretrained=False)
    assert loaded.inputs == (ModuleInput("image", ("N", 3, 224, 224)),)
    assert (loaded.spec.preprocess.resize, loaded.spec.preprocess.mean) == ((256,), (0.1, 0.2, 0.3))
    for name in ("r3d_18", "fcn"):
        assert load_module(f"torchvision:{name}", pretrained=False).inputs == ()
    with pytest.raises(
        ModelError,
        match=r"torchvision:resnet18 cannot be made: OSError: no network here, at .*; for .* give --weights",
    ):
        load_module("torchvision:resnet18", pretrained=True)


def test_timm_brings_its_preprocessing(here: Path) -> None:
    loaded = load_module("timm:mobilenetv3_small_050", pretrained=False)
    assert loaded.inputs == (ModuleInput("image", ("N", 3, 160, 192)),)
    assert loaded.spec.preprocess.resize == (200,)


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_transformer_takes_its_inputs_by_position(pretrained: bool, here: Path) -> None:
    loaded = load_module("hf:here", pretrained=pretrained)
    names = [item.name for item in loaded.inputs]
    assert (names, loaded.takes_names, loaded.unknown) == (["input_ids", "attention_mask"], True, "")
    (logits,) = sort_by_position(loaded.module, names)(torch.ones(2, 3), torch.full((2, 3), 2.0))
    assert torch.equal(logits, torch.full((2, 3), 4.0))


def test_a_vision_transformer_is_prepared_as_its_folder_says(here: Path) -> None:
    loaded = load_module("hf:eyes", pretrained=False)
    assert loaded.inputs == (ModuleInput("pixel_values", ("N", 3, 32, 32)),)
    assert loaded.unknown.startswith("hf:eyes has no preprocessor_config.json")
    (here / "eyes").mkdir()
    (here / "eyes" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    loaded = load_module("hf:eyes", pretrained=False)
    assert (loaded.spec.preprocess.mean, loaded.unknown) == ((0.5, 0.5, 0.5), "")


def test_a_library_that_is_not_there_is_told(here: Path) -> None:
    (here / "timm.py").write_text("raise ImportError('not today')")
    with pytest.raises(MissingDependency, match=r"timm:x needs timm, .*not today.*pip install timm"):
        load_module("timm:x", pretrained=True)


def test_files_by_what_they_hold(here: Path) -> None:
    net = torch.nn.Linear(3, 2).eval()
    torch.jit.script(net).save(here / "script.pt")
    assert load_module("script.pt", pretrained=True).inputs == ()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.zeros(2, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(program, here / "net.pt2")
    assert load_module("net.pt2", pretrained=True).inputs == (ModuleInput("input", ("N", 3)),)
    (here / "junk.pt2").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk\.pt2 is not an exported program"):
        load_module("junk.pt2", pretrained=True)


def test_a_pickled_module_is_refused_unless_it_is_trusted(here: Path) -> None:
    torch.save(torch.nn.Linear(3, 2), here / "net.pt")
    with pytest.raises(ModelError, match=r"net.pt is not a TorchScript module; .* add --trust"):
        load_module("net.pt", pretrained=True)
    assert isinstance(load_module("net.pt", pretrained=True, trust=True).module, torch.nn.Linear)
    torch.save({"a": torch.zeros(1)}, here / "state.pt")
    with pytest.raises(ModelError, match=r"state.pt holds weights, not a module; .* with --weights"):
        load_module("state.pt", pretrained=True)
    torch.save([torch.nn.Linear(3, 2)], here / "list.pt")
    with pytest.raises(ModelError, match=r"holds a list, not a module; for weights use --weights"):
        load_module("list.pt", pretrained=True, trust=True)
    (here / "junk.pt").write_bytes(b"junk")
    with pytest.raises(ModelError, match=r"junk.pt cannot be loaded: .*; run trtq where the classes"):
        load_module("junk.pt", pretrained=True, trust=True)


def test_the_current_folder_comes_first_and_only_for_the_export(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with import_from_here():
        assert sys.path[0] == str(tmp_path)
    assert sys.path == before
