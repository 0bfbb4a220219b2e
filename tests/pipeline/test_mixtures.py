"""Mixtures of weight formats that fit a GPU: what is proposed, and that it is what quantizing gives."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import trtq

from trtq.models.spec import LayerSpec, ModelSpec
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import load
from trtq.pipeline.plan import MemoryPlan, plan_model
from trtq.pipeline.plan.mixture import Mixture, list_mixtures
from trtq.pipeline.quantize import quantize

_LARGE, _SMALL = 402_400_000, 402_010_000
_IN_8_BITS = ("embed|wte|wpe", "attn|attention|[qkvo]_proj|qkv|query|key|value")


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """An embedding, a product of attention, two of a perceptron and a head."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (int64[N, 4] ids) => (float[N, 4, 1024] y) {
            [embed] e = Gather (we, ids) [attn] a = MatMul (e, wa) [up] u = MatMul (a, wu)
            [act] r = Relu (u) [down] d = MatMul (r, wd) [lm_head] y = MatMul (d, wh)
        }"""
    )
    rng = np.random.default_rng(0)
    shapes = {"we": (1024, 256), "wa": (256, 256), "wu": (256, 1024), "wd": (1024, 256), "wh": (256, 1024)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(model, tmp_path / "decoder.onnx")
    return tmp_path / "decoder.onnx"


def _plan(decoder: Path, memory: int) -> MemoryPlan:
    return plan_model(decoder, gpu_memory_bytes=memory)


def _list(decoder: Path) -> list[Mixture]:
    return [*list_mixtures(load(decoder, min_opset=13).model, 64, ())]


def test_the_bits_go_first_that_are_missed_least(decoder: Path) -> None:
    assert [str(item).removeprefix("head FP16, ") for item in _list(decoder)] == [
        "embeddings FP16, attention FP16, rest INT8",
        "embeddings INT8, attention FP16, rest INT8",
        "embeddings INT8, attention INT8, rest INT8",
        "embeddings INT8, attention INT8, rest INT4",
        "embeddings INT4, attention INT8, rest INT4",
        "embeddings INT4, attention INT4, rest INT4",
        "head INT8, embeddings INT4, attention INT4, rest INT4",
    ]
    assert [item.is_uniform for item in _list(decoder)] == [False, False, True, False, False, True, True]


def test_the_first_that_fits_is_proposed(decoder: Path) -> None:
    found = _plan(decoder, _LARGE).mixture
    assert found is not None
    assert found.memory is not None
    again = _plan(decoder, found.memory.total_bytes)
    less = _plan(decoder, found.memory.total_bytes - 1)
    assert str(again.mixture) == str(found) == str(_list(decoder)[0])
    assert str(less.mixture) == str(_list(decoder)[1])


def test_a_mixture_takes_what_quantizing_gives(decoder: Path, tmp_path: Path) -> None:
    for memory in (_LARGE, _SMALL):
        mixture = _plan(decoder, memory).mixture
        assert mixture is not None
        spec = ModelSpec(layers=LayerSpec(skip=mixture.skip))
        target = Target(precision="weights", weights=mixture.scheme)
        written = quantize(decoder, None, tmp_path / "out.onnx", spec=spec, target=target)
        held = sum(len(item.raw_data) for item in onnx.load(written).graph.initializer)
        assert mixture.memory is not None
        assert mixture.memory.weights_bytes == pytest.approx(held, rel=0.001)


def test_the_command_of_a_mixture_builds_it(decoder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", ids=np.random.default_rng(0).integers(0, 1024, (8, 4)))
    mixture = _plan(decoder, _SMALL).mixture
    assert mixture is not None
    words = shlex.split(mixture.command)[1:]
    data = ["--calib-data", tmp_path / "data.npz", "--backend", "onnxruntime", "--output", tmp_path / "out"]
    result = trtq(*words, *data)
    assert "run with INT4 weights, 1 of 1 with INT8 weights" in result.stdout
    assert "4 weights in INT4, INT8 (mse, blocks of 64)" in result.stdout
    dry = json.loads(trtq(*words, *data, "--dry-run", "--json").stdout)
    named = [word for word in shlex.split(dry["command"]) if "=" in word]
    assert named == [f"{pattern}=int8" for pattern in _IN_8_BITS]


def test_nothing_is_mixed_where_all_fits_or_nothing_does(decoder: Path) -> None:
    assert _plan(decoder, 10**9).mixture is None
    assert _plan(decoder, 400_100_000).mixture is None
    assert plan_model(decoder).mixture is None


def test_the_table_shows_the_mixture_and_its_command(decoder: Path) -> None:
    lines = trtq("plan", decoder, "--gpu-memory", str(_LARGE)).stdout.splitlines()
    assert lines[-2].startswith("or a mixture, 402.")
    assert lines[-2].endswith(" in all: head FP16, embeddings FP16, attention FP16, rest INT8")
    assert lines[-1].startswith(f"  trtq build {decoder} --weights int8 --skip 'embed|wte|wpe' --skip ")
    document = json.loads(trtq("plan", decoder, "--gpu-memory", str(_LARGE), "--json").stdout)
    assert document["mixture"]["command"] == lines[-1].strip()
