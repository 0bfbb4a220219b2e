"""A builder of engines that needs no TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtq.models.session import open_session
from trtq.pipeline.engine.backend import Backend, BuildRequest, BuiltEngine


@dataclass
class Builder(Backend):
    """A backend with a plan; it runs an engine by running the model that it was built from."""

    number: str = "10.3.0"
    reason: str = ""
    model: Path | None = None
    runs: bool = True
    targets: tuple[str, ...] = ("8.6",)
    name = "tensorrt"
    runs_fp16 = False

    def version(self) -> str:
        return self.number

    def why_not(self) -> str:
        return self.reason

    def build(self, request: BuildRequest) -> BuiltEngine:
        self.model = self.model or request.model.rename(request.model.with_suffix(".kept"))
        return BuiltEngine(self.model.read_bytes(), (), targets=self.targets)

    def command(self, request: BuildRequest) -> str:
        return "trtexec"

    def runner(self, plan: bytes, name: str) -> Any:
        if not self.runs:
            return None
        from polygraphy.backend import onnxrt as polygraphy

        assert self.model is not None
        return polygraphy.OnnxrtRunner(lambda: open_session(self.model, optimize=False), name=name)
