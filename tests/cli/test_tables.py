"""Results as tables: long ones are cut, what is not finite is said in words."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from trtq.cli.tables import (
    create_comparison_table,
    create_table,
    format_verdict,
    print_logits,
    print_report,
)
from trtq.cli.terminal import EscapingConsole
from trtq.kept import Fallback
from trtq.pipeline.deliver.report import SCHEMA_VERSION, AutoReport, EngineReport, Report, WeightsReport
from trtq.records import LogitsComparison, OutputComparison, Repairs, Trial


def compared(output: str, cosine: float = 0.5, sqnr_db: float = 3.0) -> OutputComparison:
    return OutputComparison("int8", "fp32", output, cosine, sqnr_db, 1.0, 0.25, None, 0, ())


def shown(*outputs: OutputComparison) -> list[str]:
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(create_comparison_table(outputs))
    return lines_of(console)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.split()) for line in console.file.getvalue().splitlines() if line.strip(" ─")]


def report(num_fallbacks: int) -> Report:
    fallbacks = tuple(Fallback(f"conv{i}", "Conv", "Float", "it is odd") for i in range(num_fallbacks))
    return Report(
        schema_version=SCHEMA_VERSION, verdict="unverified", reasons=("no data", "no labels"),
        model="a/net.onnx", output="out", backend="tensorrt-rtx 1", precision="int8",
        high_precision="as it is", calibration=None,
        engine=EngineReport(
            "model.engine", 2048, 20, {"int8": 20 - num_fallbacks}, fallbacks, {}, ("8.6", "8.9"), ()
        ),
        comparison=(), evaluated_samples=0, evaluation_data="", accuracy={}, kept_float=(), kept_fp32=(),
        notes=(), warnings=(),
    )  # fmt: skip


def test_a_row_holds_the_numbers_of_an_output() -> None:
    assert shown(compared("y"))[1:] == ["int8 fp32 y 0.50000 3.0 1 0.25 -"]


def test_equal_outputs_are_exact_and_others_broken() -> None:
    rows = shown(compared("same", 1.0, math.inf), compared("broken", math.nan, math.nan))
    assert rows[1:] == ["int8 fp32 same 1.00000 exact 1 0.25 -", "int8 fp32 broken nan broken 1 0.25 -"]


def test_a_long_table_is_cut_and_says_so() -> None:
    assert len(shown(*(compared(f"y{i}") for i in range(12)))) == 1 + 12
    rows = shown(*(compared(f"y{i}") for i in range(15)))
    assert len(rows) == 1 + 12 + 1
    assert rows[-1] == "and 3 more in the report"


def test_layers_that_do_not_run_in_int8_are_named_by_reason() -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    print_report(console, report(13), verbose=False)
    assert lines_of(console) == [
        "net.onnx INT8 tensorrt-rtx 1",
        "model.engine 2.0 kB 7 of 20 quantized layers run in INT8 for 8.6, 8.9",
        ", ".join(f"conv{i} (Conv)" for i in range(8)) + " and 5 more run as Float: it is odd",
        "written to out",
        "UNVERIFIED: no data; no labels",
    ]


@pytest.mark.parametrize(("smallest", "blocks"), [(64, "blocks of 64"), (16, "blocks of 16 to 64")])
def test_the_blocks_that_were_used_are_told(smallest: int, blocks: str) -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    weights = WeightsReport("int4", "mse", 64, 2, 4000, 600, 4.8, "smaller", smallest)
    print_report(console, replace(report(0), weights=weights), verbose=False)
    assert any(line.startswith(f"2 weights in INT4 (mse, {blocks}): ") for line in lines_of(console))


def printed(found: Report, *, verbose: bool = False) -> list[str]:
    console = Console(file=io.StringIO(), width=120, markup=False)
    print_report(console, found, verbose=verbose)
    return lines_of(console)


def test_repairs_say_what_they_gained_and_in_detail_what_was_tried() -> None:
    tried = (Trial("equalize 0.5", 3.25, 32, applied=True), Trial("bias", -1.0, 32, applied=False))
    repairs = Repairs("mse()", ("equalize 0.5",), 20.0, 23.25, 32, tried)
    brief, verbose = (
        printed(replace(report(0), repairs=repairs), verbose=is_verbose) for is_verbose in (False, True)
    )
    told = "repairs: equalize 0.5 (ranges by mse); 20.0 -> 23.2 dB SQNR on 32 held-out calibration samples"
    assert told in brief
    assert not any("bias" in line for line in brief)
    place = verbose.index(told)
    assert verbose[place + 1 : place + 3] == [
        "equalize 0.5: +3.2 dB on 32 samples, applied",
        "bias: -1.0 dB on 32 samples, not applied",
    ]
    none = replace(report(0), repairs=replace(repairs, applied=(), after_db=20.0))
    assert any(
        line.startswith("repairs: none pays (ranges by mse); 20.0 -> 20.0 dB") for line in printed(none)
    )


@pytest.mark.parametrize(
    ("verdict", "share", "line", "style"),
    [
        ("pass", 0.923, "PASS  92.3% of the MACs run in INT8", "bold green"),
        ("pass", 0.089, "PASS, but only 8.9% of the MACs run in INT8", "bold yellow"),
        ("pass", None, "PASS", "bold green"),
        ("fail", 0.089, "FAIL", "bold red"),
        ("unverified", 0.089, "UNVERIFIED: no data; no labels", "bold yellow"),
    ],
)
def test_little_in_int8_is_no_plain_success(verdict: str, share: float | None, line: str, style: str) -> None:
    text = format_verdict(replace(report(0), verdict=verdict, quantized_macs=share))
    assert text.plain == line
    styles = [str(span.style) for span in text.spans if span.start == 0] or [str(text.style)]
    assert styles == [style]


def test_a_search_tells_the_formats_and_what_they_cost() -> None:
    found = AutoReport(
        "the gate passes",
        skip=("^d$",),
        layers={"a": "int8", "b": "fp8", "c": "int8"},
        formats={"int8": 0.75, "fp8": 0.125, "fp16": 0.125},
        cost=0.5,
        cost_before=0.25,
        option="--formats",
    )
    lines = printed(replace(report(0), auto=found), verbose=True)
    start = lines.index("--formats: the gate passes")
    assert lines[start + 1 : start + 7] == [
        "INT8: 2 layers, 75.0% of the MACs",
        "a",
        "c",
        "FP8: 1 layer, 12.5% of the MACs",
        "b",
        "estimated cost 50% of all layers in FP16, 25% with every layer in its cheapest format; not measured",
    ]
    assert not [line for line in lines if "--skip" in line]  # the patterns alone do not reproduce it
    plain = printed(replace(report(0), auto=AutoReport("the gate passes", skip=("^d$",))))
    assert "to reproduce: --skip '^d$'" in plain


def test_without_a_next_token_no_perplexity_is_shown() -> None:
    console = Console(file=io.StringIO(), width=120, markup=False)
    one = LogitsComparison("int8", "fp32", "y", 0.01, math.nan, math.nan)
    print_logits(console, [one, replace(one, perplexity=12.5, reference_perplexity=math.nan)])
    assert lines_of(console) == [
        "y int8 against fp32 KL divergence 0.01 nats",
        "y perplexity 12.5 (int8), nan (fp32) KL divergence 0.01 nats",
    ]


def test_a_narrow_terminal_leaves_numbers_out_and_no_names() -> None:
    rows = create_table("layer", "type", "dB", "amax", "mean", numbers=3)
    rows.add_row("encoder.layers.0.attention", "MatMul", "38.5", "0.12345", "0.98765")
    rows.caption = "and 3 more"
    for width, told in (
        (70, ["layer type dB amax mean", "encoder.layers.0.attention MatMul 38.5 0.12345 0.98765"]),
        (54, ["layer type dB amax", "encoder.layers.0.attention MatMul 38.5 0.12345"]),
        (41, ["layer type dB", "encoder.layers.0. MatMul 38.5", "attention"]),
    ):
        console = Console(file=io.StringIO(), width=width)
        console.print(rows)
        assert lines_of(console)[: len(told)] == told
    assert " ".join(lines_of(console)).endswith("and 3 more; a wider terminal also shows mean, amax")


def test_a_long_name_is_folded_behind_its_parts() -> None:
    rows = create_table("node", "why")
    rows.add_row("/model/layers.0/self_attn/q_proj/MatMul", "it is odd")
    rows.add_row("a" * 40 + "/b", "so is this, and more so than the others are")
    rows.add_row("\x1b[2J", "")
    console = EscapingConsole(file=io.StringIO(), width=60, markup=False)
    console.print(rows)
    assert lines_of(console)[1:] == [
        "/model/layers.0/self_attn/ it is odd",
        "q_proj/MatMul",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaa so is this, and more so",
        "aaaaaaaaaaaa/b than the others are",
        "\\x1b[2J",
    ]
