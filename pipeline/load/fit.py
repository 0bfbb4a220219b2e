"""Whether an engine runs on this machine: who built it, in which version, for which GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from trtq.pipeline.deliver.manifest import Manifest
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.engine.backend import Backend, split_version
from trtq.pipeline.engine.gpu import find_compute_capability

ANYWHERE = "onnxruntime"
"""The backend that runs the ONNX file of any build."""
_AMPERE = 8


@dataclass(frozen=True, slots=True)
class Misfit:
    """An engine of another version or for another GPU than those here.

    Attributes:
        words: What was built, and what is here: "built by tensorrt 10.9; here is ...".
        advice: The options with which it would run here.
    """

    words: str
    advice: str

    def __str__(self) -> str:
        """Returns the words."""
        return self.words


def find_misfit(report: Report, manifest: Manifest, backend: Backend) -> Misfit | None:
    """Returns why a plan does not run here; None if it does.

    Args:
        report: Of the build.
        manifest: Of the build, with the options of the builder.
        backend: That built it, as it is here.
    """
    found = manifest.find_setting("target", "options")
    options = found if isinstance(found, dict) else {}
    (name, _, there), here = report.backend.partition(" "), backend.version()
    built, ours = split_version(there), split_version(here)
    fits_version = there == here or bool(
        options.get("version_compatible") and built[:1] == ours[:1] and ours >= built
    )
    gpu, targets = find_compute_capability(), report.engine.targets
    fits_gpu = not gpu or not targets or gpu in targets
    if options.get("hardware_compatibility") == "ampere+":
        fits_gpu = fits_gpu or int(gpu.split(".")[0]) >= _AMPERE
    if fits_version and fits_gpu:
        return None
    built_for = f" for compute capability {', '.join(targets)}" if targets else ""
    runs_on = f" on compute capability {gpu}" if gpu else ""
    advice = [] if fits_version else ["--version-compatible for later versions of the same major one"]
    advice += [] if fits_gpu else ["--hardware-compatibility for other GPUs"]
    words = f"built by {name} {there}{built_for}; here is {name} {here}{runs_on}"
    return Misfit(words, " and ".join(advice))
