"""The counts of `make conformance`: a refusal without a reason must not hide among those with one."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def conformance() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOME))
        yield importlib.import_module("conformance")
        for name in ("conformance", "conformance_refusals"):
            sys.modules.pop(name)


def _say(
    onnxruntime: str = "", rtx: str = "", inspect: str = "", build: str = "verdict: pass"
) -> dict[str, str]:
    return {"onnxruntime": onnxruntime, "tensorrt-rtx": rtx, "inspect": inspect, "lint": "", "build": build}


_SEQUENCE = "ModelError: input 'x' is Sequence(Tensor(FLOAT)); trtq and TensorRT take tensors only"


def test_refusals_are_counted_by_who_takes_the_model(conformance: Any) -> None:
    found = conformance.summarize(
        {
            "good": _say(),
            "sequence": _say(rtx="refused: no", inspect=_SEQUENCE, build=_SEQUENCE),
            "ours alone": _say(inspect=_SEQUENCE, build="ModelError: no"),
            "nobody's": _say(onnxruntime="refused: no", build="ModelError: no"),
            "crash": _say(build="CRASH: it ended with -11"),
        }
    )
    assert (found["models"], found["onnxruntime runs"], found["onnxruntime runs and the parser takes"]) == (
        5,
        4,
        3,
    )
    assert (found["refused"], found["refused that onnxruntime runs"], found["refused that both take"]) == (
        4,
        3,
        2,
    )
    assert found["tracebacks, crashes and hangs"] == 1
    assert found["verdicts"] == {"pass": 1, "fail": 0, "unverified": 0}
    [(reason, group)] = found["refused for a reason"].items()
    assert reason.startswith("inputs and outputs that are sequences")
    assert group == {"that both take": 0, "models": ["sequence"]}
    assert list(found["refused without a reason"]) == ["crash", "ours alone"]


def test_every_reason_is_a_pattern_of_its_own(conformance: Any) -> None:
    for reason, words in conformance.REASONS.items():
        re.compile(words)
        assert not re.search(words, "ModelError: the shapes of the model do not fit together"), reason


def test_a_feed_has_the_names_of_the_inputs_without_the_weights(conformance: Any) -> None:
    import onnx.parser

    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[2] w, float[2] x) => (float[2] y)'
        " <float[2] w = {1, 2}> { y = Add (x, w) }"
    )
    assert conformance.name_inputs(model, ["for x"]) == {"x": "for x"}
