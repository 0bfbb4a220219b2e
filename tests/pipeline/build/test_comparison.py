"""Which of the compared models is judged."""

from __future__ import annotations

import math

from trtq.pipeline.build.comparison import name_to_judge
from trtq.pipeline.judge.compare import Comparison
from trtq.pipeline.judge.tally import UnevenOutput
from trtq.records import OutputComparison


def test_the_engine_is_judged_if_it_was_run_though_its_outputs_have_other_sizes() -> None:
    model = OutputComparison("int8", "fp32", "y", 1.0, math.inf, 0.0, 0.0, None, 0, ())
    uneven = (UnevenOutput("engine", "fp32", "y", 3),)
    assert name_to_judge("int8", Comparison((model,), uneven=uneven)) == "engine"
    assert name_to_judge("int8", Comparison((model,))) == "int8"
    assert name_to_judge("int8", None) == "int8"
