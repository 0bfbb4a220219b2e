"""A build folder as a model of DeepStream's nvinfer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.files import copy_atomically, hash_file, read_file, write_atomically
from trtq.models.preprocess import Preprocess, describe
from trtq.models.toml import read_table
from trtq.pipeline.deliver.deepstream import (
    CLASSIFIER,
    CONFIG,
    LABELS,
    MODES,
    OTHER,
    format_config,
    list_picture_differences,
    list_picture_properties,
    read_picture_size,
)
from trtq.pipeline.deliver.names import CACHE, ENGINE
from trtq.pipeline.package.source import BuiltModel, read_build

_COMMENT = "Written by trtq package. nvinfer computes y = net-scale-factor * (x - offsets), x from 0 to 255."


@dataclass(frozen=True, slots=True)
class DeepStreamPackage:
    """What was written.

    Attributes:
        folder: Where it is.
        files: The names of the files there; the last is the configuration.
        notes: What to know of it.
    """

    folder: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def package_deepstream(
    folder: Path | str,
    target: Path | str,
    *,
    labels: Path | str | None = None,
    key: Path | str | None = None,
    ignore_gate: bool = False,
) -> DeepStreamPackage:
    """Returns what was written for DeepStream's nvinfer: a configuration beside what it names.

    Pictures are prepared as the settings of the build say ([preprocess]).

    Args:
        folder: Of the build.
        target: A folder for the files, made if there is none; files of the same names are replaced.
        labels: A file with the names of the classes, one a line; None: there are none.
        key: A public Ed25519 key in PEM that must have signed the build; None: signatures are not checked.
        ignore_gate: Whether a build may be packaged whose gate failed.

    Raises:
        ArtifactError: The folder is no build, was changed since, or is not signed by the key; nvinfer cannot
            do what the build's pictures got, or cannot run its model; a file cannot be read or written.
        GateError: The build's gate failed.
        UsageError, DataError: The key or the settings do not fit.
        MissingDependency: A key is given without `cryptography`.
    """
    build = read_build(Path(folder), key, ignore_gate=ignore_gate)
    steps = read_table(Preprocess, build.manifest.find_setting("model", "preprocess") or {}, "[preprocess]")
    if len(build.inputs) != 1:
        found = ", ".join(repr(spec.name) for spec in build.inputs)
        raise ArtifactError(f"{build.folder} has the inputs {found}; nvinfer feeds one, with images")
    (given,) = build.inputs
    profile = build.profiles.get(given.name)
    size = read_picture_size(given, steps, profile.opt if profile else ())
    files, properties = _list_model(build)
    batch = given.shape[0] if isinstance(given.shape[0], int) else build.usual_batch
    names = None if labels is None else _read_labels(Path(labels))
    properties |= {
        "batch-size": str(batch),
        "network-mode": str(MODES.get(build.report.precision, MODES["fp16"])),
        **list_picture_properties(steps, size),
        "output-blob-names": ";".join(spec.name for spec in build.outputs),
        **_list_outputs(build, names),
        "gie-unique-id": "1",
        "process-mode": "1",
    }
    notes = [f"the build is {build.report.verdict}"] if build.report.verdict != "pass" else []
    notes += [f"image preprocessing: {describe(steps)}", *list_picture_differences(steps, size)]
    notes += _list_conditions(build, files)
    between = (
        ";" if properties["network-type"] == str(CLASSIFIER) else "\n"
    )  # a line an attribute, or a class
    texts = {LABELS: f"{between.join(names)}\n"} if names else {}
    _write(Path(target), build, files, {**texts, CONFIG: format_config(properties, [_COMMENT])})
    written = (*files, *texts, CONFIG)
    return DeepStreamPackage(str(target), written, tuple(notes))


def _list_model(build: BuiltModel) -> tuple[list[str], dict[str, str]]:
    """Returns the files of the model, and how the configuration names them.

    Beside an engine no ONNX file is named: nvinfer would build another engine of it in silence where it
    cannot read this one, and nobody has judged that.
    """
    if build.has_plan and not build.is_rtx:
        return [ENGINE], {"model-engine-file": ENGINE}
    outputs, precision = build.manifest.outputs, build.report.precision
    if precision not in MODES or (precision == "int8" and CACHE not in outputs):
        raise ArtifactError(
            f"{build.folder} has no engine that DeepStream's TensorRT reads, and from the ONNX file of a "
            f"build in {precision.upper()} nvinfer builds none in that format; build with --backend tensorrt "
            f"in DeepStream's container"
        )
    data = [name for name in (f"{build.onnx}.data",) if name in outputs]
    named = {"onnx-file": build.onnx}
    if precision != "int8":
        return [build.onnx, *data], named
    return [build.onnx, *data, CACHE], named | {"int8-calib-file": CACHE}


def _list_outputs(build: BuiltModel, names: list[str] | None) -> dict[str, str]:
    """Returns what nvinfer does with the outputs: it knows scores of classes, and else hands them on."""
    scores = build.outputs[0].shape
    is_classifier = bool(build.report.accuracy) and build.report.metric == "top-1"
    if not (is_classifier and len(build.outputs) == 1 and len(scores) == 2):
        named = {"labelfile-path": LABELS} if names else {}
        return {"network-type": str(OTHER), "output-tensor-meta": "1", **named}
    if names and isinstance(scores[1], int) and len(names) != scores[1]:
        raise ArtifactError(
            f"there are {len(names)} labels for the {scores[1]} classes of {build.outputs[0].name!r}"
        )
    named = {"labelfile-path": LABELS} if names else {}
    return {"network-type": str(CLASSIFIER), "classifier-threshold": "0", **named}


def _list_conditions(build: BuiltModel, files: list[str]) -> list[str]:
    if ENGINE in files:
        targets = ", ".join(build.report.engine.targets) or "that of the machine it was built on"
        needed = f"{build.report.backend} in DeepStream, and a GPU of compute capability {targets}"
        return [f"the engine needs {needed}"]
    found = [f"nvinfer builds an engine from {build.onnx} when it starts, which the gate has not seen"]
    if CACHE in files:
        found.append(
            f"without {CACHE} nvinfer of TensorRT 10 and older would build in FP16; TensorRT 11 reads none"
        )
    return found


def _read_labels(path: Path) -> list[str]:
    try:
        names = read_file(path).decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"cannot read the labels {path}: {error}") from error
    found = [name.strip() for name in names if name.strip()]
    if not found or any(";" in name for name in found):
        raise ArtifactError(f"{path} must hold the names of the classes, one per line, without ';'")
    return found


def _write(target: Path, build: BuiltModel, files: list[str], texts: Mapping[str, str]) -> None:
    """Writes the files, each compared with its digest, and then the texts."""
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write to {target}: {error.strerror or error}") from error
    for name in files:
        source = build.source(name)
        copy_atomically(source.path, target / name)
        if hash_file(target / name) != source.sha256:
            raise ArtifactError(f"the copy of {source.path} in {target} is damaged; look at the disk")
    for name, text in texts.items():
        write_atomically(target / name, text.encode())
