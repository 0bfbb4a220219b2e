"""The page in a real browser: nothing goes wrong, nothing is asked for, nothing sticks out, all is drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from chromium import Chromium
from PIL import Image

from trtq.kept import KeptNode
from trtq.pipeline.deliver.html.page import render_page, render_pair
from trtq.pipeline.deliver.html.page_data import PageData
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.deliver.side_by_side import PairRow

Write = Callable[[bytes], str]
Observe = Callable[[list[str]], PageData]
EVIL = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "\" onmouseover=\"document.title = 'owned'",
    "conv2d_" + 40 * "transpose_batch_norm." + "tmp_0",
    "слой/卷积/\N{RIGHT-TO-LEFT OVERRIDE}olleh",
]


@pytest.fixture
def page(report: Report, manifest: Manifest, seen: PageData) -> bytes:
    return render_page(report, manifest, seen)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_goes_wrong_is_asked_for_or_sticks_out(
    chromium: Chromium, page: bytes, write: Write, width: int
) -> None:
    address = write(page)
    chromium.open(address, width=width)
    assert chromium.problems == []
    assert chromium.requests == [address]
    assert chromium.evaluate("document.documentElement.scrollWidth") == width


def test_a_page_with_evil_names_runs_nothing_and_stays_in_the_window(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    seen = observe(EVIL)
    layers = tuple(replace(layer, name=name) for layer, name in zip(seen.layers, EVIL, strict=True))
    evil = replace(
        report,
        model=f"models/{EVIL[1]}.onnx",
        reasons=tuple(EVIL),
        warnings=tuple(EVIL),
        kept_float=tuple(KeptNode(name, name, name) for name in EVIL),
        comparison=tuple(replace(report.comparison[0], output=name) for name in EVIL),
    )
    address = write(
        render_page(
            evil, replace(manifest, commands=dict(zip(EVIL, EVIL, strict=True))), replace(seen, layers=layers)
        )
    )
    chromium.open(address, width=390)
    assert (chromium.problems, chromium.requests) == ([], [address])
    assert chromium.evaluate("document.title").endswith("· trtq")
    assert chromium.evaluate("[document.scripts.length, document.images.length]") == [1, 0]
    assert chromium.evaluate("document.documentElement.scrollWidth") == 390
    titles = chromium.evaluate("[...document.querySelectorAll('.card h3')].map(item => item.textContent)")
    assert sorted(titles) == sorted(EVIL)


def test_it_is_drawn_light_and_dark(chromium: Chromium, page: bytes, write: Write) -> None:
    light, dark = (picture_of(chromium, write(page), dark=dark) for dark in (False, True))
    assert light.mean() > 200
    assert dark.mean() < 60
    for picture in (light, dark):
        colours = np.unique(picture @ np.array([1 << 16, 1 << 8, 1]))
        assert len(colours) > 100  # of text, lines and areas


def test_text_has_contrast_in_both_schemes(chromium: Chromium, page: bytes, write: Write) -> None:
    address = write(page)
    for dark in (False, True):
        chromium.open(address, dark=dark)
        ratios = dict(chromium.evaluate(_CONTRASTS))
        assert len(ratios) > 10
        assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


def test_a_name_is_found_in_what_is_folded_away(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    seen = observe([f"tensor_{number}" for number in range(30)])
    chromium.open(write(render_page(report, manifest, seen)))
    assert chromium.evaluate("document.querySelector('#tensors details').open") is False
    chromium.evaluate("""(() => {
        const input = document.querySelector('[data-filter=card]');
        input.value = 'TENSOR_17';
        input.dispatchEvent(new Event('input'));
    })()""")
    shown = "[...document.querySelectorAll('.card')].filter(card => card.checkVisibility())"
    assert chromium.evaluate(f"{shown}.map(card => card.dataset.card)") == ["tensor_17"]


_PICK = """(key, value) => {
    const control = document.querySelector(`[data-filter=${key}]`);
    control.value = value;
    control.dispatchEvent(new Event('input'));
    return [[...document.querySelectorAll('#layers tbody tr')].filter(row => row.checkVisibility())
        .map(row => row.dataset.layer), document.querySelector('#layers output').value];
}"""


def test_layers_are_found_by_type_format_and_name(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    seen = observe([f"tensor_{number}" for number in range(30)])
    layers = tuple(
        replace(layer, op_type="Gemm" if place % 10 else "Conv") for place, layer in enumerate(seen.layers)
    )
    runs = {layer.name: "Half" if place < 20 else "Int8" for place, layer in enumerate(layers)}
    chromium.open(
        write(render_page(report, replace(manifest, layers=runs), replace(seen, layers=layers))), width=390
    )
    assert chromium.evaluate("document.documentElement.scrollWidth") == 390
    names, count = chromium.evaluate(f"({_PICK})('type', 'Conv')")
    assert (sorted(names), count) == (["layer 0", "layer 10", "layer 20"], "3 of 30")
    names, count = chromium.evaluate(f"({_PICK})('runs', 'FP16')")
    assert (sorted(names), count) == (["layer 0", "layer 10"], "2 of 30")
    assert chromium.evaluate(f"({_PICK})('layer', 'R 10')") == [["layer 10"], "1 of 30"]
    assert (
        chromium.evaluate(f"(({_PICK})('layer', ''), ({_PICK})('type', ''), ({_PICK})('runs', ''))[1]") == ""
    )


def test_thumbnails_are_drawn_and_nothing_is_loaded(
    chromium: Chromium, report: Report, manifest: Manifest, seen: PageData, write: Write
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 20, 20)).save(stream, "JPEG")
    picture = base64.b64encode(stream.getvalue()).decode()
    address = write(render_page(report, manifest, replace(seen, thumbnails=dict.fromkeys(EVIL, picture))))
    chromium.open(address, width=390)
    assert chromium.problems == []
    assert {one for one in chromium.requests if not one.startswith("data:")} == {address}
    sizes = chromium.evaluate("[...document.images].map(image => [image.naturalWidth, image.naturalHeight])")
    assert sizes == [[96, 64]] * len(EVIL)
    assert chromium.evaluate("document.title").endswith("· trtq")
    assert chromium.evaluate("document.documentElement.scrollWidth") == 390


def test_a_link_to_a_tensor_opens_what_it_is_folded_into(
    chromium: Chromium, report: Report, manifest: Manifest, observe: Observe, write: Write
) -> None:
    seen = observe([f"tensor_{number}" for number in range(30)])
    address = write(render_page(report, manifest, seen))
    chromium.open(address)
    last = chromium.evaluate("[...document.querySelectorAll('.card')].at(-1).id")
    chromium.open(f"{address}#{last}")
    assert chromium.evaluate(f"document.getElementById({last!r}).checkVisibility()") is True


def test_tables_scroll_inside_and_by_keyboard(chromium: Chromium, page: bytes, write: Write) -> None:
    chromium.open(write(page), width=390)
    boxes = "[...document.querySelectorAll('.scroll')]"
    inside = f"{boxes}.map(box => [getComputedStyle(box).overflowX, box.tabIndex])"
    assert {tuple(item) for item in chromium.evaluate(inside)} == {("auto", 0)}


def picture_of(
    chromium: Chromium, address: str, *, dark: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Returns the whole page as pixels: uint8, shape (height, width, 3)."""
    chromium.open(address, dark=dark)
    return np.asarray(Image.open(io.BytesIO(chromium.screenshot(whole=True))).convert("RGB"))


# Of the text of every element that has some, the ratio of contrast to what lies behind it (WCAG 2.1, 1.4.3).
_CONTRASTS = """(() => {
    const numbers = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
    const linear = (value) => value <= 10 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const behind = (item) => {
        for (; item; item = item.parentElement) {
            const color = numbers(getComputedStyle(item).backgroundColor);
            if (color.length === 3 || color[3] > 0) return color;
        }
    };
    return [...document.querySelectorAll('body *')].filter((item) => item.checkVisibility() &&
        [...item.childNodes].some((node) => node.nodeType === 3 && node.data.trim())).map((item) => {
        const style = getComputedStyle(item);
        const color = item.namespaceURI.endsWith('svg') ? style.fill : style.color;
        const [one, two] = [light(numbers(color)), light(behind(item))].sort((a, b) => b - a);
        return [`${item.tagName}.${item.className.baseVal ?? item.className}`, (one + 0.05) / (two + 0.05)];
    });
})()"""


_SORT = """(column) => {
  const heads = [...document.querySelectorAll("#layers table:first-of-type [data-sort]")];
  heads[column].querySelector("button").click();
  return [[...document.querySelectorAll("#layers tbody tr")].map((row) => row.dataset.layer),
          heads[column].getAttribute("aria-sort")];
}"""


def test_layers_are_sorted_by_a_click_on_a_column(chromium: Chromium, page: bytes, write: Write) -> None:
    chromium.open(write(page), width=390)
    before = chromium.evaluate(
        "[...document.querySelectorAll('#layers tbody tr')].map(row => row.dataset.layer)"
    )
    up, down = (chromium.evaluate(f"({_SORT})(0)") for _ in range(2))
    assert up == [sorted(before, key=str.lower), "ascending"]
    assert down == [up[0][::-1], "descending"]
    names, order = chromium.evaluate(f"({_SORT})(4)")
    numbers = chromium.evaluate(
        "[...document.querySelectorAll('#layers tbody tr')].map(row => row.cells[5].textContent)"
    )
    known = [float(text.replace("\N{MINUS SIGN}", "-")) for text in numbers if any(map(str.isdigit, text))]
    assert (known, order) == (sorted(known), "ascending")
    assert sorted(names) == sorted(before)
    assert chromium.problems == []


def test_two_builds_fit_a_phone(chromium: Chromium, write: Write) -> None:
    rows = [PairRow("verdict", "pass", "fail"), *(PairRow(name, name, name, "+0.00002") for name in EVIL)]
    address = write(render_pair((EVIL[0], EVIL[3]), rows, [(EVIL[1], EVIL)]))
    chromium.open(address, width=390)
    assert (chromium.problems, chromium.requests) == ([], [address])
    assert chromium.evaluate("document.documentElement.scrollWidth") == 390
    assert chromium.evaluate("[document.scripts.length, document.images.length]") == [0, 0]
