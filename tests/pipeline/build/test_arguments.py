"""Tests of a build as Python calls it: options as keywords, models and data that are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from small_builds import spec_of

from trtq.cli import main
from trtq.errors import DataError, UsageError
from trtq.models.spec import LayerSpec, ModelSpec
from trtq.pipeline.build import build
from trtq.pipeline.build.arguments import _SHAPES, _list_keywords, _list_parameters, _place, gather_arguments
from trtq.pipeline.build.dry import plan_build
from trtq.pipeline.engine.profiles import GivenShapes
from trtq.pipeline.engine.target import Target
from trtq.pipeline.formats.scheme import WeightScheme

QUICK: dict[str, Any] = {
    "backend": "onnxruntime", "calib_method": "minmax", "repair": "none", "activations": "symmetric",
}  # fmt: skip


def gathered(small: Path, data: Any = None, **options: Any) -> Any:
    return gather_arguments(small, data, None, None, None, options)


def test_every_option_of_the_command_is_a_keyword() -> None:
    command = main.get_command(click.Context(main), "build")
    assert command is not None
    options = [item for item in command.params if isinstance(item, click.Option)]
    names = {next(opt for opt in item.opts if opt.startswith("--"))[2:].replace("-", "_") for item in options}
    others = {"output", "random_data", "sign_key", "summary", "junit", "mlflow"}  # parameters of their own
    others |= {"spec", "trust", "dry_run", "json", "quiet", "verbose", "workers", "worker_cpus"}
    others |= {"share_ranges", "earlier", "take_shared"}  # of build-all
    assert names - others == {*_list_keywords(), *_SHAPES, *_list_parameters()}


def test_keywords_become_settings_and_the_target(small: Path) -> None:
    found = gathered(
        small, "data.npz", calib_samples=8, percentile=99.5, min_cosine=1, skip="^a,b", keep_fp32=["c"],
        op_types="Conv,Gemm", int8=True, compute_capability="8.9", timing_cache=str(small.parent / "t"),
        opt_shapes={"x": [2, 3, 8, 8]}, max_shapes="x:4x3x8x8",
    )  # fmt: skip
    assert found.model == small
    assert found.spec.calibration.data == "data.npz"
    assert (found.spec.calibration.method, found.spec.calibration.parameters) == (
        "percentile",
        {"percentile": 99.5},
    )
    assert found.spec.accuracy.min_cosine == 1
    assert found.spec.layers == LayerSpec(skip=("^a,b",), keep_fp32=("c",))
    assert (found.target.op_types, found.target.compute_capabilities) == (("Conv", "Gemm"), ("8.9",))
    assert found.target.options.timing_cache == small.parent / "t"
    assert found.target.shapes == GivenShapes(opt={"x": (2, 3, 8, 8)}, max={"x": (4, 3, 8, 8)})


def test_keywords_stand_in_place_of_what_the_settings_say(small: Path) -> None:
    (small.parent / "model.toml").write_text('[layers]\nskip = ["^a"]\n[accuracy]\nmin_cosine = 0.5\n')
    assert gathered(small).spec is None  # it is read where the build begins
    found = gathered(small, skip=["^b"]).spec
    assert (found.layers.skip, found.accuracy.min_cosine) == (("^a", "^b"), 0.5)
    spec, target = ModelSpec(), Target(backend="onnxruntime")
    options = {"weights": "int4", "block_size": 32, "fp16": True}
    own = gather_arguments(small, None, None, spec, target, options)
    assert own.spec == spec
    weights = WeightScheme("int4", "mse", 32)
    assert own.target == replace(target, precision="weights", weights=weights, high_precision="fp16")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"skp": "a"}, r"^build has no option 'skp'; did you mean skip\?$"),
        ({"zzz": 1}, r"^build has no option 'zzz'; use those of `trtq build --help`$"),
        ({"min_cosine": "high"}, r"^min_cosine takes float, got 'high'$"),
        ({"skip": 3}, r"^skip takes texts, or one, got 3$"),
        ({"op_types": ["Conv", 1]}, r"^op_types takes texts, or one, got \['Conv', 1\]$"),
        ({"min_shapes": {"x": "1xa"}}, r"^shapes are a dict of sizes by input, or name:1x3x224x224, got"),
        ({"int8": 1}, r"^int8 takes bool, got 1$"),
        ({"calib_samples": True}, r"^calib_samples takes int, got True$"),
        ({"calib_device": "tpu"}, r"^calib_device takes cpu, cuda, got 'tpu'$"),
        ({"int8": True, "fp8": True}, r"^--int8 and --fp8 contradict each other"),
        ({"block_size": 32}, r"^--block-size is for weights of fewer bits; give --weights too$"),
    ],
)
def test_what_is_no_option_or_value_is_told(options: dict[str, Any], told: str, small: Path) -> None:
    with pytest.raises(UsageError, match=told):
        gathered(small, **options)


def test_a_build_in_one_line_is_that_of_specs(small: Path) -> None:
    data = small.parent / "data.npz"
    plan = plan_build(small, data, skip=["^second"], **QUICK)
    quick = spec_of(small, "minmax", skip=("^second",))
    spec = replace(quick, quantization=replace(quick.quantization, activations="symmetric"))
    assert plan == plan_build(small, spec=spec, target=Target(backend="onnxruntime"))
    assert build(small, data, skip=["^second"], min_cosine=0.5, **QUICK).verdict == "pass"


@pytest.mark.parametrize("read", [onnx.load, ir.load])
def test_models_and_arrays_in_memory_are_saved_beside_the_output(
    read: Callable[[Path], Any], small: Path, tmp_path: Path
) -> None:
    with np.load(small.parent / "data.npz") as arrays:
        x = arrays["x"]
    output = tmp_path / "out" / "net.trtq"
    output.parent.mkdir()
    report = build(read(small), x, output=output, **QUICK)
    assert {path.name for path in output.parent.iterdir()} == {"net.given.onnx", "net.given.npy", "net.trtq"}
    assert report.model == str(output.with_name("net.given.onnx"))
    assert report.calibration is not None
    assert report.calibration.samples == 16
    assert report.calibration.data == str(output.with_name("net.given.npy"))
    assert build(read(small), x, output=output, **QUICK).reused == ("everything",)


@pytest.mark.parametrize("shape", [dict, list, "lists"])
def test_data_may_be_arrays_by_name_or_feeds(shape: Any, small: Path) -> None:
    x = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    data: Any = {"x": x} if shape is dict else ({"x": part} for part in (x[:2], x[2:]))
    if shape == "lists":
        data = [{"x": list(x)}]
    path = gathered(small, data).spec.calibration.data
    assert path == str(small.with_name("small.given.npz"))
    with np.load(path) as saved:
        np.testing.assert_array_equal(saved["x"], x)


def test_what_is_saved_beside_outputs_of_two_versions_has_two_names(tmp_path: Path) -> None:
    names = ("net.v1", "net.v2", "net.v2.trtq", "net.v1.engine")
    found = [_place(tmp_path / name, ".given.onnx").name for name in names]
    assert found == [f"net.{version}.given.onnx" for version in ("v1", "v2", "v2", "v1")]


def test_a_loader_is_read_at_every_pass_and_not_saved(small: Path) -> None:
    class Loader:
        def __iter__(self) -> Iterator[NDArray[np.float32]]:
            yield np.ones((2, 3, 8, 8), np.float32)

    loader = Loader()
    assert gathered(small, loader).spec.calibration.data is loader
    assert gathered(small, loader.__iter__).spec.calibration.data == loader.__iter__
    assert not list(small.parent.glob("*.given.*"))


@pytest.mark.parametrize(
    ("model", "data", "error", "told"),
    [
        (3, None, UsageError, r"^a model is the path of an ONNX file, an onnx\.ModelProto .* got int$"),
        (onnx.ModelProto(), None, UsageError, r"^a model in memory needs an output, such as"),
        ("m.onnx", 3, DataError, r"^data is a path, an array, a dict of arrays or an iterable of dicts, got"),
        ("m.onnx", [], DataError, r"^an iterable of data must yield dicts of arrays, all with the same"),
        ("m.onnx", [{"a": 1}, {"b": 1}], DataError, r"must yield dicts of arrays, all with the same"),
        ("m.onnx", [{"a": 1}], DataError, r"^the arrays 'a' of the data cannot be joined along their first"),
        ("m.onnx", {"a": [[1, 2], [3]]}, DataError, r"^'a' of the data .*inhomogeneous"),
        ("m.onnx", {"a": [object()]}, DataError, r"^'a' of the data is list, no array of numbers"),
        (
            "m.onnx",
            repeat({"a": [1]}),
            DataError,
            r"^the iterable of data has yielded 20,000 feeds and may never",
        ),
    ],
)
def test_what_cannot_be_a_model_or_data_is_told(model: Any, data: Any, error: Any, told: str) -> None:
    with pytest.raises(error, match=told):
        gather_arguments(model, data, None, ModelSpec(), None, {})


def test_a_model_in_memory_that_is_too_large_for_one_file_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, **_: object) -> bytes:
        raise ValueError("exceeds 2 GiB")

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", refuse)
    with pytest.raises(UsageError, match=r"^the model cannot be written as one file; save it, and give"):
        gather_arguments(onnx.ModelProto(), None, tmp_path / "m.trtq", None, None, {})
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_pictures_are_a_text_a_list_or_one(small: Path) -> None:
    spec = gathered(small, mean="0.5,0.25", std=[1, 2], resize=8, channels="BGR").spec
    assert (spec.preprocess.mean, spec.preprocess.std, spec.preprocess.resize) == (
        (0.5, 0.25),
        (1.0, 2.0),
        (8,),
    )
    with pytest.raises(UsageError, match=r"^mean takes numbers, got \['a'\]$"):
        gathered(small, mean="a")


def test_a_feed_counts_as_it_was_yielded(small: Path) -> None:
    def feeds() -> Iterator[dict[str, NDArray[np.float32]]]:
        x = np.ones((1, 2), np.float32)
        yield {"x": x}
        x[...] = 9
        yield {"x": x}

    with np.load(str(gathered(small, feeds()).spec.calibration.data)) as saved:
        np.testing.assert_array_equal(saved["x"], [[1, 1], [9, 9]])


def test_a_value_of_another_kind_is_told_shortly(small: Path) -> None:
    with pytest.raises(UsageError, match=r"^labels takes str, got array\(\[0, 0.{0,20}\.\.\..{0,20}$"):
        gathered(small, labels=np.zeros(999, int))
