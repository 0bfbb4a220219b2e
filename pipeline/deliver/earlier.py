"""What an earlier build in the same folder has already done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.html.seen import Seen, read_seen
from trtq.pipeline.deliver.manifest import NAME, Manifest, is_intact, is_whole, parse_manifest, read_content
from trtq.pipeline.deliver.report import Report, read_report

REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Earlier:
    """An intact build of which some stages had the same inputs as now."""

    folder: Path
    same: frozenset[str]
    manifest: Manifest
    report: Report
    seen: Seen

    def copy(self, names: Iterable[str], to: Path) -> None:
        """Copies files of the earlier build."""
        for name in names:
            shutil.copyfile(self.folder / name, to / name)


def find_earlier(folder: Path, keys: Mapping[str, str]) -> Earlier | None:
    """Returns what can be used again; None if there is no build, it is damaged, or nothing is the same."""
    try:
        content = read_content(folder)
        manifest, report = parse_manifest(content, folder / NAME), read_report(folder / REPORT)
        seen = read_seen(folder)
    except ArtifactError:
        return None
    if not is_whole(content):
        return None
    same = frozenset(name for name, key in keys.items() if manifest.keys.get(name) == key)
    return Earlier(folder, same, manifest, report, seen) if same and is_intact(folder, manifest) else None
