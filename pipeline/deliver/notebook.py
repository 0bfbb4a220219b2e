"""Results as notebooks show them: a headline and a table, as HTML without style or scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from trtq.records import OutputComparison

_HEADERS = ("model", "against", "output", "cosine", "SQNR dB", "max abs")


def verdict_to_html(
    verdict: str, text: str, reasons: Sequence[str], outputs: Sequence[OutputComparison]
) -> str:
    """Returns a verdict with what was judged, the reasons, and each comparison."""
    listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
    head = f"<p><b>{escape(verdict.upper())}</b> {escape(text)}</p>{f'<ul>{listed}</ul>' if reasons else ''}"
    return head + (table_to_html(_HEADERS, map(_list_cells, outputs)) if outputs else "")


def table_to_html(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; its texts may hold anything."""
    lines = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _list_cells(item: OutputComparison) -> tuple[str, ...]:
    sqnr = "exact" if item.sqnr_db == math.inf else f"{item.sqnr_db:.1f}"
    return item.candidate, item.reference, item.name, f"{item.cosine:.5f}", sqnr, f"{item.max_abs:.3g}"
