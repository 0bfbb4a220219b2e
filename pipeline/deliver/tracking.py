"""A build as a run of MLflow: parameters, metrics, artifacts, and a version of a registered model."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq import lazy
from trtq.errors import ArtifactError, UsageError, quote
from trtq.json import to_plain
from trtq.pipeline.deliver.integrity import read_whole_manifest
from trtq.pipeline.deliver.report import Report

_EXPERIMENT = "trtq"
_PLACE = "build"
"""The folder of the artifacts."""
_NO_NAME = re.compile(r"[^\w./ -]", re.ASCII)
"""What MLflow takes in no name of a metric or parameter."""
_MOST_VALUE = 500
"""Characters that every MLflow takes in a parameter."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Where a build was logged.

    Attributes:
        server: The tracking URI.
        run_id: Of the run.
        version: Of the registered model; empty where the gate failed, which registers nothing.
    """

    server: str
    run_id: str
    version: str


def require_mlflow(name: str) -> Any:
    """Returns the module of MLflow, so that it is told before any work what is missing.

    Args:
        name: Of the registered model.

    Raises:
        MissingDependency: MLflow is not installed.
        UsageError: The model has no name.
    """
    if not name.strip():
        raise UsageError("the model has no name to be registered by; give --mlflow NAME")
    return lazy.require("mlflow", "mlflow", "logging to MLflow")


def log_build(report: Report, name: str) -> TrackedRun:
    """Logs a build to MLflow, and registers it as the next version of a model unless its gate failed.

    The server is that of MLFLOW_TRACKING_URI, the experiment that of MLFLOW_EXPERIMENT_NAME or "trtq".

    Args:
        report: Of a build whose folder is there.
        name: Of the registered model.

    Raises:
        MissingDependency: MLflow is not installed.
        ArtifactError: The folder is not what was built, or MLflow refuses.
        UsageError: The model has no name.
    """
    mlflow = require_mlflow(name)
    folder = Path(report.output)
    settings = read_whole_manifest(folder).settings
    try:
        return _log(mlflow, report, folder, settings, name)
    except mlflow.exceptions.MlflowException as error:
        raise ArtifactError(f"MLflow at {mlflow.get_tracking_uri()} refuses: {quote(error)}") from error


def _log(mlflow: Any, report: Report, folder: Path, settings: Mapping[str, Any], name: str) -> TrackedRun:
    client = mlflow.MlflowClient()
    tags = {"trtq.verdict": report.verdict, "trtq.model": report.model, "mlflow.runName": folder.name}
    run = client.create_run(_find_experiment(mlflow, client), tags=tags)
    run_id = run.info.run_id
    try:
        for key, value in list_params(report, settings):
            client.log_param(run_id, key, value)
        for key, number in list_metrics(report):
            client.log_metric(run_id, key, number)
        client.log_artifacts(run_id, str(folder), _PLACE)
        version = "" if report.verdict == "fail" else _register(mlflow, client, run, name, report)
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id)
    return TrackedRun(str(mlflow.get_tracking_uri()), run_id, version)


def _find_experiment(mlflow: Any, client: Any) -> str:
    """Returns the experiment that the environment names, made if there is none."""
    name = mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get() or _EXPERIMENT
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _register(mlflow: Any, client: Any, run: Any, name: str, report: Report) -> str:
    """Returns the version that the build becomes of a model, which is made if there is none."""
    try:
        client.create_registered_model(name)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source, tags = f"{run.info.artifact_uri}/{_PLACE}", {"trtq.verdict": report.verdict}
    return str(client.create_model_version(name, source, run.info.run_id, tags=tags).version)


def list_params(report: Report, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields what the build was made with: the report's heads, and every setting by its path."""
    for name in ("model", "precision", "high_precision", "backend"):
        yield name, str(getattr(report, name))
    for path, value in _flatten(to_plain(settings), ()):
        yield _NO_NAME.sub("_", ".".join(path)), str(value)[:_MOST_VALUE]


def list_metrics(report: Report) -> Iterator[tuple[str, float]]:
    """Yields what came of it: scores, cosines, SQNR in dB, layers, bytes, seconds, speed."""
    found: dict[str, float | None] = {
        **{f"score/{name}": score for name, score in report.accuracy.items()},
        "quantized_macs": report.quantized_macs,
        "layers_quantized": float(report.engine.layers_quantized),
        "layers_realized": float(report.engine.num_realized),
        "evaluated_samples": float(report.evaluated_samples),
        **{f"bytes/{name}": float(count) for name, count in report.sizes_bytes.items()},
        **{f"seconds/{name}": seconds for name, seconds in report.timings_s.items()},
        "speedup": None if report.speed is None else report.speed.ratio,
    }
    for item in report.comparison:
        pair = f"{item.candidate}-{item.reference}/{item.name}"
        found |= {f"cosine/{pair}": item.cosine, f"sqnr_db/{pair}": item.sqnr_db}
    for key, number in found.items():
        if number is not None and math.isfinite(number):
            yield _NO_NAME.sub("_", key), number


def _flatten(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields the values of nested mappings with their paths; what is empty or None says nothing."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, (*path, str(key)))
    elif value not in (None, [], ""):
        yield path, value
