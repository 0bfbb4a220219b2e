"""The graph around a layer: what the page is told, and what its script draws in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest
from chromium import Chromium

from trtq.pipeline.deliver.html import page as page_module
from trtq.pipeline.deliver.html.graph import list_nodes, summarize_graph
from trtq.pipeline.deliver.html.page import LAYOUT, render_page
from trtq.pipeline.deliver.html.page_data import GraphNode, PageData
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import Report

Write = Callable[[bytes], str]
Observe = Callable[[list[str]], PageData]
EVIL = "</script><img src=x onerror=\"document.title = 'owned'\">"
needs_layout = pytest.mark.skipif(
    not (Path(page_module.__file__).parent / LAYOUT).exists(),
    reason="setup.py had no npm to fetch dagre with",
)


def chain(count: int, layer: str = "layer {}") -> tuple[GraphNode, ...]:
    """Returns layers in a row, each of which an Add reads too that joins it with the next."""
    return (
        GraphNode("in", "input", (), ("t0",)),
        *(GraphNode(layer.format(at), "Conv", (f"t{at}",), (f"t{at + 1}",)) for at in range(count)),
        *(GraphNode(f"add {at}", "Add", (f"t{at}", f"t{at + 1}"), (f"a{at}",)) for at in range(count)),
    )


@pytest.fixture
def seen(observe: Observe) -> PageData:
    return replace(observe([f"t{at}" for at in range(12)]), graph=chain(12))


@pytest.fixture
def address(report: Report, manifest: Manifest, seen: PageData, write: Write) -> str:
    return write(render_page(report, manifest, seen))


def test_a_graph_has_the_nodes_that_compute_something_of_the_inputs(path_of: Callable[..., Path]) -> None:
    text = """g (float[N,2] x) => (float[N,2] y) {
        c = Constant <value_float = 2.0> ()
        [first] a = Mul (x, c)
        [both] y = Add (a, a)
    }"""
    assert summarize_graph(ir.load(path_of(text))) == (
        GraphNode("x", "input", (), ("x",)),
        GraphNode("first", "Mul", ("x",), ("a",)),
        GraphNode("both", "Add", ("a",), ("y",)),
        GraphNode("y", "output", ("y",)),
    )


def test_the_script_is_told_formats_and_ranges(manifest: Manifest, observe: Observe) -> None:
    seen = replace(observe(["t0"]), graph=chain(2))
    amax = list_nodes(seen, manifest)[1][3][0][2]
    assert float(amax) == pytest.approx(seen.tensors[0].used.amax, rel=1e-3)
    assert list_nodes(seen, manifest) == [
        ("in", "input", "", []),
        ("layer 0", "Conv", "INT8", [(0, "t0", amax)]),
        ("layer 1", "Conv", "FP16", [(1, "t1", "")]),
        ("add 0", "Add", "", [(0, "t0", amax), (1, "t1", "")]),
        ("add 1", "Add", "", [(1, "t1", ""), (2, "t2", "")]),
    ]


def test_a_page_of_300_layers_is_below_two_megabytes(
    report: Report, manifest: Manifest, observe: Observe
) -> None:
    seen = observe(["t0"])
    tensors = tuple(replace(seen.tensors[0], name=f"t{at}") for at in range(300))
    layers = tuple(
        replace(seen.layers[0], name=f"backbone/stage/layer {at}", tensors=(f"t{at}",)) for at in range(300)
    )
    seen = replace(seen, tensors=tensors, layers=layers, graph=chain(300, "backbone/stage/layer {}"))
    assert len(render_page(report, manifest, seen)) < 2_000_000


def test_without_the_library_the_page_has_no_graph(
    report: Report, manifest: Manifest, seen: PageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "LAYOUT", "nowhere.js")
    text = render_page(report, manifest, seen).decode()
    assert "<dialog" not in text
    assert "graph-nodes" not in text


_OPEN = """(name) => {
    const label = `Graph around ${name}`;
    const button = [...document.querySelectorAll("#layers .around")].find((item) => item.ariaLabel === label);
    button.focus();
    button.click();
}"""
_DRAWN = "[...document.querySelectorAll('.drawn [role=button]')].map(item => item.ariaLabel)"
_TITLE = "document.getElementById('graph-title').textContent"


@needs_layout
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_a_click_on_a_layer_draws_what_is_around_it(
    chromium: Chromium, address: str, width: int, dark: bool
) -> None:
    chromium.open(address, width=width, dark=dark)
    assert chromium.evaluate("document.getElementById('graph').checkVisibility()") is False
    chromium.evaluate(f"({_OPEN})('layer 1')")
    near = ["in, input", "layer 0, Conv · INT8", "layer 1, Conv · FP16"]
    near += ["layer 2, Conv", "layer 3, Conv", "add 1, Add", "add 2, Add", "add 3, Add"]
    assert sorted(chromium.evaluate(_DRAWN)) == sorted(near)
    styles = chromium.evaluate(
        "[...document.querySelectorAll('.drawn [role=button]')].map(item => item.classList[0])"
    )
    assert sorted(set(styles)) == ["codes", "half", "unknown"]
    ranges = chromium.evaluate(
        "[...document.querySelectorAll('.drawn .range')].map(item => item.textContent)"
    )
    assert len(ranges) == len(chromium.evaluate("[...document.querySelectorAll('.drawn .edge')].map(String)"))
    assert all(text.startswith("±") and float(text[1:]) > 0 for text in ranges)
    left, right = chromium.evaluate(
        "(({ left, right }) => [left, right])(document.getElementById('graph').getBoundingClientRect())"
    )
    assert 0 <= left < right <= width
    assert chromium.evaluate("document.documentElement.scrollWidth") == width
    assert (chromium.problems, chromium.requests) == ([], [address])


@needs_layout
def test_the_keyboard_moves_to_a_node_and_back(chromium: Chromium, address: str) -> None:
    chromium.open(address)
    chromium.evaluate(f"({_OPEN})('layer 5')")
    assert chromium.evaluate("document.activeElement.ariaLabel") == "layer 5, Conv"
    chromium.evaluate("""(() => {
        const drawn = [...document.querySelectorAll('.drawn [role=button]')];
        const node = drawn.find((item) => item.ariaLabel === 'layer 7, Conv');
        node.focus();
        node.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
    })()""")
    assert chromium.evaluate(_TITLE) == "layer 7"
    assert chromium.evaluate("document.activeElement.ariaLabel") == "layer 7, Conv"
    assert "layer 9, Conv" in chromium.evaluate(_DRAWN)
    chromium.evaluate("document.getElementById('graph-back').click()")
    assert (chromium.evaluate(_TITLE), "layer 9, Conv" in chromium.evaluate(_DRAWN)) == ("layer 5", False)
    chromium.evaluate("document.getElementById('graph-close').click()")
    assert chromium.evaluate("document.getElementById('graph').open") is False
    assert chromium.evaluate("document.activeElement.ariaLabel") == "Graph around layer 5"


@needs_layout
def test_more_steps_show_more(chromium: Chromium, address: str) -> None:
    chromium.open(address)
    chromium.evaluate(f"({_OPEN})('layer 5')")
    counts = []
    for steps in (1, 2, 3):
        chromium.evaluate(f"""(() => {{
            const control = document.getElementById('graph-steps');
            control.value = '{steps}';
            control.dispatchEvent(new Event('input'));
        }})()""")
        counts.append(len(chromium.evaluate(_DRAWN)))
    assert counts == [5, 8, 11]


@needs_layout
def test_a_tensor_with_hundreds_of_readers_is_drawn_in_part(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    readers = tuple(GraphNode(f"reader {at}", "Mul", ("t1",), (f"r{at}",)) for at in range(400))
    seen = replace(observe(["t0"]), graph=(*chain(1), *readers))
    chromium.open(write(render_page(report, manifest, seen)))
    chromium.evaluate(f"({_OPEN})('layer 0')")
    assert len(chromium.evaluate(_DRAWN)) == 32
    facts = chromium.evaluate("document.getElementById('graph-facts').textContent")
    assert facts.endswith("(371 more nodes are not drawn)")


@needs_layout
def test_evil_names_are_drawn_as_text(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    seen = observe(["t0", "t1"])
    layers = tuple(replace(layer, name=f"{EVIL}{at}") for at, layer in enumerate(seen.layers))
    address = write(
        render_page(report, manifest, replace(seen, layers=layers, graph=chain(2, f"{EVIL}{{}}")))
    )
    chromium.open(address, width=390)
    chromium.evaluate("document.querySelector('#layers .around').click()")
    assert chromium.evaluate(_TITLE).startswith(EVIL)
    assert chromium.evaluate("document.images.length") == 0
    assert (chromium.problems, chromium.requests) == ([], [address])
    assert chromium.evaluate("document.documentElement.scrollWidth") == 390
