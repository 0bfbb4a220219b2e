"""Where a build is delivered: its folder, and a file for the engine alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trtq.errors import UsageError
from trtq.files import check_output, copy_atomically
from trtq.pipeline.build.job import Job
from trtq.pipeline.deliver.names import ENGINE, ENGINE_SUFFIXES
from trtq.pipeline.deliver.report import Report
from trtq.pipeline.graph.onnx_file import list_model_files


@dataclass(frozen=True, slots=True)
class Places:
    """Where a build goes.

    Attributes:
        folder: The build folder; None: the usual one.
        engine: A file for a copy of the engine; None: it is in the folder alone.
    """

    folder: Path | None
    engine: Path | None = None

    def check(self, job: Job) -> None:
        """Refuses, before any work, an engine file that cannot be written or will not be there.

        Raises:
            UsageError: The backend makes no engine.
            ArtifactError: The file cannot be written.
        """
        if self.engine is None:
            return
        if job.backend.name == "onnxruntime":
            raise UsageError(
                f"--output {self.engine} asks for an engine file, and the backend onnxruntime makes none: it "
                f"runs the ONNX model; name a folder, such as {self.engine.with_suffix('.trtq')}"
            )
        named = (job.spec.calibration.data, job.spec.evaluation.data)
        data = [item for item in named if isinstance(item, str)]
        check_output(self.engine, *list_model_files(job.graph.path, self.engine), *data)

    def deliver(self, report: Report) -> None:
        """Copies the engine to its file, whole or not at all; one whose gate failed stays in the folder."""
        if self.engine is not None and report.verdict != "fail":
            copy_atomically(Path(report.output) / ENGINE, self.engine)


def choose_places(output: Path | str | None) -> Places:
    """Returns where a build goes.

    An output that ends as engines do, and is no folder, is the file for the engine; the folder then lies
    beside it, with the suffix `.trtq`.
    """
    path = None if output is None else Path(output)
    if path is None or path.suffix not in ENGINE_SUFFIXES or path.is_dir():
        return Places(path)
    return Places(path.with_suffix(".trtq"), path)
