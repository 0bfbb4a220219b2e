"""Tests of the coverage: which quantized layers run in INT8, and why the others do not."""

from __future__ import annotations

import pytest

from trtq.kept import Fallback
from trtq.pipeline.engine.backend import BuiltEngine
from trtq.pipeline.engine.coverage import list_precisions, measure_coverage
from trtq.pipeline.engine.kernels import Kernel
from trtq.pipeline.graph.quantized import QuantizedLayer

_CONV = QuantizedLayer("conv", "Conv", (), 0, 0)
_INT8 = Kernel("conv_myl0_1", "correlation", ("conv", "dq"), ("Int8",), ("Int8", "Float"))
_FLOAT = Kernel("conv_myl0_1", "correlation", ("conv", "relu"), ("Float", "Float"), ("Half",))
_GLUE = Kernel("__myl_Mul_0", "kgen", ("conv", "dq"), ("Half",), ("Int8",))
_OTHER = Kernel("other", "gemm", ("other",), ("Int8",), ("Int8",))


def test_a_layer_with_an_int8_kernel_is_covered() -> None:
    result = measure_coverage([_CONV], BuiltEngine(b"", (_GLUE, _INT8, _OTHER)))
    assert (result.layers_quantized, result.num_realized, result.fallbacks) == (1, 1, ())


def test_several_layers_in_one_kernel_are_all_covered() -> None:
    merged = Kernel("q+k+v", "gemm", ("q", "k", "v"), ("Int8",), ("Int8",))
    layers = [QuantizedLayer(name, "MatMul", (), 1, 1) for name in "qkv"]
    assert measure_coverage(layers, BuiltEngine(b"", (merged,))).num_realized == 3


def test_a_float_layer_is_a_fallback_with_the_dtypes_of_its_main_kernel() -> None:
    result = measure_coverage(
        [_CONV, QuantizedLayer("other", "Gemm", (), 0, 0)], BuiltEngine(b"", (_GLUE, _FLOAT, _OTHER))
    )
    assert (result.layers_quantized, result.num_realized) == (2, 1)
    assert result.fallbacks == (
        Fallback(
            "conv",
            "Conv",
            "Float/Half",
            "the builder found no kernel for it as asked; --skip it to save the conversions",
        ),
    )


def test_without_a_kernel_of_arithmetic_the_generated_one_tells() -> None:
    (fallback,) = measure_coverage([_CONV], BuiltEngine(b"", (_GLUE,))).fallbacks
    assert fallback.runs_as == "Half/Int8"


def test_a_kernel_that_dequantizes_is_told_with_all_its_dtypes() -> None:
    fused = Kernel("CastMulFc", "runtime_fusion", ("conv",), ("Int8", "Int8"), ("Half",))
    (fallback,) = measure_coverage([_CONV], BuiltEngine(b"", (fused,))).fallbacks
    assert fallback.runs_as == "Int8/Half"
    assert list_precisions(["conv"], BuiltEngine(b"", (fused,))) == {"conv": "Int8/Half"}


def test_a_kernel_without_operands_is_unknown() -> None:
    built = BuiltEngine(b"", (Kernel("k", "shape_call", ("conv",), (), ()),))
    assert measure_coverage([_CONV], built).fallbacks[0].runs_as == "unknown"
    assert list_precisions(["conv"], built) == {"conv": "unknown"}


def test_a_layer_that_is_in_no_kernel_was_removed() -> None:
    (fallback,) = measure_coverage([_CONV], BuiltEngine(b"", (_OTHER,))).fallbacks
    assert fallback == Fallback(
        "conv",
        "Conv",
        "none",
        "no kernel has its name: the builder removed it, or fused it into another layer",
    )


def test_nothing_is_claimed_of_an_engine_that_tells_no_kernels() -> None:
    (fallback,) = measure_coverage([_CONV], BuiltEngine(b"", ())).fallbacks
    assert fallback == Fallback("conv", "Conv", "unknown", "the builder does not say what it runs")


@pytest.mark.parametrize(
    ("layer", "targets", "reason"),
    [
        (
            QuantizedLayer("conv", "ConvTranspose", (1,), 1, 1),
            ("7.5",),
            "TensorRT has no INT8 kernel for ConvTranspose; leave it out of --op-types",
        ),
        (
            QuantizedLayer("conv", "Conv", (1,), 1, 0),
            ("7.5",),
            "its activation scale has shape (1,); INT8 kernels need a 0-d scale",
        ),
        (
            QuantizedLayer("conv", "Conv", (), 1, 0),
            ("7.5",),
            "its weight is quantized along axis 1, INT8 wants axis 0",
        ),
        (
            QuantizedLayer("conv", "MatMul", (), 2, None),
            (),
            "its weight is quantized along axis 2, INT8 wants one scale for all of it",
        ),
        (
            QuantizedLayer("conv", "Conv", None, None, 0),
            ("8.9", "7.5"),
            "compute capability 7.5 (Turing) runs Q/DQ layers in float",
        ),
        (QuantizedLayer("conv", "Conv", None, None, 0), ("8.9",), "as usual"),
    ],
)
def test_the_reason_is_the_first_that_is_known(
    layer: QuantizedLayer, targets: tuple[str, ...], reason: str
) -> None:
    built = BuiltEngine(b"", (_FLOAT,), usual_reason="as usual")
    assert measure_coverage([layer], built, targets).fallbacks[0].reason == reason


def test_precisions_are_told_of_the_nodes_that_have_a_kernel() -> None:
    built = BuiltEngine(b"", (_GLUE, _INT8, _OTHER, Kernel("f", "gemm", ("f",), ("Half",), ("Half",))))
    assert list_precisions(["conv", "f", "removed"], built) == {"conv": "Int8", "f": "Half"}


@pytest.mark.parametrize(
    ("layer", "kernel", "realized"),
    [
        (("fp8", "fp8"), Kernel("k", "gemm", ("mm",), ("FP8",), ("FP8", "Float")), {"fp8": 1}),
        (("fp8", "int4"), Kernel("k", "gemm", ("mm",), ("FP8", "FP8"), ("Float",)), {"fp8 x int4": 1}),
        (
            ("", "int4"),
            Kernel("k", "runtime_fusion", ("mm",), ("Half",), ("Int4", "Half")),
            {"int4-weights": 1},
        ),
        (("nvfp4", "nvfp4"), Kernel("k", "gemm", ("mm",), ("FP4E2M1",), ("FP4E2M1",)), {"nvfp4": 1}),
        (("fp8", "fp8"), Kernel("k", "gemm", ("mm",), ("Int8",), ("Int8", "Float")), {}),
        (("", "nvfp4"), Kernel("k", "gemm", ("mm",), ("Half", "Half"), ("Float",)), {}),
    ],
)
def test_a_layer_is_covered_only_in_the_format_that_it_is_asked_in(
    layer: tuple[str, str], kernel: Kernel, realized: dict[str, int]
) -> None:
    asked = QuantizedLayer("mm", "MatMul", (), 1, 1, *layer)
    covered = measure_coverage([asked], BuiltEngine(b"", (kernel,)))
    assert covered.layers_realized == realized
    assert [item.asked for item in covered.fallbacks] == ([] if realized else [asked.asked])


@pytest.mark.parametrize(
    ("formats", "reason"),
    [
        (("", "int4"), "its INT4 weight is dequantized separately in each run: less memory, but not faster"),
        (("fp8", "nvfp4"), "no kernel multiplies FP8 with NVFP4"),
        (
            ("nvfp4", "nvfp4"),
            "NVFP4 runs in MatMul and Gemm alone, with blocks of 16 along the summed axis of both operands",
        ),
    ],
)
def test_the_reason_speaks_of_the_format(formats: tuple[str, str], reason: str) -> None:
    built = BuiltEngine(b"", (Kernel("k", "gemm", ("mm",), ("Half", "Half"), ()),))
    (fallback,) = measure_coverage([QuantizedLayer("mm", "MatMul", (), 1, 1, *formats)], built).fallbacks
    assert (fallback.runs_as, fallback.reason) == ("Half", reason)
