"""Tests of an index of engines: which one is taken, and what it vouches for."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from plan_builder import Builder

from trtq.errors import ArtifactError, UsageError
from trtq.models.spec import CalibrationSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.build import build
from trtq.pipeline.deliver.index import (
    FILE,
    Index,
    IndexedEngine,
    index_folder,
    read_index,
    read_indexed,
    write_index,
)
from trtq.pipeline.deliver.manifest import NAME
from trtq.pipeline.deliver.signature import read_private_key
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.target import Target
from trtq.pipeline.inspect import inspect
from trtq.pipeline.load import load
from trtq.pipeline.sign import sign
from trtq.pipeline.verify import verify_index

Keys = Callable[[str], Path]
HOMES = ("trtq.pipeline.engine.backends", "trtq.pipeline.load", "trtq.pipeline.load.index")


@dataclass
class Machine:
    """What this machine is thought to be."""

    gpu: str = "9.0"


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as found:
        yield found


@pytest.fixture(scope="module")
def builder(patch: pytest.MonkeyPatch) -> Builder:
    found = Builder()
    for home in HOMES:
        patch.setattr(f"{home}.BACKENDS", {**BACKENDS, "tensorrt": found})
    return found


@pytest.fixture(scope="module")
def machine(patch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    for home in ("fit", "index"):
        patch.setattr(f"trtq.pipeline.load.{home}.find_compute_capability", lambda: found.gpu)
    return found


@pytest.fixture(scope="module")
def original(
    tmp_path_factory: pytest.TempPathFactory, builder: Builder, machine: Machine, keys: Keys
) -> Path:
    """An index, signed, of one model for two GPUs and for the CPU, of which the first has failed its gate."""
    folder = tmp_path_factory.mktemp("index")
    weights = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    _write_model(folder / "model.onnx", weights)
    np.savez(folder / "c.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    spec = ModelSpec(
        calibration=CalibrationSpec(data=str(folder / "c.npz"), method="minmax"),
        quantization=QuantizationSpec(repair=("none",)),
    )
    private, engines = read_private_key(keys("private")), []
    for kind, gpu in (("bad", "9.0"), ("l4", "8.9"), ("h100", "9.0"), ("cpu", "")):
        builder.targets, builder.model = (gpu,), folder / "model.onnx"
        target = Target(backend="tensorrt" if gpu else "onnxruntime")
        output = folder / f"model.{kind}.trtq"
        build(folder / "model.onnx", spec=spec, target=target, output=output)
        sign(output, keys("private"))
        indexed = index_folder(folder / "index.json", "model", kind, output, gpu="NVIDIA X", private=private)
        assert indexed is not None
        engines.append(replace(indexed, verdict="fail" if kind == "bad" else "pass"))
    write_index(folder / "index.json", engines, private)
    return folder / "index.json"


def _write_model(path: Path, weights: np.ndarray) -> None:
    import onnx

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, 3] y)'
        " { [mm] y = MatMul (x, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(model, path)


@pytest.fixture
def index(original: Path, tmp_path: Path, machine: Machine, builder: Builder) -> Path:
    machine.gpu, builder.number = "9.0", "10.3.0"
    return Path(shutil.copytree(original.parent, tmp_path / "copy")) / "index.json"


def test_the_index_says_what_each_engine_is(index: Path) -> None:
    found = read_index(index).engines
    assert [(item.kind, item.verdict, item.compute_capabilities) for item in found] == [
        ("bad", "fail", ("9.0",)), ("l4", "pass", ("8.9",)), ("h100", "pass", ("9.0",)), ("cpu", "pass", ()),
    ]  # fmt: skip
    assert (found[1].backend, found[1].version, found[1].gpu) == ("tensorrt", "10.3.0", "NVIDIA X")
    assert found[1].folder == "model.l4.trtq"
    assert inspect(index) == Index(found)


@pytest.mark.parametrize(("gpu", "kind"), [("8.9", "l4"), ("9.0", "h100"), ("7.5", "cpu")])
def test_the_engine_for_this_gpu_is_taken(
    gpu: str, kind: str, index: Path, machine: Machine, keys: Keys
) -> None:
    machine.gpu = gpu
    assert load(index, key=keys("public")).folder.name == f"model.{kind}.trtq"
    assert load(str(index), name="model").folder.name == f"model.{kind}.trtq"


def test_why_none_fits_is_said_of_each(index: Path, machine: Machine, builder: Builder) -> None:
    engines = read_index(index).engines[:3]
    write_index(index, engines, None)
    machine.gpu, builder.number = "7.5", "10.4.0"
    shutil.rmtree(index.parent / "model.h100.trtq")
    with pytest.raises(ArtifactError) as caught:
        load(index)
    text = str(caught.value)
    assert text.startswith(
        f"{index} has no engine of 'model' that runs here: model on bad: its gate failed; "
    )
    assert (
        "model on l4: built by tensorrt 10.3.0 for compute capability 8.9; here is tensorrt 10.4.0 on "
        in text
    )
    assert f"model on h100: {index.parent / 'model.h100.trtq'} is not a build folder" in text
    assert load(index, backend="onnxruntime").onnx == index.parent / "model.l4.trtq" / "model.int8.onnx"
    with pytest.raises(ArtifactError, match=r"model on l4: it was built for tensorrt; model on h100"):
        load(index, backend="tensorrt-rtx")
    write_index(index, [replace(engines[1], backend="tvm")], None)
    with pytest.raises(ArtifactError, match=r"it was built by 'tvm', which this trtq does not know"):
        load(index)


def test_names_must_be_there_and_tell_builds_apart(index: Path) -> None:
    engines = read_index(index).engines
    with pytest.raises(UsageError, match=r"index\.json has no build 'other'; it has: model$"):
        load(index, name="other")
    write_index(index, [*engines, replace(engines[2], name="other")], None)
    with pytest.raises(UsageError, match=r"index\.json has 2 builds: model, other; name one: name=\.\.\. or"):
        load(index)
    assert load(index, name="other").folder.name == "model.h100.trtq"
    write_index(index, [engines[2], engines[2]], None)
    with pytest.raises(UsageError, match=r"has several builds named 'model'; give each a unique"):
        load(index)
    with pytest.raises(UsageError, match=r"is a build folder, which has no build 'model'; leave the"):
        load(index.parent / "model.cpu.trtq", name="model")


def test_another_folder_in_the_place_of_one_is_not_taken(index: Path, machine: Machine) -> None:
    engines = read_index(index).engines
    with pytest.raises(ArtifactError, match=r"index\.json names the folder 'a\\x00b': embedded null byte$"):
        read_indexed(index, replace(engines[1], folder="a\0b"))
    shutil.rmtree(index.parent / "model.h100.trtq")
    shutil.copytree(index.parent / "model.bad.trtq", index.parent / "model.h100.trtq")
    assert load(index).folder.name == "model.cpu.trtq"
    found = verify_index(index)
    assert not found.is_intact
    assert "model.h100.trtq is another build than the one that " in found.problems
    assert "names: the SHA-256 of its manifest.json differs; run trtq build-all again" in found.problems


@pytest.mark.parametrize("name", ["report.json", "model.engine"])
def test_a_folder_that_is_damaged_leaves_the_others(index: Path, name: str) -> None:
    assert load(index).folder.name == "model.h100.trtq"
    (index.parent / "model.h100.trtq" / name).write_bytes(b"damaged")
    assert load(index).folder.name == "model.cpu.trtq"
    write_index(index, read_index(index).engines[:3], None)
    with pytest.raises(
        ArtifactError,
        match=rf"model on h100: .*model\.h100\.trtq.*{name} is not the file that was built: .*; build it fo",
    ):
        load(index)


def test_onnx_runtime_takes_a_folder_that_has_a_model_for_it(index: Path) -> None:
    assert load(index, backend="onnxruntime").folder.name == "model.h100.trtq"
    (index.parent / "model.h100.trtq" / "model.int8.onnx").unlink()
    assert load(index, backend="onnxruntime").folder.name == "model.l4.trtq"


def test_the_signature_of_the_index_vouches_for_all_folders(index: Path, keys: Keys) -> None:
    found = verify_index(index, key=keys("public"))
    assert (found.is_intact, found.signature, len(found.folders)) == (True, "good", 4)
    assert verify_index(index).signature == "unchecked"
    (index.parent / "model.cpu.trtq" / "model.int8.onnx").write_bytes(b"other")
    assert "model.cpu.trtq: changed: model.int8.onnx" in verify_index(index, key=keys("public")).problems
    with pytest.raises(ArtifactError, match=r"the signature of .*index\.json is not that of .*: it was chan"):
        read_index(index, keys("other"))
    index.write_bytes(index.read_bytes().replace(b"8.9", b"9.0"))
    for look in (verify_index, load):
        with pytest.raises(
            ArtifactError, match=r"the signature of .*index\.json is not that of .*: it was chan"
        ):
            look(index, key=keys("public"))
    write_index(index, read_index(index).engines, None)
    assert verify_index(index).signature == "none"
    with pytest.raises(
        ArtifactError, match=r"index\.json is not signed: it has no index\.sig; trtq build-all"
    ):
        load(index, key=keys("public"))


def test_a_folder_that_the_key_has_not_signed_is_not_indexed(index: Path, keys: Keys) -> None:
    private, folder = read_private_key(keys("private")), index.parent / "model.l4.trtq"
    (folder / "manifest.sig").unlink()
    assert index_folder(index, "model", "l4", folder, private=private) is None
    assert index_folder(index, "model", "l4", folder) is not None
    (folder / NAME).unlink()
    assert index_folder(index, "model", "l4", folder) is None


def test_what_is_no_index_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"x\.json is not a trtq index; `trtq build-all` writes one$"):
        load(tmp_path / "x.json")
    with pytest.raises(ArtifactError, match=r"^cannot read the index .*none\.json: No such file"):
        read_index(tmp_path / "none.json")
    assert FILE.encode(Index(()))


def test_a_title_has_the_kind_if_there_is_one(index: Path) -> None:
    engine: IndexedEngine = read_index(index).engines[1]
    assert (engine.title, replace(engine, kind="").title) == ("model on l4", "model")
