"""Build folders with other content, as if it had been built so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtq.files import hash_file
from trtq.pipeline.deliver.manifest import read_manifest, to_json


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a JSON file of a build folder, and its digest in the manifest."""
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))
    if name == "manifest.json":
        (folder / name).write_bytes(to_json(read_manifest(folder)))
    else:
        digest = hash_file(folder / name)
        rewrite(folder, "manifest.json", lambda manifest: manifest["outputs"].update({name: digest}))
