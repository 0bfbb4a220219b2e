"""What an earlier build in the same folder has already done."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtq.errors import ArtifactError
from trtq.pipeline.deliver.html.page_data import PageData, read_page_data
from trtq.pipeline.deliver.integrity import examine_folder
from trtq.pipeline.deliver.manifest import NAME, Manifest, parse_manifest, read_content
from trtq.pipeline.deliver.names import REPORT
from trtq.pipeline.deliver.report import Report, read_report
from trtq.pipeline.deliver.signature import is_signed

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class EarlierBuild:
    """An intact build of which some stages had the same inputs as now."""

    folder: Path
    same: frozenset[str]
    manifest: Manifest
    report: Report
    seen: PageData

    def copy(self, names: Iterable[str], to: Path) -> None:
        """Copies files of the earlier build."""
        for name in names:
            shutil.copyfile(self.folder / name, to / name)


def find_earlier(
    folder: Path, keys: Mapping[str, str], sign_key: Ed25519PrivateKey | None = None
) -> EarlierBuild | None:
    """Returns what can be used again; None if there is no build, it is damaged, or nothing is the same.

    Args:
        folder: Of an earlier build, if there was one.
        keys: What each stage of this one depends on.
        sign_key: What is used again will be signed with this key, so only what it has signed is.
    """
    try:
        content = read_content(folder)
        manifest = parse_manifest(content, folder / NAME)
        same = frozenset(name for name, key in keys.items() if manifest.keys.get(name) == key)
        if not same or not (sign_key is None or is_signed(folder, content, sign_key)):
            return None
        found = examine_folder(folder, content, is_checked=False)
        if found.changed or found.missing:
            return None
        return EarlierBuild(folder, same, manifest, read_report(folder / REPORT), read_page_data(folder))
    except ArtifactError:
        return None
