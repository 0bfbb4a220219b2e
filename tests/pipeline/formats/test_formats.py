"""The list of formats, and what holds for each of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from trtq.pipeline.formats import FORMATS, FP8, INT4, INT8, WEIGHT_FORMATS, WEIGHT_METHODS
from trtq.pipeline.formats.codes import CodeFormat
from trtq.pipeline.formats.encoding import Encoding, LayerScheme
from trtq.pipeline.formats.granularity import PerBlock, PerChannel


def test_formats_are_found_by_name_from_the_most_exact_to_the_smallest() -> None:
    assert list(FORMATS) == ["fp32", "fp16", "bf16", "int8", "fp8", "int4", "nf4"]
    assert list(WEIGHT_FORMATS) == ["int8", "fp8", "int4", "nf4"]
    assert WEIGHT_METHODS == ("rtn", "mse", "gptq", "awq")
    assert [str(item) for item in FORMATS.values()] == list(FORMATS)


@pytest.mark.parametrize("form", WEIGHT_FORMATS.values(), ids=str)
def test_codes_are_of_the_dtype_and_stand_for_numbers_near(form: CodeFormat) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    granularity = PerBlock(0, form.block_sizes[0]) if form.block_sizes else PerChannel(1)
    codes, scales = form.encode(weight, granularity)
    assert (codes.dtype, codes.shape) == (form.array_dtype, weight.shape)
    found = form.decode(codes, scales, granularity)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - weight) < {8: 0.03, 4: 0.15}[form.bits] * np.linalg.norm(weight)
    assert form.dtype.bitwidth == form.bits
    for runtime in ("tensorrt", "onnxruntime"):
        assert form.describe_gain(runtime).startswith(("TensorRT ", "ONNX Runtime "))


def test_only_fp8_needs_newer_gpus() -> None:
    newer = [name for name, form in WEIGHT_FORMATS.items() if form.compute_capability > (8, 0)]
    assert newer == ["fp8"]
    assert FP8.dtype is ir.DataType.FLOAT8E4M3FN


def test_a_scheme_is_called_by_the_formats_of_its_layer() -> None:
    int8, int4 = Encoding(INT8), Encoding(INT4, PerBlock(0, 64))
    assert str(LayerScheme("weighted-input", ((0, int8),), Encoding(INT8, PerChannel(1)))) == "int8 x int8"
    assert str(LayerScheme("two-activations", ((0, int8), (1, int8)))) == "int8 x int8"
    assert str(LayerScheme("residual-add", ((1, int8),))) == "int8"
    assert str(LayerScheme("weight-alone", weight=int4)) == "float x int4"


def test_only_channels_have_an_axis_of_channels() -> None:
    assert Encoding(INT8, PerChannel(1)).channel_axis == 1
    assert Encoding(INT4, PerBlock(1, 16)).channel_axis is None
