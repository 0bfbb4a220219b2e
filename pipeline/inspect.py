"""What a file is, for people: an ONNX model, ranges, a calibration cache, a build folder or an index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trtq.calibrators.cache import CalibrationCache, parse_cache
from trtq.calibrators.ranges import Ranges, read_ranges
from trtq.errors import ArtifactError, UsageError
from trtq.files import read_file
from trtq.models.session import count_weight_bytes
from trtq.models.signature import TensorSpec
from trtq.pipeline.calibrate.data import find_spec, place_layers
from trtq.pipeline.deliver.index import Index, is_index, read_index
from trtq.pipeline.deliver.manifest import NAME, Manifest, read_manifest
from trtq.pipeline.deliver.names import ENGINE_SUFFIXES, REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.graph.placement import Placement
from trtq.pipeline.graph.quantized import QuantizedLayer, find_quantized_layers
from trtq.pipeline.verify import verify
from trtq.progress import Silent


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """An ONNX model, as a build would see it.

    Attributes:
        path: The file.
        sha256: Of the file and its external data, as hex.
        inputs: With their dtypes and shapes; open dims are names.
        outputs: Likewise.
        opset: As in the file.
        weight_bytes: Of all initializers, after loading.
        op_types: How many nodes of each type.
        quantized_layers: Those that come quantized, so that they can run in INT8.
        placement: What a build would quantize, and what comes quantized.
        notes: What loading changed.
    """

    path: str
    sha256: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weight_bytes: int
    op_types: Mapping[str, int]
    quantized_layers: tuple[QuantizedLayer, ...]
    placement: Placement
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FolderSummary:
    """A build folder.

    Attributes:
        manifest: What it says.
        report: What it says.
        intact: Whether every file is as it was built, and no other one is there.
        problems: Which are not, in one line.
    """

    manifest: Manifest
    report: Report
    intact: bool
    problems: str = ""


Summary = ModelSummary | FolderSummary | Ranges | CalibrationCache | Index


def inspect(path: Path | str) -> Summary:
    """Returns what a file or folder holds.

    Raises:
        ModelError, ArtifactError: It is of the kind that its name says, and broken.
        UsageError: It is of no kind that trtq knows, or does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no file {path}")
    if path.is_dir():
        found = verify(path)
        report = read_report(path / REPORT)
        return FolderSummary(read_manifest(path), report, found.is_intact, found.problems)
    if path.suffix == ".onnx":
        return _model(path)
    if path.name in (NAME, REPORT):
        return inspect(path.parent)
    if path.suffix == ".json":
        return read_index(path) if is_index(path) else read_ranges(path)
    try:
        return parse_cache(read_file(path))
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except ArtifactError as error:
        if path.suffix in ENGINE_SUFFIXES:
            told = "is an engine, which TensorRT alone reads; inspect its build folder"
            raise UsageError(f"{path} {told}") from error
        raise UsageError(
            f"{path} is none of the files that trtq knows: an .onnx model, a ranges or index .json, a "
            f"calibration cache, a build folder ({error})"
        ) from error


def _model(path: Path) -> ModelSummary:
    graph = load(path, min_opset=1)
    return ModelSummary(
        str(path),
        graph.sha256,
        graph.opset,
        graph.inputs,
        graph.outputs,
        count_weight_bytes(graph.model),
        dict(Counter(node.op_type for node in graph.model.graph).most_common()),
        find_quantized_layers(graph.model),
        place_layers(graph, find_spec(path, trust=True), Target(), Silent()),
        graph.notes,
    )
