"""Tests of finding products that give query, key and value at once, which the real builder runs in float."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checked_qdq import quantized
from made_up import random_array

from trtq.models.session import save
from trtq.models.spec import LayerSpec, ModelSpec, QuantizationSpec
from trtq.pipeline.calibrate.data import place_layers
from trtq.pipeline.engine.backend import BuildRequest
from trtq.pipeline.engine.backends import BACKENDS
from trtq.pipeline.engine.rtx import TensorRtRtx
from trtq.pipeline.engine.target import Target
from trtq.pipeline.graph.load import Graph
from trtq.pipeline.graph.packed import REASON, find_packed
from trtq.progress import Silent

GraphOf = Callable[..., Graph]
_TEXT = """g (float[2,24,64] x) => (float[2,4,24,16] y) {{
    [qkv] p = MatMul (x, w)
    [bias] b = Add (p, bias)
    {parts}
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    [scores] s = MatMul (q, kt)
    m = Softmax <axis = -1> (s)
    [context] y = MatMul (m, v) }}"""
_HEADS = "{0}r = Reshape ({1}, heads) {0} = Transpose <perm = [0, 2, 1, 3]> ({0}r)"
_OUT_OF_SPLIT = " ".join(_HEADS.format(*pair) for pair in (("q", "a"), ("k", "c"), ("v", "e")))
_REAL = {
    "split, then heads": (f"a, c, e = Split <axis = -1, num_outputs = 3> (b) {_OUT_OF_SPLIT}", True),
    "heads, then split": (
        "r = Reshape (b, packed) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"
        " q = Gather (t, zero) k = Gather (t, one) v = Gather (t, two)",
        True,
    ),
    "computed with": (
        f"a, c, e = Split <axis = -1, num_outputs = 3> (b) {_OUT_OF_SPLIT.replace('q =', 'o =')}"
        " q = Mul (o, half)",
        True,
    ),
    "heads, then split and scaled": (
        "r = Reshape (b, packed) a, c, e = Split <axis = 2, num_outputs = 3> (r)"
        " f = Squeeze (a, at2) g = Squeeze (c, at2) h = Squeeze (e, at2)"
        " t = Transpose <perm = [0, 2, 1, 3]> (f) q = Mul (t, half)"
        " k = Transpose <perm = [0, 2, 1, 3]> (g) v = Transpose <perm = [0, 2, 1, 3]> (h)",
        True,
    ),
    "heads, then split and computed with": (
        "r = Reshape (b, packed) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"
        " o = Gather (t, zero) k = Gather (t, one) v = Gather (t, two) q = Add (o, half)",
        False,
    ),
    "thirds of each head": (
        "r = Reshape (b, wide) t = Transpose <perm = [0, 2, 1, 3]> (r)"
        " q, k, v = Split <axis = -1, num_outputs = 3> (t)",
        False,
    ),
    "the value from elsewhere": (
        f"a, c = Split <axis = -1, num_outputs = 2> (b) {_OUT_OF_SPLIT.replace('(e,', '(x,')}",
        False,
    ),
}
_OTHERS = {
    "slices": (
        "a = Slice (b, at0, at64, last) c = Slice (b, at64, at128, last) e = Slice (b, at128, at192, last)"
        f" {_OUT_OF_SPLIT}",
        True,
    ),
    "slices of packed heads": (
        "r = Reshape (b, packed) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"
        " f = Slice (t, at0, at1, at0) g = Slice (t, at1, at2, at0) h = Slice (t, at2, at3, at0)"
        " q = Squeeze (f, at0) k = Squeeze (g, at0) v = Squeeze (h, at0)",
        True,
    ),
    "heads of a computed number": (
        "n = Identity (packed) r = Reshape (b, n) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"
        " q = Gather (t, zero) k = Gather (t, one) v = Gather (t, two)",
        True,
    ),
    "heads outside of the parts": (
        "r = Reshape (b, inside) t = Transpose <perm = [3, 0, 2, 1, 4]> (r)"
        " q = Gather (t, zero) k = Gather (t, one) v = Gather (t, two)",
        False,
    ),
    "added to": (
        f"a, c, e = Split <axis = -1, num_outputs = 3> (b) {_OUT_OF_SPLIT.replace('q =', 'o =')}"
        " q = Add (o, half)",
        False,
    ),
    "heads, then both scaled": (
        "r = Reshape (b, packed) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)"
        " o = Gather (t, zero) n = Gather (t, one) v = Gather (t, two) q = Mul (o, half) k = Mul (n, half)",
        False,
    ),
    "unequal parts": (
        "a = Slice (b, at0, at64, last) c = Slice (b, at1, at65, last) e = Slice (b, at128, at192, last)"
        f" {_OUT_OF_SPLIT}",
        False,
    ),
}
_NUMBERS = {"zero": 0, "one": 1, "two": 2, "half": np.float32(0.5), "last": [-1], "heads": [0, 0, 4, 16]}
_NUMBERS |= {"packed": [0, 0, 3, 4, 16], "inside": [0, 0, 4, 3, 16], "wide": [0, 0, 4, 48]}
_NUMBERS |= {f"at{place}": [place] for place in (0, 1, 2, 3, 64, 65, 128, 192)}


def _make(graph_of: GraphOf, parts: str) -> Graph:
    words = re.findall(r"\w+", parts)
    used = {name: np.asarray(value) for name, value in _NUMBERS.items() if name in words}
    width = 128 if "num_outputs = 2" in parts else 192
    return graph_of(_TEXT.format(parts=parts), w=random_array(64, width), bias=random_array(width), **used)


@pytest.mark.parametrize(("parts", "is_packed"), [*_REAL.values(), *_OTHERS.values()], ids=[*_REAL, *_OTHERS])
def test_three_thirds_with_heads_are_packed(graph_of: GraphOf, parts: str, is_packed: bool) -> None:
    graph = _make(graph_of, parts)
    assert find_packed(graph.model.graph) == ({"qkv"} if is_packed else set())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(("parts", "is_packed"), _REAL.values(), ids=_REAL)
def test_the_real_builder_multiplies_in_float_what_is_packed(
    graph_of: GraphOf, tmp_path: Path, parts: str, is_packed: bool
) -> None:
    save(quantized(_make(graph_of, parts).model), tmp_path / "qdq.onnx")
    built = TensorRtRtx().build(BuildRequest(tmp_path / "qdq.onnx"))
    runs_int8 = any(kernel.multiplies_in == "int8" for kernel in built.kernels if "qkv" in kernel.nodes)
    assert runs_int8 is not is_packed


def _reasons(graph: Graph, backend: str, spec: ModelSpec | None = None, **target: Any) -> dict[str, str]:
    found = place_layers(graph, spec or ModelSpec(), Target(**target), Silent(), backend=BACKENDS[backend])
    return {item.name: item.reason for item in found.kept}


def test_a_packed_product_stays_float_for_the_builder_that_parts_it(graph_of: GraphOf) -> None:
    graph = _make(graph_of, _REAL["split, then heads"][0])
    assert _reasons(graph, "tensorrt-rtx")["qkv"] == REASON
    assert _reasons(graph, "tensorrt-rtx", precision="fp8")["qkv"] == REASON
    assert "qkv" not in _reasons(graph, "tensorrt")


def test_a_packed_product_takes_codes_where_nothing_was_measured(graph_of: GraphOf) -> None:
    graph = _make(graph_of, _REAL["split, then heads"][0])
    per_token = ModelSpec(quantization=QuantizationSpec(activations="per-token"))
    assert "qkv" not in _reasons(graph, "tensorrt-rtx", precision="nvfp4")
    assert "qkv" not in _reasons(graph, "tensorrt-rtx", per_token)


def test_a_packed_product_takes_codes_if_that_is_forced(graph_of: GraphOf) -> None:
    graph = _make(graph_of, _REAL["split, then heads"][0])
    assert "qkv" not in _reasons(graph, "tensorrt-rtx", ModelSpec(layers=LayerSpec(force=("qkv",))))
