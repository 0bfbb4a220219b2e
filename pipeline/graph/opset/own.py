"""TensorRT's own operators, as functions of standard ones of the same types and shapes.

Its ONNX parser imports them itself: they are no plugins. The functions tell ONNX's shape inference what the
operators make, and nothing of what they compute.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

_DYNAMIC = """
<opset_import: ["": 24], domain: "trt">
TRT_{name} (x{more}) => (codes, scales) {{
    codes = Cast <to = {codes}> (x)
    first = Constant <value_ints = [0]> ()
    beyond = Constant <value_ints = [{beyond}]> ()
    last = Constant <value_ints = [-1]> ()
    step = Constant <value_ints = [{block}]> ()
    picked = Slice (x, first, beyond, last, step)
    scales = Cast <to = {scales}> (picked)
}}"""
_LIKE_FIRST = """
<opset_import: ["": 24], domain: "trt">
TRT_{name} ({inputs}) => (y) {{ y = Identity (x) }}"""
_BEYOND = (1 << 63) - 1
_FP4, _FP8, _E8M0 = (
    int(onnx.TensorProto.FLOAT4E2M1),
    int(onnx.TensorProto.FLOAT8E4M3FN),
    int(onnx.TensorProto.FLOAT8E8M0),
)


def _dynamic(name: str, more: str, codes: int, scales: int, block: int) -> str:
    return _DYNAMIC.format(name=name, more=more, codes=codes, scales=scales, block=block, beyond=_BEYOND)


_TEXTS = {
    "TRT_DynamicQuantize": _dynamic("DynamicQuantize", ", scale", _FP4, _FP8, 16),
    "TRT_FP4DynamicQuantize": _dynamic("FP4DynamicQuantize", ", scale", _FP4, _FP8, 16),
    "TRT_MXFP8DynamicQuantize": _dynamic("MXFP8DynamicQuantize", "", _FP8, _E8M0, 32),
    "TRT_MXFP8DequantizeLinear": """
<opset_import: ["": 24], domain: "trt">
TRT_MXFP8DequantizeLinear (x, scales) => (y) { y = Cast <to = 1> (x) }""",
    "TRT_Attention": _LIKE_FIRST.format(name="Attention", inputs="x, k, v"),
    "TRT_KVCacheUpdate": _LIKE_FIRST.format(name="KVCacheUpdate", inputs="x, new, place"),
    "TRT_MoE": _LIKE_FIRST.format(name="MoE", inputs="x, experts, weights"),
}
OWN_OPERATORS = tuple(_TEXTS)
"""Those that have no standard form, in the domain `trt`."""


def list_functions(nodes: Iterable[onnx.NodeProto]) -> list[onnx.FunctionProto]:
    """Returns the functions of the own operators among these nodes."""
    names = {node.op_type for node in nodes if node.domain == "trt"}
    return [onnx.parser.parse_function(text) for name, text in _TEXTS.items() if name in names]
