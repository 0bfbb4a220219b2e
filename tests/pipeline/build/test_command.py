"""Tests of the command line that a build tells: given to trtq, it asks for the same build."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtq.calibrators import METHODS
from trtq.cli import build as build_command
from trtq.cli.options import Given
from trtq.cli.targets import read_target
from trtq.models.option import list_options
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec
from trtq.models.spec import (
    AccuracySpec,
    CalibrationSpec,
    EvaluationSpec,
    InputSpec,
    LayerSpec,
    ModelSpec,
    OperatorSpec,
    ProfileSpec,
    QuantizationSpec,
)
from trtq.pipeline.build.command import format_command
from trtq.pipeline.build.job import Job
from trtq.pipeline.engine.backend import BuilderOptions
from trtq.pipeline.engine.profiles import GivenShapes, resolve_profiles
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.scheme import WeightScheme


def job_of(spec: ModelSpec, target: Target, **more: Any) -> Job:
    """Returns as much of a job as makes its command."""
    values = {"ranges": None, "sources": {}, "is_random": False, **more}
    graph = SimpleNamespace(path=Path("no such/net.onnx"))
    return cast(Job, SimpleNamespace(graph=graph, spec=spec, target=target, folder=Path("/out"), **values))


def read(command: str) -> tuple[ModelSpec, Target, dict[str, Any]]:
    """Returns what `trtq build` makes of a command line."""
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("trtq", "build")
    ctx = build_command.command.make_context("build", arguments)
    found = ctx.ensure_object(Given)
    values = {**ctx.params, "random_data": found.random_data}
    return found.read_spec(ctx.params["model"]), read_target(found), values


SPECS = [
    ModelSpec(),
    ModelSpec(
        calibration=CalibrationSpec("my data.npz", "mse", {"num_candidates": 9, "smallest": 0.125}, 64),
        evaluation=EvaluationSpec("eval.npz", "labels", "logits", 99),
        accuracy=AccuracySpec(0.9, 2.5, "metric.py:f1"),
        layers=LayerSpec(("^/head/", "it's"), ("exp",), ("gate$",)),
    ),
    ModelSpec(
        calibration=CalibrationSpec(
            "d", "percentile", {"percentile": 99.5}, batch_size=2, device="cuda", memory_bytes=7
        )
    ),
    ModelSpec(
        calibration=CalibrationSpec(parameters={"num_bins": 512, "num_levels": 64, "max_clipped": 0.01})
    ),
    ModelSpec(quantization=QuantizationSpec(("bias", "weights"), "per-tensor", "asymmetric")),
    ModelSpec(
        preprocess=Preprocess((480, 640), mean=(0.5,), layout="NHWC", exif=True, frame_step=5),
        operators=OperatorSpec(("a,b.so",), ("c.so", "d.so")),
    ),
]
TARGETS = [
    Target(),
    Target(precision="fp16"),
    Target(
        high_precision="fp32",
        backend="onnxruntime",
        compute_capabilities=("8.9", "12.0"),
        workspace_bytes=1 << 30,
        shapes=GivenShapes({"in:0": (1, 3)}, {"in:0": (2, 3), "b": ()}, {"it's": (4,)}),
        op_types=("Conv", "Attention"),
        quantization="implicit",
        options=BuilderOptions(Path("timing.cache"), 4, "ampere+", True),
        requantize=True,
    ),
    Target(auto=True, quantization="explicit"),
    Target(formats=("int8", "fp8", "fp16"), compute_capabilities=("8.9",)),
    Target(precision="weights", weights=WeightScheme("int4", "gptq", 32, keep_sensitive=False)),
    Target(precision="weights", weights=WeightScheme("nf4", double_quantization=True)),
    Target(weights=WeightScheme("int8")),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_command_asks_for_the_same(spec: ModelSpec, target: Target) -> None:
    found_spec, found_target, given = read(format_command(job_of(spec, target)))
    assert (found_spec, found_target) == (spec, target)
    assert (str(given["model"]), str(given["output"]), given["random_data"]) == (
        "no such/net.onnx",
        "/out",
        False,
    )


@settings(deadline=None, max_examples=30)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
        lambda text: text[0] != "-"
    )
)
def test_any_path_survives_the_shell(data: str) -> None:
    spec = ModelSpec(calibration=CalibrationSpec(data))
    assert read(format_command(job_of(spec, Target())))[0] == spec


def test_random_data_is_asked_for_again() -> None:
    assert read(format_command(job_of(ModelSpec(), Target(), is_random=True)))[2]["random_data"] is True


def test_what_auto_chose_is_left_to_it() -> None:
    job = job_of(ModelSpec(layers=LayerSpec(("^mine$",))), Target(auto=True), kept={"chosen": "harm"})
    assert read(format_command(job))[0].layers.skip == ("^mine$",)


def test_profiles_of_the_settings_become_options_and_given_ones_win() -> None:
    spec = ModelSpec(inputs={"x": InputSpec((1,), (2,), (3,)), "y": InputSpec((4,), (4,), (4,))})
    target = Target(shapes=GivenShapes(max={"x": (9,)}))
    shapes = read(format_command(job_of(spec, target)))[1].shapes
    assert shapes == GivenShapes({"y": (4,)}, {"y": (4,)}, {"y": (4,), "x": (9,)})


def test_the_command_asks_for_the_same_profiles() -> None:
    further = tuple(ProfileSpec((size,), (size,), (size,)) for size in (5, 6))
    inputs = {
        "x": InputSpec((1,), (2,), (3,), profiles=further),
        "y": InputSpec((4,), (4,), (4,), profiles=further[1:]),
    }
    ports = [TensorSpec(name, "float32", ("N",)) for name in inputs]
    for given_shapes in (
        GivenShapes(),
        GivenShapes(opt={"x": (9,)}),
        GivenShapes(profiles=({"y": further[0]},)),
    ):
        wanted = resolve_profiles(ports, given_shapes, inputs, {})
        command = format_command(job_of(ModelSpec(inputs=inputs), Target(shapes=given_shapes)))
        assert resolve_profiles(ports, read(command)[1].shapes, {}, {}) == wanted


def test_a_migration_names_its_cache() -> None:
    job = job_of(ModelSpec(), Target(high_precision="fp32"), ranges=object(), sources={"old.cache": "ab"})
    assert shlex.split(format_command(job)) == [
        "trtq", "migrate", "no such/net.onnx", "old.cache", "--high-precision", "fp32", "--output", "/out",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings_of", "beside"),
    [
        (CalibrationSpec, {"parameters"}),
        (QuantizationSpec, set()),
        (EvaluationSpec, set()),
        (AccuracySpec, set()),
        (LayerSpec, set()),
        *((method, set()) for method in METHODS.values()),
        (BuilderOptions, set()),
        (Target, {"precision", "shapes", "options", "weights"}),
    ],
)
def test_every_setting_has_its_option(settings_of: type, beside: set[str]) -> None:
    names = {item.name for item in fields(settings_of)}
    assert names == {*list_options(settings_of), *beside}


def test_defaults_make_the_shortest_command() -> None:
    job = job_of(replace(ModelSpec(), calibration=CalibrationSpec("d.npz")), Target())
    assert format_command(job) == "trtq build 'no such/net.onnx' --int8 --calib-data d.npz --output /out"
