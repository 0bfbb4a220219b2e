"""Caches of codes: the past comes as codes, what is new is quantized, and codes go on."""

from __future__ import annotations

import onnx_ir as ir

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.floats import convert_scales
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.kv_cache import OF_SHAPES
from trtq.pipeline.graph.placed import HeldCache
from trtq.pipeline.rewrite.qparams import choose_activation_qparams


def hold_caches(
    model: ir.Model, caches: tuple[HeldCache, ...], ranges: Ranges, *, scale_dtype: str = "float32"
) -> ir.Model:
    """Returns the model whose caches are codes, with one scale for each, which is the largest code's.

    Codes of the past go on as they are. In INT8 they are joined by the Concat, and what reads the cache
    reads it behind DequantizeLinear. ONNX has no Concat of FP8: there the numbers of the codes are joined and
    quantized again, which gives the same codes, since a code times the scale is nearest to that code.

    Args:
        model: It is not changed.
        caches: Of `find_caches`.
        ranges: Those of the outputs that continue the caches.
        scale_dtype: The dtype that the scales must survive.

    Raises:
        UsageError: The ranges lack a cache.
    """
    result = model.clone()
    edit, nodes = GraphEditor(result), {str(node.name): node for node in result.graph}
    inputs = {str(value.name): value for value in result.graph.inputs}
    for cache in caches:
        _hold(edit, nodes[cache.node], inputs[cache.past], cache, ranges, scale_dtype)
    return result


def _hold(
    edit: GraphEditor, concat: ir.Node, past: ir.Value, cache: HeldCache, ranges: Ranges, scale_dtype: str
) -> None:
    present, form = concat.outputs[0], cache.form
    floats = past.dtype
    assert floats is not None
    qparams = choose_activation_qparams(ranges.amax(cache.present, form.name), scale_dtype, Encoding(form))
    scale = edit.add_constant(f"{cache.past}_scale", convert_scales(qparams.scale, floats.numpy().name))
    zero = edit.add_constant(f"{cache.past}_zero_point", qparams.zero_point)

    def insert(op_type: str, value: ir.Value, output: str, before: ir.Node | None = None) -> ir.Value:
        dtype = form.dtype if op_type == "QuantizeLinear" else floats
        return edit.insert(
            op_type, [value, scale, zero], like=value, dtype=dtype, output=output, before=before
        )

    news = {place: value for place, value in enumerate(concat.inputs) if value is not past}
    codes = {
        place: insert("QuantizeLinear", value, f"{value.name}_quantized", concat)
        for place, value in news.items()
        if value is not None
    }
    past.type = ir.TensorType(form.dtype)
    if form is INT8:
        for place, value in codes.items():
            concat.replace_input_with(place, value)
        readers = [(node, place) for node, place in present.uses() if node.op_type not in OF_SHAPES]
        present.type = ir.TensorType(form.dtype)
        numbers = insert("DequantizeLinear", present, f"{present.name}_dequantized")
        for node, place in readers:
            node.replace_input_with(place, numbers)
        return
    for place, value in codes.items():
        concat.replace_input_with(place, insert("DequantizeLinear", value, f"{value.name}_number", concat))
    place = next(index for index, value in enumerate(concat.inputs) if value is past)
    concat.replace_input_with(place, insert("DequantizeLinear", past, f"{past.name}_dequantized", concat))
    quantized = insert("QuantizeLinear", present, f"{present.name}_quantized")
    outputs, index = edit.graph.outputs, edit.graph.outputs.index(present)
    outputs[index] = quantized
    name = str(present.name)
    present.name = edit.name_value(f"{name}_numbers")
    quantized.name = name
