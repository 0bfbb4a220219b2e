"""Every kind of file that trtq reads: valid ones, what is done to them, and who reads them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

import onnx
import readers
from damage import damage, damage_members
from documents import odd_json, odd_toml
from hypothesis import strategies as st
from isolated import Call
from messages import odd_model
from seeds import (
    BUILDS,
    CACHES,
    KEPT,
    SCRIPTS,
    SETTINGS,
    list_arrays,
    list_images,
    list_models,
    list_sensitivities,
)

Files = Mapping[str, bytes]
_SEALED = ("report.json", "tensors.json", "ranges.json", "model.int8.onnx")


@dataclass(frozen=True, slots=True)
class Surface:
    """A kind of file.

    Attributes:
        calls: The public functions that read it, out of a folder.
        files: What is written over some files of that folder, by their names.
    """

    calls: Sequence[Call]
    files: st.SearchStrategy[Files]


def list_surfaces(home: Path) -> dict[str, Surface]:
    """Returns the surfaces by name, with what is made of the valid files of `home`."""
    of_model = (readers.inspect_model, readers.lint_model, readers.plan_model)
    of_build = (readers.inspect_build, readers.load_build, readers.report_build, readers.package_build)
    models = odd_model(list(list_models()))
    arrays, npz = list_arrays(), [_read(home, "data.npz")]
    statistics = [_read(home, "statistics.npz"), (KEPT / "statistics-1.npz").read_bytes()]
    polygraphy = odd_json([_read(home, "data.json")])
    ranges = odd_json([_read(home, "ranges.json"), *_kept("ranges")])
    packed = damage(npz) | damage_members(npz, arrays)
    config = damage([_read(home, "repository/net/config.pbtxt")])
    return {
        "model": Surface(of_model, _in(readers.MODEL, models)),
        "built model": Surface((readers.build_model,), _in(readers.MODEL, models)),
        "external data": Surface(of_model, _external_data()),
        "npz": Surface((readers.observe_npz,), _in("data.npz", packed)),
        "npy": Surface((readers.observe_npy,), _in("data.npy", damage([_read(home, "data.npy"), *arrays]))),
        "labels": Surface((readers.compare_with_labels,), _in("labels.npy", damage(arrays))),
        "feeds": Surface((readers.observe_feeds,), _in("feeds/0.npz", packed)),
        "images": Surface((readers.observe_images,), _in("images/a.png", damage(list_images()))),
        "tar": Surface((readers.observe_tar,), _in("data.tar", damage([_read(home, "data.tar")]))),
        "parquet": Surface(
            (readers.observe_parquet,), _in("data.parquet", damage([_read(home, "data.parquet")]))
        ),
        "dataset": Surface((readers.observe_dataset,), _dataset(home)),
        "video": Surface((readers.observe_video,), _in("data.avi", damage([_read(home, "data.avi")]))),
        "polygraphy": Surface((readers.observe_polygraphy,), _in("data.json", polygraphy)),
        "settings": Surface((readers.read_settings,), _in("settings/model.toml", odd_toml(SETTINGS))),
        "builds": Surface((readers.read_builds,), _in("trtq.toml", odd_toml(BUILDS))),
        "ranges": Surface((readers.quantize_with_ranges,), _in("ranges.json", ranges)),
        "statistics": Surface(
            (readers.estimate_from_statistics,), _in("statistics.npz", _statistics(statistics))
        ),
        "cache": Surface(
            (readers.read_calibration_cache, readers.inspect_cache), _in("calibration.cache", damage(CACHES))
        ),
        "keys": Surface((readers.verify_signature, readers.sign_build), _keys(home)),
        "index": Surface((readers.use_index,), _in("index.json", odd_json([_read(home, "index.json")]))),
        "folder": Surface((*of_build, readers.run_build, readers.build_again), _folder(home)),
        "sensitivity": Surface(
            (readers.report_sensitivity,), _in("sensitivity.json", odd_json(list_sensitivities()))
        ),
        "pbtxt": Surface((readers.package_build,), _in("repository/net/config.pbtxt", config)),
        "scripts": Surface(
            (readers.search_scripts,),
            st.fixed_dictionaries(
                {f"scripts/{name}": damage(SCRIPTS) for name in ("calibrate.py", "Dockerfile")}
            ),
        ),
        "checkpoint": Surface((readers.load_checkpoint,), _checkpoints(home)),
        "program": Surface((readers.load_exported_program,), _in("module.pt2", _program(home))),
        **{
            name: Surface(
                (partial(readers.read_kind, name=name),), _in(name, odd_json(_kept(name.partition("-")[0])))
            )
            for name in readers.KINDS
        },
    }


def _read(home: Path, name: str) -> bytes:
    return (home / name).read_bytes()


def _kept(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(KEPT.glob(f"{kind}-*.json"))]


def _in(name: str, content: st.SearchStrategy[bytes]) -> st.SearchStrategy[Files]:
    return st.fixed_dictionaries({name: content})


@st.composite
def _external_data(draw: st.DrawFn) -> Files:
    """Draws a model with weights in another file, of which the places, the file or both are wrong."""
    model = onnx.ModelProto()
    model.ParseFromString(next(list_models()))
    data = b""
    for tensor in model.graph.initializer:
        place = {"location": "w.bin", "offset": str(len(data)), "length": str(len(tensor.raw_data))}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    content = model.SerializeToString()
    if draw(st.booleans()):
        entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        entry = draw(st.sampled_from(entries))
        odd = ("", "-1", "0x10", "1e3", "²", "9" * 30, "9" * 5000, "../w.bin", "/dev/zero", ".", "a\0b",
               "x" * 300, "w.bin/", "nan", "3", "18446744073709551616", "model.onnx")  # fmt: skip
        entry.value = draw(st.sampled_from(odd))
        content = model.SerializeToString()
    else:
        content = draw(odd_model([content]))
    return {readers.MODEL: content, "w.bin": draw(st.sampled_from([data, data[:-1], b""]) | damage([data]))}


@st.composite
def _statistics(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Draws a file of statistics that is damaged, or whose document or arrays are others."""
    content = draw(damage(seeds) | damage_members(seeds, list_arrays()))
    if draw(st.booleans()):
        return content
    return _repack(draw(st.sampled_from(seeds)), {"document.npy": lambda old: _swap_document(draw, old)})


def _swap_document(draw: st.DrawFn, old: bytes) -> bytes:
    """Returns the .npy of a JSON document that is another one."""
    import numpy as np

    document = draw(odd_json([np.load(BytesIO(old)).tobytes()]))
    stream = BytesIO()
    np.save(stream, np.frombuffer(document, np.uint8))
    return stream.getvalue()


def _repack(content: bytes, changes: Mapping[str, Callable[[bytes], bytes]]) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, changes.get(name, bytes)(old.read(name)))
    return packed.getvalue()


def _keys(home: Path) -> st.SearchStrategy[Files]:
    names = ("private.pem", "public.pem", f"{readers.BUILD}/manifest.sig")
    contents = [_read(home, name) for name in names]
    return st.sampled_from(names).flatmap(lambda name: _in(name, damage([_read(home, name), *contents])))


@st.composite
def _folder(draw: st.DrawFn, home: Path) -> Files:
    """Draws a build folder of which a file is damaged; mostly the manifest is made to fit it again."""
    build = home / readers.BUILD
    name = draw(st.sampled_from([*_SEALED, "manifest.json", "manifest.json"]))
    content = _read(build, name)
    new = draw(odd_json([content]) if name.endswith(".json") else odd_model([content]))
    files = {f"{readers.BUILD}/{name}": new}
    if draw(st.integers(0, 4)) == 0:
        return files
    manifest = new if name == "manifest.json" else _read(build, "manifest.json")
    try:
        document = json.loads(manifest)
        document.pop("sha256", None)
        if name != "manifest.json":
            document["outputs"][name] = hashlib.sha256(new).hexdigest()
        rest = json.dumps(document, indent=1).encode() + b"\n"
    except (ValueError, AttributeError, RecursionError, TypeError):
        return files
    own = hashlib.sha256(rest).hexdigest().encode()
    return {
        **files,
        f"{readers.BUILD}/manifest.json": rest.replace(b"{\n", b'{\n "sha256": "%s",\n' % own, 1),
    }


def _dataset(home: Path) -> st.SearchStrategy[Files]:
    arrow, state = "saved/data-00000-of-00001.arrow", "saved/state.json"
    return _in(arrow, damage([_read(home, arrow)])) | _in(state, odd_json([_read(home, state)]))


@st.composite
def _checkpoints(draw: st.DrawFn, home: Path) -> Files:
    name = draw(st.sampled_from(["weights.pt", "weights.safetensors"]))
    seeds = [_read(home, name)]
    zipped = damage_members(seeds, seeds) if name.endswith(".pt") else damage(seeds)
    return {name: draw(damage(seeds) | zipped)}


@st.composite
def _program(draw: st.DrawFn, home: Path) -> bytes:
    """Draws an exported program that is damaged, or of which a JSON document is another one."""
    content = _read(home, "module.pt2")
    if draw(st.booleans()):
        return draw(damage([content]) | damage_members([content], [b"{}"]))
    with zipfile.ZipFile(BytesIO(content)) as archive:
        name = draw(st.sampled_from([name for name in archive.namelist() if name.endswith(".json")]))
    return _repack(content, {name: lambda old: draw(odd_json([old]))})
