"""Tests of what the builder asks of TensorRT 8.6, 10 and 11, over a double that records it in the plan."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtq.errors import ArtifactError, BuildError, ModelError, UsageError
from trtq.models.spec import InputSpec, ProfileSpec
from trtq.pipeline.engine.backend import BuilderOptions, BuildRequest, Precision
from trtq.pipeline.engine.builder import build, combine_network_flags
from trtq.pipeline.engine.process import Flavour, to_json

OLD, TEN, ELEVEN = "8.6.1", "10.16.1.11", "11.4.0.106"
Module = Callable[[str], str]
FLOAT = BuildRequest(Path("never read"))
_TWO_CONVS = """
    g (float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y, int64[4] size) {
        [first] h = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1)
        [act] r = Relu (h)
        [measure] size = Shape (r)
        [second] y = Conv <kernel_shape = [1, 1]> (r, w2)
    }"""


@pytest.fixture
def model(path_of: Callable[..., Path]) -> Path:
    return path_of(_TWO_CONVS, w1=np.ones((8, 3, 3, 3), np.float32), w2=np.ones((4, 8, 1, 1), np.float32))


@pytest.fixture
def ask(model: Path, tmp_path: Path, tensorrt_module: Module) -> Callable[..., dict[str, Any]]:
    """Returns the answer of a version to a request, with `plan`, the record, where there is one."""

    def answer(version: str, request: BuildRequest = FLOAT, **further: Any) -> dict[str, Any]:
        module = tensorrt_module(version)
        request = request if request.model != FLOAT.model else replace(request, model=model)
        asked = {**to_json(Flavour(module, f"TensorRT {version}", inspects=True), request), **further}
        (tmp_path / "plan").unlink(missing_ok=True)
        found = build(importlib.import_module(module), asked, tmp_path)
        if (tmp_path / "plan").exists():
            found["plan"] = json.loads((tmp_path / "plan").read_bytes())
        return found

    return answer


Ask = Callable[..., dict[str, Any]]


# Flags


@pytest.mark.parametrize(
    ("version", "precisions", "flags"),
    [
        (OLD, (), 0b01),
        (OLD, ("int8", "fp16"), 0b01),
        (TEN, (), 0b11),
        (TEN, ("int8",), 0b01),
        (ELEVEN, (), 0),
    ],
)
def test_networks_are_strongly_typed_where_the_types_of_the_graph_rule(
    version: str, precisions: tuple[Precision, ...], flags: int, ask: Ask, tensorrt_module: Module
) -> None:
    assert combine_network_flags(importlib.import_module(tensorrt_module(version)), precisions) == flags
    record = ask(version, replace(FLOAT, precisions=precisions))["plan"]
    assert record["network_flags"] == flags
    assert record["flags"] == [name.upper() for name in precisions]


def test_a_plain_request_sets_nothing_but_the_verbosity(ask: Ask, model: Path) -> None:
    record = ask(ELEVEN)["plan"]
    layers = record.pop("layers")
    assert [layer["Name"] for layer in layers] == ["first", "act", "measure", "second"]
    assert record == {
        "model": str(model),
        "network_flags": 0,
        "flags": [],
        "pools": {},
        "profiles": [],
        "shape_inputs": [],
        "verbosity": "DETAILED",
        "optimization_level": None,
        "hardware_compatibility": None,
        "calibration": None,
        "calibration_profile": None,
        "kept": {},
        "plugins": [],
    }


def test_every_option_reaches_the_configuration(ask: Ask) -> None:
    options = BuilderOptions(
        optimization_level=0, hardware_compatibility="same-compute-capability", version_compatible=True
    )
    record = ask(TEN, replace(FLOAT, workspace_bytes=1 << 30, options=options))["plan"]
    assert record["pools"] == {"WORKSPACE": 1 << 30}
    assert record["optimization_level"] == 0
    assert record["hardware_compatibility"] == "SAME_COMPUTE_CAPABILITY"
    assert record["flags"] == ["VERSION_COMPATIBLE"]


def test_a_hardware_compatibility_that_the_version_has_not_is_answered(ask: Ask) -> None:
    new = replace(FLOAT, options=BuilderOptions(hardware_compatibility="same-compute-capability"))
    with pytest.raises(
        UsageError,
        match=r"^TensorRT 8\.6\.1 has no hardware compatibility same-compute-capability; leave it out",
    ):
        ask(OLD, new)
    usual = replace(FLOAT, options=BuilderOptions(hardware_compatibility="ampere+"))
    assert ask(OLD, usual)["plan"]["hardware_compatibility"] == "AMPERE_PLUS"


def test_an_engine_tells_of_its_layers(ask: Ask) -> None:
    answer = ask(TEN)
    assert [layer["Name"] for layer in json.loads(answer["inspector"])["Layers"]] == [
        "first", "act", "measure", "second",
    ]  # fmt: skip


# Failures


def test_the_log_has_warnings_on_one_line_and_nothing_less(ask: Ask, tmp_path: Path) -> None:
    ask(TEN)
    assert (tmp_path / "build.log").read_text() == "WARNING: a recorded build\n"


def test_a_null_builder_is_answered(
    ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    def null(logger: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = importlib.import_module(tensorrt_module(TEN))
    monkeypatch.setattr(module, "Builder", null)
    request = to_json(Flavour("tensorrt", "TensorRT", inspects=True), FLOAT)
    with pytest.raises(BuildError, match=r"^TensorRT gives no builder; see nvidia-smi$"):
        build(module, request, Path(module.__file__ or "").parent)


def test_what_the_parser_refuses_is_answered_node_by_node(ask: Ask, path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[8] x) => (float[N] y) { [distinct] y = Unique (x) }")
    with pytest.raises(
        ModelError,
        match=r"does not take this model: node 'distinct' \(Unique\): this operator is not supported$",
    ):
        ask(TEN, BuildRequest(path))


def test_more_than_eight_refusals_of_the_parser_are_counted(ask: Ask, path_of: Callable[..., Path]) -> None:
    nodes = "".join(f"[n{number}] y{number} = Unique (x) " for number in range(11))
    path = path_of(f"g (float[8] x) => (float[N] y0) {{ {nodes} }}")
    with pytest.raises(ModelError, match=r"node 'n7' \(Unique\): [a-z ]*; and 3 more$"):
        ask(TEN, BuildRequest(path))


def test_a_build_that_fails_is_answered(
    ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch, model: Path, tmp_path: Path
) -> None:
    module = importlib.import_module(tensorrt_module(TEN))
    monkeypatch.setattr(module.Builder, "build_serialized_network", lambda *_: None)
    request = to_json(Flavour("tensorrt", "TensorRT", inspects=True), BuildRequest(model))
    with pytest.raises(BuildError, match=rf"^TensorRT could not build {model.name}$"):
        build(module, request, tmp_path)
    assert not (tmp_path / "plan").exists()


# Profiles


def test_profiles_take_shapes_and_values_of_shape_inputs(ask: Ask, path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N, 6] x, int64[2] size) => (float[A, B] y) { [r] y = Reshape (x, size) }")
    profiles = {"x": InputSpec((1, 6), (2, 6), (4, 6)), "size": InputSpec((1, 6), (2, 6), (4, 6))}
    record = ask(TEN, BuildRequest(path, profiles))["plan"]
    assert record["profiles"] == [{"x": [[1, 6], [2, 6], [4, 6]]}]
    assert record["shape_inputs"] == [{"size": [[1, 6], [2, 6], [4, 6]]}]


def test_several_profiles_are_added_in_their_order(ask: Ask, path_of: Callable[..., Path]) -> None:
    path = path_of("g (float[N,6] x) => (float[N,6] y) { y = Relu (x) }")
    further = (ProfileSpec((8, 6), (8, 6), (8, 6)),)
    profiles = {"x": InputSpec((1, 6), (2, 6), (4, 6), profiles=further)}
    record = ask(TEN, BuildRequest(path, profiles))["plan"]
    assert record["profiles"] == [{"x": [[1, 6], [2, 6], [4, 6]]}, {"x": [[8, 6], [8, 6], [8, 6]]}]


def test_profiles_that_tensorrt_refuses_fail(ask: Ask) -> None:
    wrong = {"x": {"min": [4, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [8, 3, 8, 8]}}
    with pytest.raises(BuildError, match="could not build"):
        ask(TEN, profiles=[wrong])


# Layers that are bound to a precision


@pytest.mark.parametrize("version", [OLD, TEN])
def test_kept_nodes_are_bound_with_their_outputs(version: str, ask: Ask) -> None:
    kept: Any = {"first": "fp16", "second": "fp32", "measure": "fp32"}
    record = ask(version, replace(FLOAT, precisions=("int8", "fp16"), kept=kept))["plan"]
    assert record["kept"] == {"first": ["HALF", ["HALF"]], "second": ["FLOAT", []]}  # y is an output
    assert record["flags"] == ["INT8", "FP16", "OBEY_PRECISION_CONSTRAINTS"]
    told = {layer["Name"]: layer["Weights"]["Type"] for layer in record["layers"]}
    assert told == {"first": "Half", "act": "Half", "measure": "Half", "second": "Float"}


def test_a_layer_without_metadata_goes_by_its_name(
    ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(tensorrt_module(TEN))
    parse = module.OnnxParser.parse_from_file

    def without_metadata(parser: Any, path: str) -> bool:
        parsed: bool = parse(parser, path)
        for layer in parser._network.layers:
            layer.metadata = ""
        return parsed

    monkeypatch.setattr(module.OnnxParser, "parse_from_file", without_metadata)
    record = ask(TEN, replace(FLOAT, precisions=("int8",), kept={"first": "fp32"}))["plan"]
    assert record["kept"] == {"first": ["FLOAT", ["FLOAT"]]}


# The timing cache


def _timed(path: Path) -> BuildRequest:
    return replace(FLOAT, options=BuilderOptions(timing_cache=path))


@pytest.mark.parametrize("version", [OLD, TEN, ELEVEN])
@pytest.mark.parametrize("before", [None, b""])
def test_a_new_timing_cache_is_written(version: str, before: bytes | None, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    if before is not None:
        path.write_bytes(before)
    ask(version, _timed(path))
    assert path.read_bytes() == b"timings|act,first,measure,second"


def test_an_older_timing_cache_is_added_to(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"timings|another,first")
    ask(TEN, _timed(path))
    assert path.read_bytes() == b"timings|act,another,first,measure,second"


def test_what_another_build_wrote_meanwhile_is_kept(
    ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"timings|before")
    _write_during_the_build(tensorrt_module, monkeypatch, path, b"timings|before,meanwhile")
    ask(TEN, _timed(path))
    assert path.read_bytes() == b"timings|act,before,first,meanwhile,measure,second"


@pytest.mark.parametrize("content", [b"no cache at all", b"timings of another GPU|conv"])
def test_a_foreign_or_broken_timing_cache_is_refused_and_left_alone(
    content: bytes, ask: Ask, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"^{path} is not a timing cache of TensorRT 10\.16\.1\.11 on this"):
        ask(TEN, _timed(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"no cache at all", b"timings of another GPU|conv"])
def test_a_timing_cache_that_became_foreign_meanwhile_keeps_the_engine_and_warns(
    content: bytes, ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    _write_during_the_build(tensorrt_module, monkeypatch, path, content)
    assert "inspector" in ask(TEN, _timed(path))
    assert path.read_bytes() == content
    assert (tmp_path / "build.log").read_text().splitlines()[-1] == (
        f"WARNING: the timing cache was not saved: {path} has become one of another TensorRT or GPU"
    )


def test_a_folder_that_vanished_keeps_the_engine_and_warns(
    ask: Ask, tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "folder" / "timing.cache"
    path.parent.mkdir()
    request = _timed(path)
    path.parent.rmdir()
    assert "inspector" in ask(TEN, request)
    log = (tmp_path / "build.log").read_text()
    assert "WARNING: the timing cache was not saved: [Errno 2] No such file or directory" in log


def test_a_timing_cache_that_cannot_be_read_is_answered(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").mkdir()
    with pytest.raises(ArtifactError, match=r"^cannot read the timing cache .*\.cache: Is a directory$"):
        ask(TEN, _timed(tmp_path / "timing.cache"))


def test_a_builder_that_gives_no_timings_leaves_the_file(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("recording_tensorrt.StrictConfig.get_timing_cache", lambda _: None)
    path = tmp_path / "timing.cache"
    path.write_bytes(b"timings|before")
    assert "inspector" in ask(TEN, _timed(path))
    assert path.read_bytes() == b"timings|before"


def test_without_a_file_no_timing_cache_is_made(ask: Ask, tmp_path: Path) -> None:
    ask(TEN)
    assert not list(tmp_path.glob("*.cache"))


def _write_during_the_build(
    tensorrt_module: Module, monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes
) -> None:
    module = importlib.import_module(tensorrt_module(TEN))
    real = module.Builder.build_serialized_network

    def build_slowly(own: Any, network: Any, config: Any) -> Any:
        path.write_bytes(content)
        return real(own, network, config)

    monkeypatch.setattr(module.Builder, "build_serialized_network", build_slowly)
