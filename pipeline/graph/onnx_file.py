"""An ONNX file, read and checked, and as it is otherwise."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from trtq.errors import ModelError, TrtqError, quote
from trtq.files import is_file, update_hash
from trtq.models.modules import name_after_modules
from trtq.pipeline.graph.checker import copy_for_checker
from trtq.pipeline.graph.tidy import (
    check_attributes,
    check_tensor,
    list_tensors,
    tidy,
)

_SIZE = re.compile("[0-9]{1,19}")


def read_model(path: Path) -> ir.Model:
    """Returns the model of an ONNX file, checked and else as it is; weights in other files stay there.

    Raises:
        ModelError: The file is missing, empty, no ONNX, incomplete or invalid.
    """
    return check(read_proto(path), path)


def read_proto(path: Path) -> onnx.ModelProto:
    """Returns the protobuf of an ONNX file, without its external data.

    Raises:
        ModelError: There is no such file, or it is no ONNX model with a graph.
    """
    return _parse(_read_content(path), path)


def _read_content(path: Path) -> bytes:
    """Returns the bytes of a file that is not empty; ModelError says what is wrong with it."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a folder; give the .onnx file in it")
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is a device, a pipe or a socket, not a file; name an .onnx file")
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read the model {path}: {quote(error)}") from error
    if not content:
        raise ModelError(f"{path} is empty; export the model again")
    return content


def _parse(content: bytes, path: Path) -> onnx.ModelProto:
    """Returns the protobuf in the bytes of a file; ModelError if it is none with a graph and outputs."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{path} is not an ONNX model, or is cut short: {error}") from error
    if not proto.graph.node and not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it holds no graph")
    if not proto.graph.output:
        raise ModelError(f"{path}: the graph has no outputs, so there is nothing to build")
    return proto


def digest(files: Sequence[Path]) -> str:
    """Returns the SHA-256 of a model's file and of those of its external data, as hex.

    Raises:
        ModelError: One cannot be read.
    """
    sha = hashlib.sha256()
    for path in files:
        try:
            update_hash(sha, path)
        except OSError as error:
            raise ModelError(f"cannot read the model {path}: {quote(error)}") from error
    return sha.hexdigest()


def check(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """Returns the model of a file, after the checks of ONNX; ModelError if one fails.

    Args:
        proto: Of the file; some of it is tidied up.
        path: The file, for its external data.
    """
    external = list_external(proto)
    _refuse_maps(proto)
    _refuse_newer_opset(proto, path)
    check_attributes(proto, path)
    for tensor in list_tensors(proto):
        check_tensor(tensor, path)
    for tensor, where in external:
        _check_external(tensor, where, path)
    try:
        tidy(proto, path)
        onnx.checker.check_model(copy_for_checker(proto))
        model = ir.from_proto(proto)
    except TrtqError:
        raise
    except Exception as error:  # of the checker and of the reader, which have no list of them
        raise ModelError(f"{path} is not a valid ONNX model: {quote(error.__cause__ or error)}") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    name_after_modules(model.graph)
    return model


def _refuse_maps(proto: onnx.ModelProto) -> None:
    """Refuses inputs and outputs that are maps, as classifiers of scikit-learn have; onnx-ir reads none.

    Raises:
        ModelError: There is such an input or output.
    """
    for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            if value.type.HasField("map_type") or value.type.sequence_type.elem_type.HasField("map_type"):
                raise ModelError(
                    f"{kind} {value.name!r} is a map or a sequence of maps; trtq and TensorRT take tensors "
                    "only"
                )


def _refuse_newer_opset(proto: onnx.ModelProto, path: Path) -> None:
    """Refuses an opset whose operators nobody here knows."""
    newest = onnx.defs.onnx_opset_version()
    for item in proto.opset_import:
        if item.domain in ("", "ai.onnx") and item.version > newest:
            raise ModelError(
                f"{path} is in opset {item.version}, and the newest that onnx {onnx.__version__} knows is "
                f"{newest}; export the model with that opset or an older one, or install a newer onnx"
            )


def _check_external(tensor: onnx.TensorProto, where: Mapping[str, str], path: Path) -> None:
    location = where.get("location", "")
    data = path.parent / location
    if not is_beside(location):
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r}, outside of the model's "
            "folder; save the model again, with its weights next to it"
        )
    if not is_file(data):
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r}, which is not next to the "
            f"model; copy that file to {path.parent}"
        )
    whole = math.ceil(math.prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
    offset, length = where.get("offset", "0"), where.get("length", str(whole))
    if not (_SIZE.fullmatch(offset) and _SIZE.fullmatch(length)):
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r} at byte {offset!r} with length "
            f"{length!r}, which are no numbers; export the model again"
        )
    if int(length) < whole:
        raise ModelError(
            f"{path}: the weights of {tensor.name!r} lie in {location!r} with length {length}, but their "
            f"shape takes {whole} bytes; export the model again"
        )
    end = int(offset) + int(length)
    if data.stat().st_size < end:
        raise ModelError(
            f"{path}: external data {location!r} has {data.stat().st_size} bytes, "
            f"the weights of {tensor.name!r} end at byte {end}; copy the whole file"
        )


def is_beside(location: str) -> bool:
    """Returns whether a location of external data stays in the folder of the model."""
    return not PurePath(location).is_absolute() and ".." not in PurePath(location).parts


def list_data_files(proto: onnx.ModelProto, path: Path) -> list[str]:
    """Returns the names of the files beside a model that hold its weights, without what `check` refuses.

    A device among them never ends, so that none is to be read.
    """
    names = sorted({str(where.get("location")) for _, where in list_external(proto)})
    return [name for name in names if is_beside(name) and is_file(path.parent / name)]


def list_model_files(path: Path, *outputs: Path | None) -> list[Path]:
    """Returns a model's file and those of its weights, which no output may take the place of.

    The weights are looked for only where one of these outputs is there already. What is no model has none;
    that is told by whatever reads it.
    """
    if not any(output is not None and is_file(output) for output in outputs):
        return [path]
    try:
        proto = read_proto(path)
    except ModelError:
        return [path]
    return [path, *(path.parent / name for name in list_data_files(proto, path))]


def list_external(proto: onnx.ModelProto) -> list[tuple[onnx.TensorProto, dict[str, str]]]:
    """Returns the tensors that lie in other files, and what is said of where."""
    tensors = (item for item in list_tensors(proto) if item.data_location == onnx.TensorProto.EXTERNAL)
    return [(tensor, {entry.key: entry.value for entry in tensor.external_data}) for tensor in tensors]
