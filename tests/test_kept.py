"""Files that last: those of every schema number are read, and no key changes unseen.

`data/kept/` holds for each kind a file of every schema number, `<kind>-<number>.json`, and some more of other
builds. Who gives a key another meaning raises the number in the `FileKind`, keeps the file of the number
before as it is, and adds one. `data/keys.txt` names every key.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest

from trtq.calibrators import ranges, statistics_file
from trtq.cli import build_summary
from trtq.json import FileKind
from trtq.pipeline import migrate
from trtq.pipeline.bench import benchmark
from trtq.pipeline.deliver import index, manifest, report
from trtq.pipeline.deliver.html import page_data
from trtq.pipeline.judge import sensitivity

DATA = Path(__file__).parent / "data"
KEPT = DATA / "kept"
KINDS: Mapping[str, FileKind[Any]] = {
    "bench": benchmark.FILE,
    "index": index.FILE,
    "manifest": manifest.FILE,
    "migration": migrate.FILE,
    "ranges": ranges.FILE,
    "report": report.FILE,
    "sensitivity": sensitivity.FILE,
    "statistics": statistics_file.FILE,
    "summary": build_summary.FILE,
    "tensors": page_data.FILE,
}


def read(path: Path) -> bytes:
    """Returns the JSON that a file holds."""
    if path.suffix == ".json":
        return path.read_bytes()
    with np.load(path) as archive:
        return bytes(archive["document"].tobytes())


def test_no_kind_is_left_out() -> None:
    root = Path(__file__).parent.parent
    made = [
        path
        for room in ("pipeline", "calibrators", "models", "src/trtq/cli")
        for path in (root / room).rglob("*.py")
        if "FILE = FileKind(" in path.read_text(encoding="utf-8")
    ]
    assert len(made) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_every_schema_number_is_read(kind: str) -> None:
    for version in range(1, KINDS[kind].version + 1):
        (path, *more) = sorted(KEPT.glob(f"{kind}-{version}[.-]*"))
        for item in (path, *more):
            found = KINDS[kind].decode(read(item), item)
            assert is_dataclass(found)


REWRITE: Mapping[str, Callable[[Path], bytes]] = {
    "bench": lambda path: benchmark.to_json(benchmark.FILE.read(path)),
    "index": lambda path: index.FILE.encode(index.FILE.read(path)),
    "manifest": lambda path: manifest.to_json(manifest.FILE.read(path)),
    "migration": lambda path: migrate.FILE.encode(migrate.FILE.read(path)),
    "ranges": lambda path: ranges.ranges_to_json(ranges.read_ranges(path)),
    "report": lambda path: report.to_json(report.read_report(path)),
    "sensitivity": lambda path: sensitivity.to_json(sensitivity.read_sensitivity(path)),
    "summary": lambda path: build_summary.FILE.encode(build_summary.FILE.read(path)),
    "tensors": lambda path: page_data.FILE.encode(page_data.FILE.read(path), compact=True),
}


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.json")), ids=lambda path: path.stem)
def test_a_file_of_today_is_written_again_byte_for_byte(path: Path) -> None:
    kind, version, *_ = path.stem.split("-")
    if int(version) == KINDS[kind].version:
        assert REWRITE[kind](path) == path.read_bytes()


def test_statistics_of_today_are_written_again_value_for_value() -> None:
    path = KEPT / f"statistics-{statistics_file.FILE.version}.npz"
    (seen, document) = (statistics_file.read_statistics(path), json.loads(read(path)))
    assert seen.num_samples == document["num_samples"] > 0
    assert list(seen.histograms) == document["tensors"]
    header = json.loads(statistics_file.FILE.encode(statistics_file.FILE.decode(read(path), path)))
    assert header == document


def test_every_key_is_known() -> None:
    found = [key for kind, file in KINDS.items() for key in list_keys(file.shape, kind)]
    assert found == (DATA / "keys.txt").read_text().splitlines()


def list_keys(shape: Any, name: str) -> list[str]:
    """Returns the keys of a file, such as `report.engine.profiles{}.min[] int`; `?`: it may be absent."""
    if is_dataclass(shape) and isinstance(shape, type):
        hints = get_type_hints(shape)
        names = {
            item.name: f"{name}.{item.name}"
            + ("?" if item.default is not MISSING or item.default_factory is not MISSING else "")
            for item in fields(shape)
        }
        return [key for item, path in names.items() for key in list_keys(hints[item], path)]
    inner = get_args(shape)
    if get_origin(shape) is tuple:
        return [key for item in inner if item is not ... for key in list_keys(item, f"{name}[]")]
    if get_origin(shape) is types.UnionType:
        return [key for item in inner if item is not type(None) for key in list_keys(item, f"{name}|null")]
    if get_origin(shape) is not None and get_origin(shape) is not Literal:
        return list_keys(inner[1], f"{name}{{}}")
    return [f"{name} {'|'.join(inner) or shape.__name__}"]


def test_a_report_of_the_first_trtq_lacks_many_keys_and_is_read(tmp_path: Path) -> None:
    document = json.loads((KEPT / "report-1.json").read_bytes())
    for name in ("weights", "logits", "metric", "top5", "auto", "sizes_bytes", "repairs"):
        del document[name]
    for name in ("quantization", "quantization_reason"):
        del document["engine"][name]
    (tmp_path / "report.json").write_text(json.dumps(document))
    found = report.read_report(str(tmp_path))
    assert (found.verdict, found.accuracy["fp32"], found.metric) == ("pass", 1.0, "top-1")
    assert (found.weights, found.repairs, found.logits, found.engine.quantization) == (
        None,
        None,
        (),
        "explicit",
    )


def test_a_manifest_of_the_first_trtq_names_no_commands_and_is_read(tmp_path: Path) -> None:
    document = json.loads((KEPT / "manifest-1.json").read_bytes())
    del document["commands"], document["sha256"]
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert manifest.read_manifest(tmp_path).commands == {}
