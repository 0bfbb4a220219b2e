"""Tests of the times of a quantized model beside the float one, layer by layer."""

from __future__ import annotations

from trtq.pipeline.bench.layers import CONVERSIONS, compare_layers, rename_nodes
from trtq.pipeline.engine.kernel_times import KernelTime, find_midmean
from trtq.pipeline.judge.speed import LayerTime, SpeedVerdict, blame_layers


def test_fused_nodes_are_one_layer_and_what_costs_most_comes_first() -> None:
    floats = [
        KernelTime("k1", "Conv", ("conv1", "relu1"), 1.0),
        KernelTime("k2", "FusedConv", ("conv2", "add", "relu2"), 4.0),
        KernelTime("r", "ReorderOutput", ("conv2", "add", "relu2"), 0.5, converts=True),
        KernelTime("k3", "Softmax", ("soft",), 2.0),
    ]
    others = [
        KernelTime("q", "QuantizeLinear", ("conv1",), 0.25, converts=True),
        KernelTime("k1", "QLinearConv", ("conv1",), 0.5),
        KernelTime("k1b", "Relu", ("relu1",), 0.75),
        KernelTime("k2", "QLinearConv", ("conv2",), 1.0),
        KernelTime("k2b", "QLinearAdd", ("add", "relu2"), 0.5),
        KernelTime("k3", "Softmax", ("soft",), 2.25),
        KernelTime("smooth", "Mul", ("smooth_mul",), 0.125),
    ]
    assert compare_layers(floats, others) == (
        LayerTime("conv1", ("relu1",), 1.0, 1.5, 0.25, ("Conv",), ("QLinearConv", "Relu", "QuantizeLinear")),
        LayerTime("soft", (), 2.0, 2.25, 0.0, ("Softmax",), ("Softmax",)),
        LayerTime(CONVERSIONS, (), 0.0, 0.125, 0.125, (), ("Mul",)),
        LayerTime(
            "conv2",
            ("add", "relu2"),
            4.5,
            1.5,
            0.0,
            ("FusedConv", "ReorderOutput"),
            ("QLinearConv", "QLinearAdd"),
        ),
    )


def test_no_time_is_lost() -> None:
    floats = [KernelTime(str(index), "", (f"n{index}",), index) for index in range(9)]
    others = [KernelTime("all", "", ("n1", "n4", "other"), 7.0), KernelTime("none", "", (), 5.0)]
    rows = compare_layers(floats, others)
    assert sum(row.float_ms for row in rows) == sum(range(9))
    assert sum(row.quantized_ms for row in rows) == 12.0
    assert {row.name for row in rows} == {"n0", "n1", "n2", "n3", "n5", "n6", "n7", "n8", CONVERSIONS}
    assert compare_layers([], []) == ()


def test_kernels_without_a_type_go_by_their_names() -> None:
    (row,) = compare_layers([KernelTime("conv1 + relu1", "", ("conv1",), 1.0)], [])
    assert row.float_kernels == ("conv1 + relu1",)


def test_nodes_are_renamed_where_they_are_called_otherwise() -> None:
    kernel = KernelTime("k", "Conv", ("Conv_0", "relu"), 1.0)
    (found,) = rename_nodes([kernel], {"Conv_0": "stem"})
    assert found.nodes == ("stem", "relu")


def test_the_middle_half_is_averaged() -> None:
    assert find_midmean([1.0, 2.0, 3.0, 1000.0]) == 2.5
    assert find_midmean([7.0]) == 7.0
    assert find_midmean([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 900.0]) == 3.5


def test_a_verdict_that_fails_names_the_layers_that_cost_most() -> None:
    def layer(name: str, float_ms: float, quantized_ms: float) -> LayerTime:
        return LayerTime(name, (), float_ms, quantized_ms, 0.0, (), ())

    verdict = SpeedVerdict("fail", ("int8 is slow",), 1.05, "int8", "fp32")
    layers = [layer("a", 0.1, 0.4), layer("b", 1.0, 1.2345), layer("c", 0.1, 0.2), layer("d", 0.1, 0.15)]
    found = blame_layers(verdict, [*layers, layer("e", 1.0, 0.5)])
    assert found.reasons == (
        "int8 is slow; it loses most in a (0.1 ms, quantized 0.4), b (1 ms, quantized 1.23), "
        "c (0.1 ms, quantized 0.2)",
    )
    assert [item.name for item in found.costliest] == ["a", "b", "c"]
    assert blame_layers(verdict, [layer("e", 1.0, 0.5)]) == verdict
