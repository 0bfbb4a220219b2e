"""What a layer costs in each format: by hand, on a GPU that is easy to calculate with."""

from __future__ import annotations

from trtq.pipeline.formats.throughput import GpuSpeed
from trtq.pipeline.judge.costs import price_layers
from trtq.pipeline.judge.macs import LayerWork

SPEED = GpuSpeed({"fp16": 1.0, "int8": 2.0, "fp8": 2.0}, 10.0)
_ALL = ("int8", "fp8", "fp16")


def test_a_layer_of_many_multiplications_costs_what_they_take() -> None:
    works = {"a": LayerWork(3000, 10, 10), "b": LayerWork(1000, 5, 5)}
    found = price_layers(works, {"a": _ALL}, SPEED)
    assert found == {"a": {"int8": 0.375, "fp8": 0.375, "fp16": 0.75}}  # of 4000 in all


def test_a_layer_of_few_multiplications_costs_what_reading_takes() -> None:
    """Operands in the format, results in FP16: 100 and 20 bytes of 2 in FP16, 50 of 1 and 20 in INT8."""
    found = price_layers({"a": LayerWork(100, 50, 10)}, {"a": ("int8", "fp16")}, SPEED)
    assert found["a"]["fp16"] == 1.0
    assert found["a"]["int8"] == (50 + 20) / (100 + 20)


def test_a_format_that_the_gpu_does_not_multiply_in_saves_no_multiplication() -> None:
    old = GpuSpeed({"fp16": 1.0, "int8": 2.0}, 10.0)
    found = price_layers({"a": LayerWork(3000, 10, 10)}, {"a": _ALL}, old)
    assert found == {"a": {"int8": 0.5, "fp8": 1.0, "fp16": 1.0}}


def test_what_is_not_counted_costs_nothing() -> None:
    assert price_layers({}, {"add": ("int8", "fp16")}, SPEED) == {"add": {"int8": 0.0, "fp16": 0.0}}
