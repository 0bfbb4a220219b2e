"""Which scale of a cache belongs to which tensor: names before and after folding, and what is left over."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from trtq.calibrators.cache import CalibrationCache
from trtq.errors import ArtifactError
from trtq.kept import KeptNode
from trtq.models.session import open_session, run
from trtq.pipeline.graph.cache_ranges import (
    MappedTensor,
    Migration,
    UncoveredTensor,
    UnmappedKey,
    map_names_in_file,
    place_from_cache,
    rename_as_in_file,
)
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.rewrite.qparams import choose_activation_qparams

GraphOf = Callable[..., Graph]


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).uniform(0.5, 1.5, shape).astype(np.float32)


WEIGHTS = {name: _random(4, 4, 1, 1) for name in ("w1", "w2", "w3")}
NORM = {name: _random(4) for name in ("gamma", "beta", "mean", "var")}
BIAS = {"bias": _random(1, 4, 1, 1)}
HEAD = "g (float[N,4,8,8] x) => (float[N,4,8,8] y)"
BN = "BatchNormalization({}, gamma, beta, mean, var)"


def _migrate(graph: Graph, scales: dict[str, float], **options: Any) -> Migration:
    return place_from_cache(graph, CalibrationCache(scales), "old.cache", **options)[2]


def _keys(migration: Migration) -> dict[str, tuple[str, str]]:
    return {item.tensor: (item.key, item.how) for item in migration.mapped}


# Names


FOLDED = {
    "nothing": ("{ c = Conv(x, w1) r = Relu(c) y = Conv(r, w2) }", {}),
    "BatchNormalization": (f"{{ c = Conv(x, w1) b = {BN.format('c')} y = Conv(b, w2) }}", {"c": ("b",)}),
    "bias": ("{ c = Conv(x, w1) a = Add(c, bias) y = Conv(a, w2) }", {"c": ("a",)}),
    "both": (f"{{ c = Conv(x, w1) b = {BN.format('c')} a = Add(bias, b) y = Conv(a, w2) }}", {"c": ("a",)}),
    "a sum that is no bias": ("{ c = Conv(x, w1) a = Add(c, x) y = Conv(a, w2) }", {}),
    "a sum with itself": ("{ c = Conv(x, w1) a = Add(c, c) y = Conv(a, w2) }", {}),
    "two readers": (f"{{ c = Conv(x, w1) b = {BN.format('c')} d = Conv(b, w2) y = Add(d, c) }}", {}),
    "no convolution": (f"{{ c = Relu(x) b = {BN.format('c')} y = Conv(b, w2) }}", {}),
    "Identity": ("{ c = Relu(x) i = Identity(c) j = Identity(i) y = Conv(j, w1) }", {"c": ("c", "i", "j")}),
    "Identity of an input": ("{ i = Identity(x) y = Conv(i, w1) }", {"x": ("x", "i")}),
    "Identity between": (
        f"{{ c = Conv(x, w1) i = Identity(c) b = {BN.format('i')} j = Identity(b) y = Conv(j, w2) }}",
        {"c": ("b", "j")},
    ),
    "an output": (f"{{ c = Conv(x, w1) y = {BN.format('c')} }}", {}),
    "an output behind Identity": (
        f"{{ c = Conv(x, w1) b = {BN.format('c')} y = Identity(b) }}",
        {"y": ("y", "b")},
    ),
    "two of a kind": (
        f"{{ c = Conv(x, w1) b = {BN.format('c')} d = {BN.format('b')} y = Conv(d, w2) }}",
        {"c": ("d",)},
    ),
}


@pytest.mark.parametrize(("body", "renamed"), FOLDED.values(), ids=FOLDED)
def test_a_tensor_of_the_graph_has_the_values_of_its_names_in_the_file(
    graph_of: GraphOf, body: str, renamed: dict[str, tuple[str, ...]]
) -> None:
    graph = graph_of(f"{HEAD} {body}", **WEIGHTS, **NORM, **BIAS)
    names = map_names_in_file(graph)
    assert names == {name: (name,) for name in names} | renamed
    feed = {"x": np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)}
    ours = _all_values(ir.to_proto(graph.model), feed)
    theirs = _all_values(onnx.load(graph.path), feed)
    for tensor, own in names.items():
        for name in own:
            np.testing.assert_allclose(ours[tensor], theirs[name], rtol=1e-3, atol=1e-3)


def _all_values(proto: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    known = {value.name for value in proto.graph.output}
    names = [name for node in proto.graph.node for name in node.output]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    path = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    return feed | dict(zip(names, run(open_session(path, optimize=False), names, feed), strict=True))


def test_what_nothing_reads_was_not_folded(graph_of: GraphOf) -> None:
    text = "g (float[N,4,8,8] x) => (float[N,4,8,8] c, float[N,4,8,8] y)"
    graph = graph_of(
        f"{text} {{ c = Conv(x, w1) dead = {BN.format('c')} y = Conv(c, w2) }}", **WEIGHTS, **NORM
    )
    assert map_names_in_file(graph)["c"] == ("c",)


def test_what_a_body_reads_was_not_folded(graph_of: GraphOf) -> None:
    body = f"""{{
        c = Conv(x, w1)
        b = {BN.format("c")}
        y = If(flag) <then_branch = t () => (float[N,4,8,8] s) {{ s = Relu(c) }},
                      else_branch = e () => (float[N,4,8,8] z) {{ z = Identity(b) }}>
    }}"""
    graph = graph_of(f"g (float[N,4,8,8] x, bool flag) => (float[N,4,8,8] y) {body}", **WEIGHTS, **NORM)
    assert map_names_in_file(graph)["c"] == ("c",)


def test_the_scale_of_a_folded_tensor_is_the_one_after_it(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['both'][0]}", **WEIGHTS, **NORM, **BIAS)
    migration = _migrate(graph, {"x": 1.0, "c": 0.25, "b": 0.5, "a": 2.0, "y": 3.0})
    assert migration.mapped == (
        MappedTensor("x", "x", 1.0, "name"),
        MappedTensor("c", "a", 2.0, "other name"),
    )
    assert migration.unused == ("c", "b", "y")
    assert not migration.folded_names


def test_a_cache_of_the_folded_graph_is_known_by_what_it_lacks(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['BatchNormalization'][0]}", **WEIGHTS, **NORM)
    migration = _migrate(graph, {"x": 1.0, "c": 0.25})
    assert _keys(migration) == {"x": ("x", "name"), "c": ("c", "name")}
    assert migration.folded_names
    assert _migrate(graph, {"x": 1.0}).uncovered == (
        UncoveredTensor("c", "the cache has no scale for 'b'", ("Conv_1",)),
    )


def test_a_cache_gets_the_names_of_the_file(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['Identity between'][0]}", **WEIGHTS, **NORM)
    cache = CalibrationCache({"x": 1.0, "c": 0.25, "made_by_us": 2.0}, 8601, "MinMaxCalibration")
    assert rename_as_in_file(cache, graph) == CalibrationCache(
        {"x": 1.0, "b": 0.25, "j": 0.25, "made_by_us": 2.0}, 8601, "MinMaxCalibration"
    )


def test_ranges_of_another_model_get_no_names(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['nothing'][0]}", **WEIGHTS)
    with pytest.raises(ArtifactError) as caught:
        rename_as_in_file(CalibrationCache({"images": 1.0, "a": 1.0, "b": 1.0, "d": 1.0}), graph)
    assert str(caught.value) == (
        f"these ranges are for another model than {graph.path}: they hold 'images', 'a', 'b' and 1 more, "
        f"the model has {', '.join(repr(name) for name in list(map_names_in_file(graph))[:3])} and 1 more"
    )


# Scales


@pytest.mark.parametrize("bits", [0x00800000, 0x3B66EDDC, 0x3C010204, 0x3F7FFFFF, 0x40FFFFFF, 0x7C000000])
def test_amax_gives_the_scale_again_to_the_bit(graph_of: GraphOf, bits: int) -> None:
    scale = struct.unpack("!f", struct.pack("!I", bits))[0]
    graph = graph_of(f"{HEAD} {{ y = Conv(x, w1) }}", **WEIGHTS)
    placement, ranges, _ = place_from_cache(graph, CalibrationCache({"x": scale}, 8601), "old.cache")
    assert placement.activations == ("x",)
    made = choose_activation_qparams(ranges.amax("x"), "float32").scale
    assert (made.dtype.name, made.shape, int(made.view(np.uint32))) == ("float32", (), bits)
    assert ranges.method == "calibration cache by EntropyCalibration2 of TensorRT 8.6.1"
    assert (ranges.data, ranges.num_samples, ranges.model_sha256) == ("old.cache", 0, graph.sha256)
    assert (ranges.tensors["x"].minimum, ranges.tensors["x"].maximum) == (-scale * 127, scale * 127)


@pytest.mark.parametrize(
    ("call", "head"),
    [
        ("MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)", "y"),
        ("Transpose<perm = [0, 1, 3, 2]>(r)", "y"),
        ("Reshape(r, same)", "y"),
        ("Dropout(r)", "y"),
    ],
)
def test_what_commutes_has_the_scale_of_its_input(graph_of: GraphOf, call: str, head: str) -> None:
    body = f"{{ r = Relu(x) p = {call} y = Conv(p, w1) }}"
    graph = graph_of(f"g (float[N,4,8,8] x) => (float[N,4,A,B] {head}) {body}", **WEIGHTS, same=[0, 4, 8, 8])
    assert _keys(_migrate(graph, {"r": 1.0})) == {"p": ("r", "same scale")}
    assert _keys(_migrate(graph, {"r": 1.0, "p": 2.0})) == {"p": ("p", "name")}


def test_what_is_rearranged_has_the_scale_of_the_result(graph_of: GraphOf) -> None:
    body = """{
        r = Relu(x)
        s = Conv(r, w1)
        f = Transpose<perm = [0, 1, 3, 2]>(r)
        u = Unsqueeze(f, first)
        v = Squeeze(u, first)
        t = Conv(v, w2)
        y = Add(s, t)
    }"""
    graph = graph_of(f"{HEAD} {body}", **WEIGHTS, first=[0])
    assert _keys(_migrate(graph, {"u": 1.0})) == {"r": ("u", "same scale"), "v": ("u", "same scale")}


def test_the_maximum_of_a_tensor_does_not_tell_its_scale(graph_of: GraphOf) -> None:
    body = (
        "{ r = Relu(x) p = MaxPool<kernel_shape = [1, 1]>(r) q = Conv(p, w1) s = Conv(r, w2) y = Add(q, s) }"
    )
    migration = _migrate(graph_of(f"{HEAD} {body}", **WEIGHTS), {"p": 1.0})
    assert _keys(migration) == {"p": ("p", "name")}
    assert [item.tensor for item in migration.uncovered] == ["r", "s"]


@pytest.mark.parametrize(("scale", "shown"), [(0.0, "0"), (2.0**-127, "5.87747e-39"), (3.4e38, "3.4e+38")])
def test_scales_that_cannot_be_used_are_none(graph_of: GraphOf, scale: float, shown: str) -> None:
    graph = graph_of(f"{HEAD} {{ r = Relu(x) c = Conv(r, w1) y = Conv(c, w2) }}", **WEIGHTS)
    placement, ranges, migration = place_from_cache(
        graph, CalibrationCache({"r": scale, "c": 1.0}), "old.cache"
    )
    reason = f"the cache gives 'r' the scale {shown}, with which nothing can be quantized"
    assert migration.uncovered == (UncoveredTensor("r", reason, ("Conv",)),)
    assert placement.kept == (KeptNode("Conv", "Conv", reason),)
    assert list(ranges.tensors) == ["c"]


def test_large_values_are_kept_out_of_fp16(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['nothing'][0]}", **WEIGHTS)
    ranges = place_from_cache(graph, CalibrationCache({"x": 1.0, "r": 1.0, "y": 512.0}), "old.cache")[1]
    assert ranges.beyond_fp16 == {"y": 512.0 * 127}


# What is left over


def test_layers_without_a_scale_stay_float(graph_of: GraphOf) -> None:
    body = "{ r = Relu(x) c = Conv(r, w1) d = Conv(c, w2) s = Conv(r, w3) y = Add(d, s) }"
    graph = graph_of(f"{HEAD} {body}", **WEIGHTS)
    placement, ranges, migration = place_from_cache(graph, CalibrationCache({"c": 0.5}), "old.cache")
    reason = "the cache has no scale for 'r'"
    assert migration.uncovered == (
        UncoveredTensor("r", reason, ("Conv", "Conv_2")),
        UncoveredTensor("s", "the cache has no scale for 's'", ("Add",)),
    )
    assert [node.name for node in placement.quantized] == ["Conv_1"]
    assert placement.kept == (KeptNode("Conv", "Conv", reason), KeptNode("Conv_2", "Conv", reason))
    assert list(ranges.tensors) == ["c"]


def test_skipped_layers_need_no_scale(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['nothing'][0]}", **WEIGHTS)
    placement, _, migration = place_from_cache(graph, CalibrationCache({"r": 0.5}), "a", skip=("^Conv$",))
    assert placement.kept == (KeptNode("Conv", "Conv", "skipped by '^Conv$'"),)
    assert migration.uncovered == ()
    placement, _, migration = place_from_cache(graph, CalibrationCache({"r": 0.5}), "a", op_types=("Gemm",))
    assert (placement.quantized, migration.mapped, migration.unused) == ((), (), ("r",))


def test_keys_that_are_no_tensors_are_told_with_the_reason(graph_of: GraphOf) -> None:
    body = "{ k = Constant<value_float = 2.0>() m = Mul(x, k) y = Conv(m, w1) }"
    graph = graph_of(f"{HEAD} {body}", **WEIGHTS)
    keys = [
        "(Unnamed Layer* 8) [Constant]_output",
        "ONNXTRT_Broadcast_3_output",
        "w1",
        "w1_output",
        "k",
        "images",
    ]
    migration = _migrate(graph, {"m": 1.0, "x": 1.0} | dict.fromkeys(keys, 0.0))
    assert migration.unmapped == (
        UnmappedKey(keys[0], "a tensor that TensorRT made itself"),
        UnmappedKey(keys[1], "a tensor that TensorRT's ONNX parser made"),
        *(UnmappedKey(key, "a constant") for key in keys[2:5]),
        UnmappedKey("images", "the model has no tensor of this name"),
    )
    assert migration.unused == ("x",)


def test_every_key_and_every_tensor_is_accounted_for(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['both'][0]}", **WEIGHTS, **NORM, **BIAS)
    scales = {"a": 1.0, "c": 1.0, "b": 0.0, "nobody": 1.0, "w1": 1.0}
    placement, _, migration = place_from_cache(graph, CalibrationCache(scales), "old.cache")
    used = [item.key for item in migration.mapped]
    assert sorted([*used, *migration.unused, *(item.key for item in migration.unmapped)]) == sorted(scales)
    assert {item.tensor for item in migration.mapped} == set(placement.activations) == {"c"}
    assert [item.tensor for item in migration.uncovered] == ["x"]


def test_a_cache_without_a_tensor_of_the_model_is_for_another(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['nothing'][0]}", **WEIGHTS)
    with pytest.raises(ArtifactError) as caught:
        _migrate(graph, {"images": 1.0, "w1": 1.0})
    assert str(caught.value) == (
        f"old.cache is a cache for another model: it has scales for 'images', 'w1', "
        f"the tensors of {graph.path} are 'x', 'c', 'r' and 1 more"
    )
    with pytest.raises(ArtifactError, match=r"is a cache for another model: it has scales for nothing, "):
        _migrate(graph, {})


def test_a_cache_without_a_tensor_that_is_quantized_may_be_for_another(graph_of: GraphOf) -> None:
    graph = graph_of(f"{HEAD} {FOLDED['nothing'][0]}", **WEIGHTS)
    with pytest.raises(ArtifactError) as caught:
        _migrate(graph, {"c": 1.0})
    assert str(caught.value) == (
        f"old.cache has no scale for any tensor of {graph.path} that quantized layers read: 'x', 'r'; "
        f"is it for another model?"
    )
