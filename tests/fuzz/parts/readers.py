"""The public functions that read files, each for the files of one folder."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import trtq
from trtq.calibrators.cache import format_cache, read_cache, replace_header
from trtq.json import FileKind
from trtq.pipeline.bench.benchmark import FILE as BENCHMARK
from trtq.pipeline.deliver.earlier import find_earlier
from trtq.pipeline.deliver.html.page_data import FILE as TENSORS
from trtq.pipeline.deliver.manifest import FILE as MANIFEST
from trtq.pipeline.deliver.manifest import read_manifest
from trtq.pipeline.deliver.report import FILE as REPORT
from trtq.pipeline.graph.cache_ranges import place_from_cache
from trtq.pipeline.graph.load import Graph, load
from trtq.pipeline.judge.sensitivity import FILE as SENSITIVITY
from trtq.pipeline.migrate import FILE as MIGRATION
from trtq.pipeline.migrate.removed.scripts import check_scripts

MODEL, BUILD = "model.onnx", "net.trtq"
KINDS: dict[str, FileKind[object]] = {  # ranges are read with the rest of them
    "bench-1.json": BENCHMARK,  # type: ignore[dict-item]
    "manifest-1.json": MANIFEST,  # type: ignore[dict-item]
    "migration-1.json": MIGRATION,  # type: ignore[dict-item]
    "report-1.json": REPORT,  # type: ignore[dict-item]
    "sensitivity-1.json": SENSITIVITY,  # type: ignore[dict-item]
    "tensors-1.json": TENSORS,  # type: ignore[dict-item]
}
"""What is in tests/data/kept, by name."""


def inspect_model(folder: Path) -> None:
    trtq.inspect(folder / MODEL)


def lint_model(folder: Path) -> None:
    trtq.lint(folder / MODEL)


def plan_model(folder: Path) -> None:
    trtq.plan_model(folder / MODEL)


def build_model(folder: Path) -> None:
    shutil.rmtree(folder / "built", ignore_errors=True)
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    target = trtq.Target(backend="onnxruntime")
    trtq.build(folder / MODEL, spec=spec, target=target, output=folder / "built", random_data=True)


def observe_data(folder: Path, name: str) -> None:
    spec = trtq.ModelSpec(calibration=trtq.CalibrationSpec(data=str(folder / name)))
    trtq.observe(folder / MODEL, spec=spec)


observe_npz = functools.partial(observe_data, name="data.npz")
observe_npy = functools.partial(observe_data, name="data.npy")
observe_feeds = functools.partial(observe_data, name="feeds")
observe_images = functools.partial(observe_data, name="images")
observe_tar = functools.partial(observe_data, name="data.tar")
observe_parquet = functools.partial(observe_data, name="data.parquet")
observe_dataset = functools.partial(observe_data, name="saved")
observe_video = functools.partial(observe_data, name="data.avi")
observe_polygraphy = functools.partial(observe_data, name="data.json")


def compare_with_labels(folder: Path) -> None:
    data, labels = str(folder / "data.npz"), str(folder / "labels.npy")
    spec = trtq.ModelSpec(evaluation=trtq.EvaluationSpec(data=data, labels=labels))
    trtq.compare(folder / MODEL, folder / MODEL, spec=spec)


def read_settings(folder: Path) -> None:
    trtq.format_spec(trtq.read_spec(folder / "settings" / "model.toml"))


def read_builds(folder: Path) -> None:
    from trtq.cli.build_file import read_builds as read

    read(folder / "trtq.toml")


def quantize_with_ranges(folder: Path) -> None:
    trtq.quantize(folder / MODEL, trtq.read_ranges(folder / "ranges.json"), folder / "out.onnx")


def estimate_from_statistics(folder: Path) -> None:
    statistics = trtq.read_statistics(folder / "statistics.npz")
    trtq.estimate_ranges(statistics, spec=trtq.ModelSpec())
    trtq.merge_statistics([statistics], ["statistics.npz"])


def read_kind(folder: Path, name: str) -> None:
    KINDS[name].read(folder / name)


def read_calibration_cache(folder: Path) -> None:
    path = folder / "calibration.cache"
    cache = read_cache(path)
    if cache.algorithm is not None and cache.version is not None:
        format_cache(cache)
    replace_header(path.read_bytes(), version=8601, algorithm="EntropyCalibration2")
    place_from_cache(_load_model(str(folder / MODEL)), cache, str(path))


def inspect_cache(folder: Path) -> None:
    trtq.inspect(folder / "calibration.cache")


@functools.cache
def _load_model(path: str) -> Graph:
    return load(Path(path), min_opset=13)


def verify_signature(folder: Path) -> None:
    trtq.verify(folder / BUILD, key=folder / "public.pem")


def sign_build(folder: Path) -> None:
    trtq.sign(folder / BUILD, folder / "private.pem")


def use_index(folder: Path) -> None:
    path = folder / "index.json"
    trtq.inspect(path)
    trtq.verify_index(path)
    trtq.load(path, name="cpu", backend="onnxruntime")


def inspect_build(folder: Path) -> None:
    trtq.inspect(folder / BUILD)


def load_build(folder: Path) -> None:
    with trtq.load(folder / BUILD).runner("any"):
        pass


def run_build(folder: Path) -> None:
    trtq.run(folder / BUILD, str(folder / "data.npz"), samples=8, backend="onnxruntime")


def report_build(folder: Path) -> None:
    trtq.report(folder / BUILD)


def report_sensitivity(folder: Path) -> None:
    trtq.report(folder / BUILD, folder / "sensitivity.json")


def build_again(folder: Path) -> None:
    """Finds out what of the build may be used again."""
    found = find_earlier(folder / BUILD, read_manifest(folder / BUILD).keys)
    assert found is None or found.same


def package_build(folder: Path) -> None:
    """Packages the build beside what is in the repository."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        repository = Path(place) / "repository"
        shutil.copytree(folder / "repository", repository)
        trtq.package(folder / BUILD, repository)


def search_scripts(folder: Path) -> None:
    check_scripts(folder / "scripts")
    check_scripts(folder / "scripts" / "calibrate.py")


def load_checkpoint(folder: Path) -> None:
    import torch

    from trtq.models.checkpoint import load_weights

    for name in ("weights.pt", "weights.safetensors"):
        load_weights(torch.nn.Linear(4, 4), folder / name)


def load_exported_program(folder: Path) -> None:
    from trtq.models.program import load_program, open_module

    open_module(load_program(folder / "module.pt2", trust=False))
