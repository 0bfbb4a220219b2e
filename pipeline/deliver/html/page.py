"""From a report to the bytes of its page."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtq import lazy
from trtq.numbers import format_bytes, format_seconds
from trtq.pipeline.deliver.html import charts, numbers, rows, view
from trtq.pipeline.deliver.html.graph import list_nodes
from trtq.pipeline.deliver.html.thumbnails import NUM_WORST
from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.judge.score import name_metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    import jinja2

    from trtq.pipeline.deliver.html.page_data import PageData
    from trtq.pipeline.deliver.side_by_side import PairRow
    from trtq.pipeline.judge.sensitivity import Sensitivity

NAME = "report.html"
LAYOUT = "dagre.min.js"
"""Lays graphs out. setup.py fetches it by npm; without it the page draws no graph."""
_FOLDER = Path(__file__).parent
_NUM_SHOWN = 12
"""Tensors and layers that are open at first; the others are behind a click."""


def render_page(
    report: Report, manifest: Manifest, seen: PageData, measured: Sensitivity | None = None
) -> bytes:
    """Returns the page: one file that loads nothing and runs only what its own digest allows.

    Args:
        report: Of the build.
        manifest: Of the same; its outputs are not looked at.
        seen: The tensors and layers.
        measured: What each layer costs alone, if it was measured.
    """
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    nodes = list_nodes(seen, manifest) if seen.graph and (_FOLDER / LAYOUT).exists() else []
    names = (*([LAYOUT, "graph.js"] if nodes else []), "page.js")
    script = "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)
    template = _environment().get_template("page.html.jinja")
    text = template.render(
        report=report,
        manifest=manifest,
        seen=seen,
        measured=measured,
        style=style,
        script=script,
        policy=_policy(style, script),
        title=Path(report.model).name,
        metric=name_metric(report.metric),
        settings=json.dumps(manifest.settings, indent=1, default=str, sort_keys=True),
        layers=rows.list_layer_rows(seen, manifest, measured),
        cards=rows.list_cards(seen),
        nodes=nodes,
        num_shown=_NUM_SHOWN,
        num_worst=NUM_WORST,
        view=view,
        chart=charts,
        most_db=rows.MOST_DB,
        low_db=rows.LOW_DB,
    )
    return text.encode(errors="backslashreplace")  # names of files may hold bytes that are no UTF-8


def render_pair(
    names: tuple[str, str], rows: Sequence[PairRow], layers: Sequence[tuple[str, Sequence[str]]] = ()
) -> bytes:
    """Returns the page of two builds side by side, which loads nothing and runs nothing.

    Args:
        names: Of the builds, the one that the other is measured by first.
        rows: Of `compare_reports`.
        layers: Titles, and the names of the layers that differ in this way.
    """
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    template = _environment().get_template("pair.html.jinja")
    text = template.render(names=names, rows=rows, layers=layers, style=style, policy=_policy(style, ""))
    return text.encode(errors="backslashreplace")


def _policy(style: str, script: str) -> str:
    """Returns a content security policy: nothing is loaded, and no other style or script counts."""
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashed[0]}'; "
        f"script-src 'sha256-{hashed[1]}'; base-uri 'none'; form-action 'none'"
    )


@cache
def _environment() -> jinja2.Environment:
    library = lazy.require("jinja2", None, "the report's page")
    environment: jinja2.Environment = library.Environment(
        loader=library.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=library.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    own = ("amount", "share", "decibels", "magnitude")
    functions: dict[str, Any] = {name: getattr(numbers, f"format_{name}") for name in own}
    environment.filters |= {"size": format_bytes, "seconds": format_seconds, **functions}
    return environment
