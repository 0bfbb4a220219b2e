"""The settings of a build, taken back from its manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trtq.errors import ArtifactError
from trtq.json import from_plain
from trtq.models.spec import ModelSpec
from trtq.pipeline.deliver.manifest import NAME, Manifest
from trtq.pipeline.engine.target import Target


def read_settings(manifest: Manifest, folder: Path) -> tuple[ModelSpec, Target]:
    """Returns what a build was made with: the model's settings and the target.

    Args:
        manifest: Of the build.
        folder: Where it lies: the settings are said to be read from there.

    Raises:
        ArtifactError: The manifest does not hold them, or not as this trtq has them.
    """
    try:
        spec = replace(from_plain(manifest.settings.get("model"), ModelSpec), file=str(folder / NAME))
        return spec, from_plain(manifest.settings.get("target"), Target)
    except ValueError as error:
        raise ArtifactError(f"{folder / NAME} does not contain the settings of a build: {error}") from error
