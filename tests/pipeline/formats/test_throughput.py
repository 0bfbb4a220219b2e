"""What GPUs multiply fastest in, by their data sheets."""

from __future__ import annotations

import pytest

from trtq.pipeline.formats import LAYER_FORMATS
from trtq.pipeline.formats.throughput import GPU_SPEEDS, choose_fastest, find_speed


@pytest.mark.parametrize("capability", GPU_SPEEDS)
def test_a_gpu_multiplies_in_the_formats_that_it_has_and_no_others(capability: tuple[int, int]) -> None:
    throughput = GPU_SPEEDS[capability].throughput
    for name in throughput.keys() - {"fp16"} & LAYER_FORMATS.keys():
        assert LAYER_FORMATS[name].compute_capability <= capability, name
    assert throughput["fp16"] == 1.0
    assert ("fp8" in throughput) == (capability >= (8, 9))


@pytest.mark.parametrize(
    ("capabilities", "like"),
    [
        ((), (8, 0)), (("8.9",), (8, 9)), (("12.0", "8.9"), (8, 9)), (("8.7",), (8, 6)),
        (("12.1",), (12, 0)), (("7.0",), (7, 5)), (("10.0", "9.0"), (9, 0)),
    ],
)  # fmt: skip
def test_the_oldest_gpu_counts_and_others_are_like_the_newest_before_them(
    capabilities: tuple[str, ...], like: tuple[int, int]
) -> None:
    assert find_speed(capabilities) is GPU_SPEEDS[like]


def test_of_equally_fast_formats_the_first_is_taken() -> None:
    assert choose_fastest(("int8", "fp8"), ("8.9",)) == "int8"
    assert choose_fastest(("int8", "fp8", "nvfp4"), ("12.0",)) == "nvfp4"
    assert choose_fastest(("int8", "fp8"), ("10.3",)) == "fp8"
