"""The graph tells indices from amounts where the type does not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from trtq.calibrators.batches import Feed
from trtq.pipeline.graph.opset import infer_shapes
from trtq.pipeline.judge.origins import find_origins
from trtq.pipeline.judge.tally import Rules, Tally, measure_feed
from trtq.pipeline.judge.views import OutputViews


def _find(output: str, body: str) -> dict[tuple[str, str], bool]:
    text = f'<ir_version: 8, opset_import: ["": 17]> g (float[2,3,9] x) => ({output} y) <int64[1] k = {{3}}>'
    model = ir.from_proto(onnx.parser.parse_model(f"{text} {{ {body} }}"))
    infer_shapes(model)
    return find_origins(model)


@pytest.mark.parametrize(
    ("output", "body", "holds_names"),
    [
        ("int64[2,3,1]", "y = ArgMax <axis = 2> (x)", True),
        ("uint8[2,3,1]", "i = ArgMin <axis = 2> (x) y = Cast <to = 2> (i)", True),
        ("float[2,3]", "i = ArgMax <axis = 2> (x) f = Cast <to = 1> (i) y = Squeeze (f)", True),
        ("float[2,3,3]", "v, i = TopK <axis = 2> (x, k) y = Cast <to = 1> (i)", True),
        ("float[2,3,3]", "y, i = TopK <axis = 2> (x, k)", None),
        ("int32[2,3,9]", "y = Cast <to = 6> (x)", False),
        ("int64[2,3,9]", "r = Round(x) y = Cast <to = 7> (r)", False),
        ("int64[2,3,1]", "i = ArgMax <axis = 2> (x) f = Cast <to = 1> (i) y = Cast <to = 7> (f)", True),
        ("int64[3]", "y = Shape(x)", None),
        ("float[2,3,9]", "y = Relu(x)", None),
    ],
)
def test_the_maker_of_an_output_tells_what_it_holds(output: str, body: str, holds_names: bool | None) -> None:
    assert _find(output, body).get(("y", "")) is holds_names


def test_so_it_does_for_the_parts_of_an_output() -> None:
    body = "v, i = TopK <axis = 2> (x, k) f = Cast <to = 1> (i) y = Concat <axis = 2> (v, f)"
    assert _find("float[2,3,6]", body) == {("y", "f"): True}


@pytest.mark.parametrize(("are_names", "passes"), [(True, False), (False, True), (None, True)])
def test_a_class_that_is_off_by_one_is_another(are_names: bool | None, passes: bool) -> None:
    reference = np.array([[40, 90, 200]] * 4, np.uint8)
    views = OutputViews(names={} if are_names is None else {("y", ""): are_names})
    results = {"fp32": {"y": reference}, "int8": {"y": reference + np.uint8(1)}}
    rules, tally = Rules(holds_scores={"y": False}, tokens={"y": None}), Tally()
    tally.add(measure_feed([("int8", "fp32")], views, None, rules, Feed({}, "a feed", 4), results))
    (found,) = tally.compare_outputs([""] * 4)
    assert (found.judged_cosine > 0.99) == passes
