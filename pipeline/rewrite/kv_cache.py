"""Caches of codes: the past comes as codes, what is new is quantized, and codes go on."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtq.calibrators.ranges import Ranges
from trtq.pipeline.formats import INT8
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding
from trtq.pipeline.formats.floats import convert_scales
from trtq.pipeline.graph.edit import GraphEditor
from trtq.pipeline.graph.kv_cache import OF_SHAPES
from trtq.pipeline.graph.placed import HeldCache
from trtq.pipeline.rewrite.qparams import choose_activation_qparams


def hold_caches(
    model: ir.Model,
    caches: tuple[HeldCache, ...],
    ranges: Ranges,
    *,
    scale_dtype: str = "float32",
    joins_codes: bool = True,
) -> ir.Model:
    """Returns the model whose caches are codes, with one scale for each.

    Codes of the past go on as they are. In INT8 the Concat joins codes, and what reads the cache reads it
    behind DequantizeLinear. ONNX has no Concat of FP8, so there it joins the numbers, and all are quantized
    again, which gives the same codes: a code times the scale is nearest to that code.

    Args:
        model: It is not changed.
        caches: Of `find_caches`.
        ranges: Those of the outputs that continue the caches.
        scale_dtype: The dtype that the scales must survive.
        joins_codes: Whether INT8 codes are joined; else the numbers. Where ONNX Runtime 1.32 turns INT8 into
            UINT8, it does not load a DequantizeLinear before a Transpose in opset 21.

    Raises:
        UsageError: The ranges lack a cache.
    """
    result = model.clone()
    edit, nodes = GraphEditor(result), {str(node.name): node for node in result.graph}
    inputs = {str(value.name): value for value in result.graph.inputs}
    for cache in caches:
        past, concat = inputs[cache.past], nodes[cache.node]
        codes = _Codes.create(edit, past, cache, ranges, scale_dtype)
        for place, value in enumerate(concat.inputs):
            if value is not None and value is not past:
                concat.replace_input_with(place, codes.quantize(value, before=concat))
        past.type = ir.TensorType(cache.form.dtype)
        if joins_codes and cache.form is INT8:
            _join_codes(concat, codes)
        else:
            _join_numbers(concat, past, codes)
    return result


@dataclass(frozen=True, slots=True)
class _Codes:
    """How one cache becomes codes and numbers again."""

    edit: GraphEditor
    form: CodeFormat
    floats: ir.DataType
    scale: ir.Value
    zero: ir.Value

    @classmethod
    def create(
        cls, edit: GraphEditor, past: ir.Value, cache: HeldCache, ranges: Ranges, scale_dtype: str
    ) -> _Codes:
        assert past.dtype is not None
        amax, encoding = ranges.amax(cache.present, cache.form.name), Encoding(cache.form)
        qparams = choose_activation_qparams(amax, scale_dtype, encoding)
        scale = convert_scales(qparams.scale, past.dtype.numpy().name)
        return cls(
            edit,
            cache.form,
            past.dtype,
            edit.add_constant(f"{cache.past}_scale", scale),
            edit.add_constant(f"{cache.past}_zero_point", qparams.zero_point),
        )

    def quantize(self, value: ir.Value, before: ir.Node | None = None) -> ir.Value:
        inputs, name = [value, self.scale, self.zero], f"{value.name}_quantized"
        dtype = self.form.dtype
        return self.edit.insert("QuantizeLinear", inputs, like=value, dtype=dtype, output=name, before=before)

    def dequantize(self, value: ir.Value, before: ir.Node | None = None) -> ir.Value:
        inputs, name = [value, self.scale, self.zero], f"{value.name}_dequantized"
        return self.edit.insert(
            "DequantizeLinear", inputs, like=value, dtype=self.floats, output=name, before=before
        )


def _join_codes(concat: ir.Node, codes: _Codes) -> None:
    present = concat.outputs[0]
    readers = [(node, place) for node, place in present.uses() if node.op_type not in OF_SHAPES]
    present.type = ir.TensorType(codes.form.dtype)
    numbers = codes.dequantize(present) if readers else present
    for node, place in readers:
        node.replace_input_with(place, numbers)


def _join_numbers(concat: ir.Node, past: ir.Value, codes: _Codes) -> None:
    """Joins numbers, which Shape reads too: ONNX Runtime 1.32 has no Shape of FP8 before opset 21."""
    readers = past.uses()
    numbers_before = codes.dequantize(past)
    for node, place in readers:
        node.replace_input_with(place, numbers_before)
    for place, value in enumerate(concat.inputs):
        if value is not None and value is not numbers_before:
            concat.replace_input_with(place, codes.dequantize(value, before=concat))
    numbers, outputs = concat.outputs[0], codes.edit.graph.outputs
    name, place = numbers.name, outputs.index(numbers)
    numbers.name = codes.edit.name_value(f"{name}_joined")
    outputs[place] = codes.quantize(numbers)
    outputs[place].name = name
