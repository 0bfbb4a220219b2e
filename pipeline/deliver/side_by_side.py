"""Two builds beside each other: what a change of the model, the data or the settings made better or worse."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trtq.numbers import format_bytes, format_count, format_seconds
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.judge.score import format_score, name_metric
from trtq.records import OutputComparison

_MISSING = "-"


@dataclass(frozen=True, slots=True)
class PairRow:
    """One thing of two builds.

    Attributes:
        name: What it is, such as "accuracy of int8".
        first: How it is in the first build; "-" if it has none.
        second: The same of the second.
        change: How much more the second has, with its sign; empty where that is no number, or nothing.
    """

    name: str
    first: str
    second: str
    change: str = ""


def compare_reports(first: Report, second: Report) -> list[PairRow]:
    """Returns the rows of two builds: verdict, accuracy, layers, sizes, speed and time.

    On different numbers of samples, such as where one stopped early, scores differ for that alone: they have
    no change then.
    """
    compared = [*_compare_scores(first, second), *_compare_outputs(first.comparison, second.comparison)]
    if first.evaluated_samples != second.evaluated_samples:
        compared = [replace(row, change="") for row in compared]
    return [
        PairRow("verdict", first.verdict, second.verdict),
        PairRow("precision", first.precision, second.precision),
        PairRow("backend", first.backend, second.backend),
        PairRow("compared on", _tell_data(first), _tell_data(second)),
        *compared,
        PairRow("quantized layers", first.engine.coverage or "none", second.engine.coverage or "none"),
        *_compare_macs(first.quantized_macs, second.quantized_macs),
        *_compare_sizes(first.sizes_bytes, second.sizes_bytes),
        *_compare_speed(first, second),
        PairRow("time to build", _format_time(first), _format_time(second)),
    ]


def compare_layers(first: Report, second: Report) -> list[tuple[str, list[str]]]:
    """Returns which layers only one of two builds keeps float, or does not run as asked, by a title each."""
    kept = [{node.name for node in item.kept_float} for item in (first, second)]
    others = [{node.node for node in item.engine.fallbacks} for item in (first, second)]
    found = []
    for what, (before, after) in (("stays float", kept), ("does not run as asked", others)):
        found += [
            (f"What {what} now", sorted(after - before)),
            (f"What {what} no more", sorted(before - after)),
        ]
    return [(title, names) for title, names in found if names]


def _compare_scores(first: Report, second: Report) -> Iterator[PairRow]:
    """Yields what each metric says of each model that both or one of them have."""
    for metric in dict.fromkeys((first.metric, second.metric)):
        ours = [item.accuracy if item.metric == metric else {} for item in (first, second)]
        for model in dict.fromkeys((*ours[0], *ours[1])):
            before, after = (scores.get(model) for scores in ours)
            shown, change = _show(before, after, partial(format_score, metric=metric)), ""
            if before is not None and after is not None and after != before:
                change = f"{100 * (after - before):+.2f} points"
            yield PairRow(f"{name_metric(metric)} of {model}", *shown, change)


def _compare_outputs(
    first: Sequence[OutputComparison], second: Sequence[OutputComparison]
) -> Iterator[PairRow]:
    """Yields the cosine of each output of what was built, against the first reference of both."""
    has_one = len({item.reference for items in (first, second) for item in items[:1]}) <= 1
    tables = [_list_cosines(outputs, names_reference=not has_one) for outputs in (first, second)]
    for name in dict.fromkeys((*tables[0], *tables[1])):
        before, after = (table.get(name) for table in tables)
        shown = _show(before, after, "{:.5f}".format)
        yield PairRow(f"cosine of {name}", *shown, _format_change(before, after, "{:+.5f}"))


def _list_cosines(outputs: Sequence[OutputComparison], *, names_reference: bool) -> dict[str, float]:
    pair = {(item.candidate, item.reference) for item in outputs[:1]}
    return {
        f"{item.name} to {item.reference}" if names_reference else item.name: item.cosine
        for item in outputs
        if (item.candidate, item.reference) in pair
    }


def _compare_macs(first: float | None, second: float | None) -> Iterator[PairRow]:
    if first is not None or second is not None:
        yield PairRow("MACs in 8 bits or fewer", *_show(first, second, "{:.1%}".format))


def _compare_sizes(first: Mapping[str, int], second: Mapping[str, int]) -> Iterator[PairRow]:
    for name in dict.fromkeys((*first, *second)):
        before, after = first.get(name), second.get(name)
        change = f"{after / before - 1:+.1%}" if before and after and before != after else ""
        yield PairRow(f"size of {name}", *_show(before, after, format_bytes), change)


def _compare_speed(first: Report, second: Report) -> Iterator[PairRow]:
    """Yields how many times as fast as the float one each is, where it was measured."""
    before, after = (None if item.speed is None else item.speed.ratio for item in (first, second))
    if before is not None or after is not None:
        shown = _show(before, after, "{:.2f}x".format)
        yield PairRow("speed beside the float one", *shown, _format_change(before, after, "{:+.2f}"))


def _tell_data(report: Report) -> str:
    if not report.evaluated_samples:
        return _MISSING
    return f"{format_count(report.evaluated_samples, 'sample')} of {report.evaluation_data}"


def _format_time(report: Report) -> str:
    return format_seconds(sum(report.timings_s.values()))


def _show(first: float | None, second: float | None, form: Callable[[float], str]) -> tuple[str, str]:
    return _MISSING if first is None else form(first), _MISSING if second is None else form(second)


def _format_change(first: float | None, second: float | None, form: str) -> str:
    return "" if first is None or second is None or first == second else form.format(second - first)


def name_builds(first: Path, second: Path) -> tuple[str, str]:
    """Returns names for two folders that tell them apart."""
    return (str(first), str(second)) if first.name == second.name else (first.name, second.name)
