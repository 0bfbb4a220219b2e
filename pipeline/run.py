"""The engine of a build folder on the data of a user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trtq.calibrators.arrays import pack_arrays
from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.errors import UsageError
from trtq.files import check_output, write_atomically
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec
from trtq.models.toml import read_table
from trtq.numbers import format_count
from trtq.pipeline.engine.feeds import BatchRun, join_runs, settle
from trtq.pipeline.load import LoadedEngine, load
from trtq.progress import Watcher, choose_watcher

_USUAL_BATCH = 8


@dataclass(frozen=True)
class RunOutcome:
    """What an engine gave for some data.

    Attributes:
        folder: Of the build.
        file: Of the folder, that was run: the engine, or an ONNX model.
        backend: That ran it, with its version.
        data: What was run on.
        num_samples: How many there were.
        output: The `.npz` file with the outputs; empty: none was written.
        outputs: The arrays by name, samples along the first axis.
    """

    folder: str
    file: str
    backend: str
    data: str
    num_samples: int
    output: str
    outputs: Mapping[str, NDArray[Any]] = field(repr=False)


def run(
    folder: Path | str,
    data: str,
    *,
    output: Path | str | None = None,
    samples: int | None = None,
    name: str | None = None,
    backend: str | None = None,
    key: Path | str | None = None,
    watcher: Watcher | None = None,
) -> RunOutcome:
    """Runs a build on data, returns the outputs, and writes them to a file if one is given.

    Args:
        folder: The build folder; or an index.
        data: Input data, in any format of calibration data. Images are preprocessed as for the build.
        output: The `.npz` file to write, one array per output; it is written atomically.
        samples: Use only this many, rounded up to whole batches; None: all.
        name: As for `load`.
        backend: As for `load`.
        key: As for `load`.
        watcher: Receives the progress.

    Raises:
        DataError: The data does not fit, or an output cannot be concatenated over the runs.
        UsageError, ArtifactError, MissingDependency: As for `load`; or the output cannot be written.
    """
    watcher = choose_watcher(watcher)
    if samples is not None and samples < 1:
        raise UsageError(f"samples must be at least 1, got {samples}")
    if output is not None:
        _check_output(Path(output), Path(folder), data)
    watcher.stage("Loading")
    with load(folder, name=name, key=key, backend=backend) as engine:
        if engine.report.verdict == "fail":
            watcher.warn(f"the accuracy gate of {folder} failed; see its report.html")
        batches = _open_data(engine, data).first(samples)
        if batches.left_out and samples is None:
            watcher.warn(
                f"the last {format_count(batches.left_out, 'sample')} of {data} do not fill a batch of "
                "the model's fixed size and are not run"
            )
        watcher.stage("Running", batches.num_samples)
        outputs, count = _collect(engine, batches, watcher)
    if output is not None:
        write_atomically(Path(output), pack_arrays(outputs))
    return RunOutcome(
        str(engine.folder),
        "model.engine" if engine.onnx is None else engine.onnx.name,
        f"{engine.backend.name} {engine.backend.version()}",
        batches.origin,
        count,
        "" if output is None else str(output),
        outputs,
    )


def _check_output(output: Path, folder: Path, data: str) -> None:
    if output.suffix != ".npz":
        raise UsageError(f"outputs are written as .npz, got {output}; name a file that ends so")
    check_output(output, folder, data)


def _open_data(engine: LoadedEngine, data: str) -> Batches:
    """Returns the data in batches as the engine usually takes them; it may have labels beside the inputs."""
    labels = engine.manifest.find_setting("model", "evaluation", "labels")
    preprocess = engine.manifest.find_setting("model", "preprocess")
    return open_batches(
        data,
        [_without_batch(spec, engine) for spec in engine.inputs],
        engine.signature.batch[1] or _USUAL_BATCH,
        preprocess=read_table(Preprocess, preprocess or {}, "[preprocess]"),
        extra=(labels,) if isinstance(labels, str) and labels else (),
    )


def _without_batch(spec: TensorSpec, engine: LoadedEngine) -> TensorSpec:
    """Returns an input that takes any number of samples, since `LoadedEngine.run` splits and fills up."""
    is_batched = spec.name in engine.signature.batched
    return replace(spec, shape=(None, *spec.shape[1:])) if is_batched else spec


def _collect(engine: LoadedEngine, batches: Batches, watcher: Watcher) -> tuple[dict[str, NDArray[Any]], int]:
    """Returns the outputs for all samples, and how many there were."""
    signature, runs = engine.signature, list[BatchRun]()
    for feed in batches:
        given = {spec.name: feed.arrays[spec.name] for spec in engine.inputs}
        signature = settle(signature, given)
        runs.append(BatchRun(engine.run(given), feed.num_samples, feed.num_samples))
        watcher.advance(feed.num_samples)
    if len(runs) == 1:
        return dict(runs[0].outputs), runs[0].count
    outputs = join_runs(signature, runs, "run the feeds one by one in Python, with trtq.load(...).run(...)")
    return outputs, sum(run.count for run in runs)
