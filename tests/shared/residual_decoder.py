"""A small decoder of two blocks as exporters write Llama, with the forms that its norms have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtq.pipeline.graph.load import Graph

WIDTH, HIDDEN, TOKENS = 96, 128, 64
_MEAN = "{x}2 = Mul ({x}, {x}) {x}m = ReduceMean <keepdims = 1> ({x}2, last) {x}e = Add ({x}m, eps) "
NORMS: Mapping[str, str] = {
    "Pow, Sqrt and Div": _MEAN.replace("Mul ({x}, {x})", "Pow ({x}, two)")
    + "{x}r = Sqrt ({x}e) {x}n = Div ({x}, {x}r) {y} = Mul ({x}n, {g})",
    "Mul, Reciprocal and Mul": _MEAN
    + "{x}s = Sqrt ({x}e) {x}r = Reciprocal ({x}s) {x}n = Mul ({x}, {x}r) {y} = Mul ({g}, {x}n)",
    "one over the root": _MEAN.replace("({x}m, eps)", "(eps, {x}m)")
    + "{x}s = Sqrt ({x}e) {x}r = Div (one, {x}s) {x}n = Mul ({x}r, {x}) {y} = Mul ({x}n, {g})",
    "no scale": _MEAN + "{x}r = Sqrt ({x}e) {y} = Div ({x}, {x}r)",
    "RMSNormalization": "{y} = RMSNormalization <axis = -1> ({x}, {g})",
    "LayerNormalization": "{y} = LayerNormalization <axis = -1> ({x}, {g})",
}
_TEXT = """decoder (int64[N, S] ids) => (float[N, S, {outputs}] logits{more}) {{
  x0 = Gather (table, ids)
  {first} q = MatMul (a, wq) k = MatMul (a, wk) v = MatMul (a, wv)
  kt = Transpose <perm = [0, 2, 1]> (k) s = MatMul (q, kt) p = Softmax (s) o = MatMul (p, v)
  w0 = MatMul (o, wo) w1 = Add (w0, bo) x1 = Add (x0, w1)
  {second} u = MatMul (b, wu) f = MatMul (b, wf) sig = Sigmoid (f) act = Mul (u, sig)
  d = MatMul (act, wd) x2 = Add (d, x1)
  {third} {head} {extra}
}}"""


def write_text(
    norm: str = "Pow, Sqrt and Div", head: str = "logits = MatMul (c, wh)", extra: str = "", more: str = ""
) -> str:
    """Returns the graph in ONNX's text."""
    form = NORMS[norm]
    parts = {
        word: form.format(x=x, y=y, g=g)
        for word, x, y, g in (
            ("first", "x0", "a", "g0"), ("second", "x1", "b", "g1"), ("third", "x2", "c", "g2"),
        )
    }  # fmt: skip
    return _TEXT.format(**parts, head=head, extra=extra, more=more, outputs=TOKENS)


def make_weights(outlier: float = 1.0) -> dict[str, NDArray[Any]]:
    """Returns the constants; two channels of the stream are larger than the others by a factor."""
    rng = np.random.default_rng(0)
    shapes = {
        "table": (TOKENS, WIDTH), "wq": (WIDTH, WIDTH), "wk": (WIDTH, WIDTH), "wv": (WIDTH, WIDTH),
        "wo": (WIDTH, WIDTH), "wu": (WIDTH, HIDDEN), "wf": (WIDTH, HIDDEN), "wd": (HIDDEN, WIDTH),
        "wh": (WIDTH, TOKENS),
    }  # fmt: skip
    weights: dict[str, NDArray[Any]] = {
        name: (rng.standard_normal(shape) / (1 if name == "table" else WIDTH**0.5)).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights["bo"] = rng.standard_normal(WIDTH).astype(np.float32) / 8
    for name in ("table", "wo", "wd"):
        weights[name][:, [3, 30]] *= np.float32(outlier)
    for name in ("g0", "g1", "g2"):
        weights[name] = rng.uniform(0.5, 1.5, WIDTH).astype(np.float32)
    numbers = {"two": 2.0, "one": 1.0, "eps": 1e-5}
    return {
        **weights,
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        "last": np.array([-1]),
        "rows": np.array([-1, WIDTH]),
        "back": np.array([2, -1, TOKENS]),
    }


def make_graph(
    graph_of: Callable[..., Graph],
    *,
    opset: int = 19,
    outlier: float = 1.0,
    constants: Mapping[str, NDArray[Any]] | None = None,
    **parts: str,
) -> Graph:
    """Returns the graph with its constants, some of them perhaps given, as `load` gives it."""
    text = write_text(**parts)
    used = {
        name: values
        for name, values in {**make_weights(outlier), **(constants or {})}.items()
        if f"{name})" in text or f"{name}," in text
    }
    return graph_of(text, opset=opset, **used)
