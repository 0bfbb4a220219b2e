"""The arithmetic of the benchmarks that stand beside peers: a wrong number there would be believed."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnxruntime
import pytest

HOME = Path(__file__).parents[2] / "benchmarks"
_SCRIPTS = (
    "feeds", "process", "tasks", "tools", "calibration", "evaluate", "build", "build_picture", "decoder",
    "large",
)  # fmt: skip


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    """The scripts by name; they import each other as scripts in one folder do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HOME))
        yield {name: importlib.import_module(name) for name in _SCRIPTS}
        for name in _SCRIPTS:
            sys.modules.pop(name)


def test_batches_of_a_file_are_its_rows_in_order(scripts: dict[str, Any], tmp_path: Path) -> None:
    image, mask = np.arange(30, dtype=np.float32).reshape(5, 2, 3), np.arange(5, dtype=np.int64)
    np.savez(tmp_path / "data.npz", image=image, mask=mask)
    feeds = list(scripts["feeds"].read_feeds(tmp_path / "data.npz", 2))
    assert [len(feed["mask"]) for feed in feeds] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([feed["image"] for feed in feeds]), image)
    np.testing.assert_array_equal(np.concatenate([feed["mask"] for feed in feeds]), mask)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_samples_are_taken_from_the_start_and_over_again(
    scripts: dict[str, Any], tmp_path: Path, count: int
) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(6, dtype=np.float32).reshape(3, 2))
    written = np.load(scripts["feeds"].write_samples(tmp_path / "data.npz", count, tmp_path))
    np.testing.assert_array_equal(written["x"][:, 0], [2 * (index % 3) for index in range(count)])


def test_files_of_a_folder_are_taken_over_again(scripts: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for index in range(2):
        np.savez(tmp_path / "data" / f"{index}.npz", x=np.array([index]))
    written = scripts["feeds"].write_samples(tmp_path / "data", 3, tmp_path)
    assert [int(feed["x"][0]) for feed in scripts["feeds"].read_feeds(written)] == [0, 1, 0]


def test_a_process_that_holds_too_much_is_killed_with_its_children(scripts: dict[str, Any]) -> None:
    child = "import time; held = bytearray(400 << 20); time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cost = scripts["process"].run([sys.executable, "-c", parent], {}, memory_mb=300)
    assert (cost.status, cost.words) == ("killed", "killed past 0.3 GB of memory")
    assert cost.peak_mb > 300


def test_a_process_that_takes_too_long_is_killed(scripts: dict[str, Any]) -> None:
    cost = scripts["process"].run(
        [sys.executable, "-c", "import time; time.sleep(60)"], {}, 1000, seconds=0.1
    )
    assert (cost.status, cost.words) == ("late", "killed after 0.1 s")


def test_a_failed_process_says_its_error(scripts: dict[str, Any]) -> None:
    cost = scripts["process"].run([sys.executable, "-c", "raise ValueError('no such axis')"], {}, 1000)
    assert (cost.status, cost.words) == ("failed", "ValueError: no such axis")


def test_a_finished_process_says_what_it_cost(scripts: dict[str, Any]) -> None:
    program = "import time; b = bytearray(200 << 20); print('x'); time.sleep(0.5)"  # so that it is looked at
    cost = scripts["process"].run([sys.executable, "-c", program], {}, 1000)
    assert (cost.status, cost.words, cost.printed) == ("done", "", "x\n")
    assert cost.peak_mb > 200


def test_text_is_decoded_by_ctc_and_compared_whole(scripts: dict[str, Any]) -> None:
    task = {
        "metric": "text",
        "blank": 0,
        "charset": ["", "a", "b", " "],
        "ignore": " ",
        "answers": ["aab", "b"],
    }
    steps = ([1, 1, 0, 1, 3, 2], [2, 2, 0, 2])  # "aa b", "bb"
    outputs = [np.eye(4)[[step]] for step in steps]
    assert scripts["tasks"].score(task, outputs, outputs) == 0.5


def test_without_answers_the_float_model_is_right(scripts: dict[str, Any]) -> None:
    task = {"metric": "top1", "answers": None}
    reference = [np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])]
    assert scripts["tasks"].score(task, [reference[0], reference[0]], reference) == 0.5


def test_a_sentence_is_not_its_own_neighbour(scripts: dict[str, Any]) -> None:
    task = {"metric": "retrieval", "answers": [1, 0, 1]}
    vectors = [np.array(row) for row in ([1.0, 0.1], [1.0, 0.0], [0.0, 1.0])]
    assert scripts["tasks"].score(task, vectors, vectors) == pytest.approx(2 / 3)


def test_masks_are_compared_by_what_they_share(scripts: dict[str, Any]) -> None:
    task = {"metric": "mask_iou", "threshold": 0.5}
    ours, theirs = np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 1.0]])
    assert scripts["tasks"].score(task, [ours], [theirs]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("shift", "score", "f1"), [(0, 0.9, 1.0), (2, 0.9, 1.0), (8, 0.9, 0.0), (0, 0.1, 0.0)]
)
def test_boxes_match_if_they_overlap_by_half(
    scripts: dict[str, Any], shift: float, score: float, f1: float
) -> None:
    task = {"metric": "detections", "layout": "v8", "threshold": 0.25}

    def output(x: float, confidence: float) -> Any:
        rows = [
            [x, 50, 10, 10, confidence, 0.0],
            [x + 1, 50, 10, 10, confidence / 2, 0.0],
        ]  # the second: the same
        return np.array(rows).T[None]

    assert scripts["tasks"].score(task, [output(50 + shift, score)], [output(50, 0.9)]) == f1


def test_yolox_boxes_lie_on_their_grid(scripts: dict[str, Any]) -> None:
    raw = np.zeros((1, 21, 6))  # a picture of 32 x 32: cells of 8 (16), 16 (4) and 32 (1)
    raw[0, 5] = [0.5, 0.5, 0.0, 0.0, 1.0, 0.9]  # row 1, column 1 of the first
    box = scripts["tasks"]._boxes({"layout": "x", "side": 32, "threshold": 0.25}, raw)[0]
    np.testing.assert_allclose(box, [8, 8, 16, 16, 0.9, 0])


def test_ratios_are_to_the_floor_of_the_same_round(scripts: dict[str, Any]) -> None:
    def made(number: int, tool: str, seconds: float, status: str = "done") -> dict[str, Any]:
        costs = {"wall_s": seconds, "work_s": seconds, "cpu_s": seconds, "peak_mb": 100 * seconds}
        words = "" if status == "done" else "killed past 12 GB of memory"
        return {
            "model": "m",
            "samples": 8,
            "round": number,
            "tool": tool,
            "status": status,
            "words": words,
            **costs,
        }

    runs = [made(0, "floor", 1), made(0, "trtq", 2), made(1, "floor", 10), made(1, "trtq", 30)]
    runs += [made(0, "ort-entropy", 5, "killed")]
    rows = {row["tool"]: row for row in scripts["calibration"].medians(runs)}
    assert (rows["trtq"]["wall_to_floor"], rows["trtq"]["peak_mb_over_floor"]) == (2.5, 1050.0)
    assert "wall_s" not in rows["ort-entropy"]
    table = scripts["calibration"].markdown(list(rows.values()), 8, "wall")
    assert table.splitlines()[-1] == "| m | 5.50 s, 0.55 GB | 2.5x, 1.60 GB | killed |"


def test_a_run_says_what_processor_time_it_took(
    scripts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = scripts["build"]
    cost = scripts["process"].Cost("done", 9.0, 12.0, 100.0, "", "work_s 8.5\n")
    monkeypatch.setattr(build, "run", lambda *_: cost)
    monkeypatch.setattr(build, "batch_size", lambda _: 8)
    row = build.run_tool("floor", Path("model"), Path("data.npz"), Path("place"), 1000)
    assert row == {"wall_s": 9.0, "cpu_s": 12.0, "peak_mb": 100.0, "words": "", "work_s": 8.5}


def test_a_build_is_counted_in_passes_of_the_same_round(scripts: dict[str, Any]) -> None:
    floors = [{"work_s": seconds, "wall_s": 9.0, "words": ""} for seconds in (1.0, 2.0, 4.0)]
    builds = [{"wall_s": seconds, "words": ""} for seconds in (12.0, 20.0, 60.0)]
    build = scripts["build"]
    row = build.medians(builds, floors)
    assert row == {"wall_s": 20.0, "passes": 12.0}
    quick = {"floor": build.medians(floors, floors) | {"work_s": 0.5}, "trtq-balanced": {"passes": 99.0}}
    result = {"models": {"a": {"floor": build.medians(floors, floors), "trtq-balanced": row}, "b": quick}}
    assert build.summary(result) == {"models": 1, "trtq-balanced": {"median": 12.0, "most": 12.0}}
    assert build.markdown(result).splitlines()[2] == "| a | 2.00 s | 12.0x |"


def test_a_tool_that_failed_is_in_no_median(scripts: dict[str, Any]) -> None:
    floor = {"work_s": 2.0, "wall_s": 3.0, "words": ""}
    row = scripts["build"].medians([{"wall_s": 1.0, "words": "it died"}], [floor])
    assert row["words"] == "it died"
    result = {"models": {"a": {"floor": floor, "peer": row}}}
    assert scripts["build"].summary(result) == {"models": 1}
    assert scripts["build"].markdown(result).splitlines()[2] == "| a | 2.00 s | it died |"


def test_a_written_decoder_looks_at_no_token_ahead(scripts: dict[str, Any], tmp_path: Path) -> None:
    decoder = scripts["decoder"]
    num_weights = decoder.write_decoder(decoder.SHAPES["tiny"], tmp_path / "model.onnx")
    assert 2 * num_weights > (tmp_path / "weights-00000.data").stat().st_size > 4_000_000
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    ids = np.arange(10).reshape(2, 5)
    feed = {"input_ids": ids, "position_ids": np.tile(np.arange(5), (2, 1))}
    (logits,) = session.run(None, feed)
    (other,) = session.run(None, {**feed, "input_ids": np.where(np.arange(5) < 3, ids, 99)})
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits[:, :3], other[:, :3])
    assert np.abs(logits[:, 3:] - other[:, 3:]).max() > 0.1


def test_bounds_that_are_not_kept_are_named(scripts: dict[str, Any]) -> None:
    killed = {"half_written": [], "there_at_the_end": ["model.onnx", "model.onnx.data"]}
    good = {"peak_mb": 2000.0, "mb_per_s_and_core": 400.0, "off_plan": -0.01}
    bad = {"peak_mb": 3100.0, "mb_per_s_and_core": 299.0, "off_plan": 0.03}
    find_missed = scripts["large"].find_missed
    assert find_missed({"formats": {"int8": good}, "killed": killed}) == []
    assert find_missed({"formats": {"int8": bad}, "killed": {**killed, "half_written": ["x"]}}) == [
        "int8 takes 3100.0 MB of memory",
        "int8 does 299.0 MB a second",
        "int8 is 3.0% off the plan",
        "a killed command left something",
    ]


def test_the_picture_of_builds_is_that_of_the_newest_result(scripts: dict[str, Any]) -> None:
    script = scripts["build_picture"]
    result = json.loads(script.find_newest().read_text("utf-8"))
    drawn = script.draw(result)
    assert script.PICTURE.read_text("utf-8") == drawn
    ElementTree.fromstring(drawn)  # well-formed
    for model, tools in result["models"].items():
        assert f">{model}<" in drawn
        assert f">{tools['trtq-balanced']['passes']:.1f}x<" in drawn
        assert f">{tools['trtq-balanced']['sqnr_db']:.1f}<" in drawn


def test_the_picture_of_builds_says_what_could_not_be_measured(scripts: dict[str, Any]) -> None:
    row = {"passes": 4.0, "sqnr_db": 30.0}
    models = {
        "a": {"trtq-quick": row, "ort-entropy": row},
        "b": {"trtq-quick": row, "ort-entropy": {"words": "<no>"}},
    }
    drawn = scripts["build_picture"].draw(
        {"date": "2026-01-01", "samples": 8, "machine": {"cpu": "x & y"}, "models": models}
    )
    assert (drawn.count(">4.0x<"), drawn.count(">30.0<"), drawn.count("&lt;no&gt;")) == (3, 3, 2)
    assert "x &amp; y" in drawn
