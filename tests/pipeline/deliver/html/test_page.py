"""Tests of the page as text: whole, escaped, small; `test_in_a_browser.py` looks at it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtq.kept import KeptNode
from trtq.pipeline.deliver.html.page import render_page
from trtq.pipeline.deliver.html.page_data import PageData
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import AutoReport, Report, WeightsReport
from trtq.pipeline.judge.sensitivity import Distance, Effect, LayerSensitivity, Sensitivity
from trtq.records import LogitsComparison

_VOID = {"meta", "link", "input", "path", "rect", "circle"}


class Parsed(HTMLParser):
    """The tags of a page, how often each stands there, all attributes, and what is not closed."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.opened: list[str] = []
        self.text = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in _VOID:
            self.opened.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_of_the_report_is_on_the_page(report: Report, manifest: Manifest, seen: PageData) -> None:
    logits = LogitsComparison("int8", "fp32", "logits", 0.01, 12.5, 12.25)
    weights = WeightsReport("int4", "mse", 64, 10, 4000, 500, 4.25, "less memory")
    report = replace(
        report,
        logits=(logits,),
        weights=weights,
        top5={"fp32": 0.991, "int8": 0.9},
        auto=AutoReport("the gate passes: 3 of 9 layers are kept"),
        reused=("ranges",),
        engine=replace(report.engine, warnings=("slow kernel",)),
    )
    parsed = Parsed(render_page(report, manifest, seen))
    assert parsed.opened == []
    for text in (
        "model.onnx", "Fail", "98.00%", "62.00%", "by 36.00 points", "a warning", "a note", "slow kernel",
        "0.90000", "perplexity 12.5", "10 weights in INT4 (mse)", "Top-5 accuracy: FP32 99.10%",
        "3 of 9 layers", "in an earlier build", "no kernel", "stays float", "1 INT8, 1 FP16, 1 FP32", "image",
        "hidden", "last",
        "entropy(num_bins=2048", "1.0 MB (26%)", "trtq build model.onnx --int8", "trtexec", "ab" * 32,
    ):  # fmt: skip
        assert text in parsed.text, text


def test_an_empty_report_makes_a_page(report: Report) -> None:
    bare = replace(
        report,
        verdict="unverified",
        reasons=(),
        calibration=None,
        comparison=(),
        accuracy={},
        evaluation_data="",
        kept_float=(),
        notes=(),
        warnings=(),
        sizes_bytes={},
        timings_s={},
        engine=replace(report.engine, fallbacks=(), layers_quantized=0, layers_realized={}),
    )
    parsed = Parsed(render_page(bare, Manifest({}, {}, {}, {}), PageData()))
    assert parsed.opened == []
    for text in (
        "Unverified",
        "No layer of this build is quantized",
        "Nothing was compared",
        "quantized no layer in this build",
        "There are no histograms for this build",
    ):
        assert text in parsed.text


def test_what_was_measured_of_layers_is_shown(report: Report, manifest: Manifest, seen: PageData) -> None:
    effect = Effect({"y": Distance(1.0, 33.25)})
    layers = tuple(LayerSensitivity(layer.name, "Conv", 1, effect, effect) for layer in seen.layers)
    measured = Sensitivity("model.onnx", "data", 77, 3, layers=layers)
    text = Parsed(render_page(report, manifest, seen, measured)).text
    assert "when only this layer is quantized, on 77 samples" in text
    assert text.count("33.2") == 3
    assert "trtq sensitivity" not in text


def test_a_tensor_of_zeros_is_told(report: Report, manifest: Manifest, seen: PageData) -> None:
    dead = replace(seen.tensors[0], counts=(), total=9, zeros=9)
    page = render_page(report, manifest, replace(seen, tensors=(dead,)))
    assert "Zero in every sample" in Parsed(page).text


def test_only_our_style_and_script_count(report: Report, manifest: Manifest, seen: PageData) -> None:
    page = render_page(report, manifest, seen).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src &#39;sha256-{digest}&#39;" in policy[1]


def test_nothing_is_linked_to_but_the_page_itself(report: Report, manifest: Manifest, seen: PageData) -> None:
    page = render_page(report, manifest, seen).decode()
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) == {"", "data:,"}
    assert "http" not in page.replace("http-equiv", "")


_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.one_of(
        _names, st.sampled_from(["</script>", "<img src=x onerror=a>", '"><b onload=a>', "]]>", "<!--"])
    )
)
def test_no_name_becomes_markup(name: str, report: Report, manifest: Manifest, seen: PageData) -> None:
    plain = Parsed(render_page(*_named("name", report, manifest, seen)))
    evil = Parsed(render_page(*_named(name, report, manifest, seen)))
    assert evil.tags == plain.tags
    assert evil.attributes == plain.attributes
    assert evil.opened == []


def _named(
    name: str, report: Report, manifest: Manifest, seen: PageData
) -> tuple[Report, Manifest, PageData]:
    """Returns all with this name wherever a name of the user's stands."""
    report = replace(
        report,
        model=f"{name}.onnx",
        reasons=(name,),
        warnings=(name,),
        notes=(name,),
        evaluation_data=name,
        kept_float=(KeptNode(name, name, name),),
        comparison=tuple(replace(item, output=name) for item in report.comparison),
    )
    manifest = replace(manifest, inputs={name: name}, settings={"a": name}, commands={name: name})
    tensors = tuple(replace(tensor, name=name) for tensor in seen.tensors[:1])
    layers = tuple(replace(layer, name=name, tensors=(name,)) for layer in seen.layers[:1])
    return report, manifest, replace(seen, tensors=tensors, layers=layers, methods={"entropy": name})


def test_a_file_name_that_is_no_text_makes_a_page(report: Report, manifest: Manifest, seen: PageData) -> None:
    page = render_page(replace(report, model="m\udcff.onnx"), manifest, seen)
    assert r"m\udcff.onnx" in page.decode()


def test_a_net_of_300_layers_takes_less_than_2_mb(report: Report, manifest: Manifest, seen: PageData) -> None:
    name = "p2o.pd_op.batch_norm_.{}.tmp_0/backbone/stage/block/conv2d/output"
    tensors = tuple(replace(seen.tensors[0], name=name.format(number)) for number in range(300))
    layers = tuple(replace(seen.layers[0], name=item.name, tensors=(item.name,)) for item in tensors)
    seen = replace(seen, tensors=tensors, layers=layers)
    assert 300_000 < len(render_page(report, manifest, seen)) < 2_000_000


@pytest.mark.parametrize(("quantization", "precision", "told"), [
    ("implicit", "int8", "TensorRT ran its own calibration"),
    ("explicit", "int8", "the ranges were given, or none are needed"),
])  # fmt: skip
def test_why_nothing_was_seen_is_told(
    quantization: str, precision: str, told: str, report: Report, manifest: Manifest
) -> None:
    engine = replace(report.engine, quantization=quantization)
    assert (
        told
        in Parsed(render_page(replace(report, engine=engine, precision=precision), manifest, PageData())).text
    )
