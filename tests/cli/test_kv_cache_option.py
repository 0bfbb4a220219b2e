"""`--kv-cache`: the cache of a decoder in codes, from the command line and from Python."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cached_decoder import PAIRS, write_data, write_decoder
from command_line import trtq

import trtq as package
from trtq.errors import UsageError
from trtq.pipeline.engine.strategy import choose_rest
from trtq.pipeline.engine.target import Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install 'trtq[rtx]'",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder, data with a past and without one, and a text."""
    folder = tmp_path_factory.mktemp("decoder")
    write_decoder(folder / "m.onnx")
    write_data(folder / "past.npz", 5)
    write_data(folder / "empty.npz", 0)
    np.save(folder / "text.npy", np.random.default_rng(3).integers(0, 64, (2, 24)))
    return folder


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_cache_alone_is_quantized_and_compared_in_use(folder: Path, form: str) -> None:
    model, made = folder / "m.onnx", folder / f"m.{form}-cache.onnx"
    done = trtq("quantize", model, "--kv-cache", form, "--calib-data", folder / "past.npz", "--json")
    answer = json.loads(done.stdout)
    assert (answer["path"], answer["kv_cache"].keys()) == (str(made), PAIRS.keys())
    for data, verdict in (("past", "pass"), ("empty", "unverified")):
        told = json.loads(trtq("compare", model, made, "--data", folder / f"{data}.npz", "--json").stdout)
        assert told["verdict"] == verdict
        cosines = {item["output"]: item["cosine"] for item in told["outputs"]}
        assert cosines.keys() >= {"logits", *PAIRS.values()}
        assert 0.999 < min(cosines.values()) < 1
    text = ("--token-ids", folder / "text.npy", "--window", 8, "--stride", 2)
    told = json.loads(trtq("compare", model, made, *text, "--json").stdout)
    assert 0 < told["kl_nats"] < 0.01
    result = trtq("compare", model, made, "--prompt-ids", folder / "text.npy", "--generate", 2)
    assert result.exit_code == 0


def test_ranges_hold_the_caches_that_calibrate_was_told_of(folder: Path) -> None:
    model, data, ranges = folder / "m.onnx", folder / "past.npz", folder / "ranges.json"
    how = ("--calib-method", "minmax", "--output", ranges, "-q")
    trtq("calibrate", model, "--calib-data", data, *how)
    lacking = trtq("quantize", model, "--ranges", ranges, "--kv-cache", "int8")
    assert "the ranges hold nothing for tensor 'present_0_key'" in lacking.stderr
    trtq("calibrate", model, "--calib-data", data, *how, "--kv-cache", "int8")
    done = trtq("quantize", model, "--ranges", ranges, "--kv-cache", "int8", "--json")
    amax = float(np.abs(np.load(data)["past_key_values_0_key"]).max())
    scale = json.loads(done.stdout)["kv_cache"]["past_key_values_0_key"]
    assert scale == pytest.approx(amax / 127, rel=1e-3)


def test_data_without_a_use_is_refused(folder: Path) -> None:
    result = trtq("quantize", folder / "m.onnx", "--weights", "int8", "--calib-data", folder / "past.npz")
    assert "and for --kv-cache without --ranges; nothing else here reads data" in result.stderr


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("tensorrt-rtx", marks=needs_rtx)])
def test_a_build_is_judged_with_its_cache(folder: Path, backend: str) -> None:
    report = package.build(
        folder / "m.onnx",
        folder / "past.npz",
        fp16=True,
        kv_cache="int8",
        backend=backend,
        output=folder / backend,
    )
    assert (report.verdict, report.precision) == ("pass", "int8-cache")
    assert report.kv_cache is not None
    assert (report.kv_cache.format, report.kv_cache.scales.keys()) == ("int8", PAIRS.keys())
    judged = "engine" if backend == "onnxruntime" else "int8-cache"
    found = {item.name: item.cosine for item in report.comparison if item.candidate == judged}
    assert 0.999 < found["logits"] < 1
    assert 0.999 < found["present_0_key"] < 1
    taken = package.load(folder / backend, backend="onnxruntime").inputs
    assert [item.dtype for item in taken] == ["int64", "int8", "int8"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"min_speedup": 1.1}, "--min-speedup times both models on the same inputs, which --kv-cache int8"),
        ({"kv_cache": "int4"}, "kv_cache takes int8, fp8, got 'int4'"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, options: dict[str, Any], told: str) -> None:
    given: dict[str, Any] = {"kv_cache": "int8", "backend": "onnxruntime", **options}
    with pytest.raises(UsageError, match=f"^{told}"):
        package.plan_build(folder / "m.onnx", folder / "past.npz", **given)


def test_a_quantized_model_is_refused(folder: Path) -> None:
    trtq("quantize", folder / "m.onnx", "--kv-cache", "int8", "--calib-data", folder / "past.npz", "-q")
    result = trtq("build", folder / "m.int8-cache.onnx", "--kv-cache", "int8", "--backend", "onnxruntime")
    assert "is quantized already; --kv-cache needs the float model" in result.stderr


def test_a_cache_alone_leaves_the_rest_to_be_chosen() -> None:
    target = Target(precision="fp16", kv_cache="int8", high_precision="fp32")
    assert choose_rest(target).name == "fp32"
    assert (target.name, target.needs_data) == ("int8-cache", True)
