"""Builds as runs of MLflow, in a store of files."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import trtq as run_trtq

import trtq
from trtq.pipeline.deliver.tracking import list_metrics, list_params

KEPT = Path(__file__).resolve().parents[2] / "data" / "kept" / "report-2.json"


def test_what_is_logged_has_names_that_mlflow_takes_and_finite_numbers() -> None:
    report = trtq.read_report(KEPT)
    nan = replace(report.comparison[0], cosine=float("nan"), output="a:b[0]")
    metrics = dict(list_metrics(replace(report, comparison=(nan, *report.comparison[1:]))))
    assert metrics["score/int8"] == report.accuracy["int8"]
    assert metrics["layers_quantized"] == report.engine.layers_quantized
    assert not any("a:b" in name for name in metrics)
    assert f"sqnr_db/{nan.candidate}-{nan.reference}/a_b_0_" in metrics
    settings = {"target": {"options": {"level": 3, "none": None}, "names": []}, "long": "x" * 600}
    params = dict(list_params(report, settings))
    assert params["target.options.level"] == "3"
    assert (len(params["long"]), "target.names" in params) == (500, False)
    assert params["precision"] == "int8"


def test_what_is_missing_is_told_before_any_work(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_trtq("build", demo_folder / "model.onnx", "--int8", "--mlflow", " ")
    assert (result.exit_code, "the model has no name to be registered by" in result.stderr) == (2, True)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    result = run_trtq("build", demo_folder / "model.onnx", "--int8", "--mlflow", "net")
    assert (result.exit_code, "pip install 'trtq[mlflow]'" in result.stderr) == (5, True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'trtq[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    return tmp_path / "runs"


@pytest.mark.slow
def test_a_build_is_a_run_with_its_folder_and_a_version_of_a_model(
    store: Path, demo_onnxruntime: Path, tmp_path: Path
) -> None:
    import mlflow

    folder = shutil.copytree(demo_onnxruntime, tmp_path / "demo")
    build = ("build", folder / "model.onnx", "--int8", "--backend", "onnxruntime", "--mlflow", "net")
    result = run_trtq(*build)
    assert result.exit_code == 0, result.output
    client = mlflow.MlflowClient()
    version = client.get_model_version("net", "1")
    run = client.get_run(version.run_id)
    assert f"run {version.run_id}, version 1 of net\n" in result.stdout
    report = trtq.read_report(folder / "model.trtq")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["score/int8"] == pytest.approx(report.accuracy["int8"])
    assert run.data.params["target.backend"] == "onnxruntime"
    assert run.data.tags["trtq.verdict"] == version.tags["trtq.verdict"] == report.verdict
    names = {Path(item.path).name for item in client.list_artifacts(version.run_id, "build")}
    assert names == {path.name for path in (folder / "model.trtq").iterdir()}

    assert run_trtq(*build, "--min-cosine", "1").exit_code == 3
    assert len(client.search_model_versions("name='net'")) == 1
    experiment = client.get_experiment_by_name("trtq")
    failed = client.search_runs([experiment.experiment_id], "tags.`trtq.verdict` = 'fail'")
    assert len(failed) == 1

    refused = replace(report, output=str(folder / "model.trtq"))
    with pytest.raises(trtq.ArtifactError, match=r"^MLflow at file:.* refuses: "):
        trtq.log_build(refused, "a/b:c")
