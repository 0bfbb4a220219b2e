"""Every tool that is measured: how it is started, on which model and data, with which method."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from process import run

HERE = Path(__file__).resolve().parent
WORK = HERE / ".work"
MODELS = WORK / "models"


@dataclass(frozen=True)
class Tool:
    """A tool with one of its methods.

    Attributes:
        home: Its environment under .work; empty: this one, which has trtq.
        module: What is run there.
        method: As the module takes it.
    """

    home: str
    module: str
    method: str

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return WORK / self.home / "bin" / "python" if self.home else Path(sys.executable)

    def command(
        self, what: str, model: Path, data: Path, batch_size: int, *output: Path
    ) -> Sequence[str | Path]:
        """Returns the command that calibrates, or quantizes into `output`."""
        start: list[str | Path] = [self.python, "-m", self.module, what, model, data, self.method]
        return [*start, *output, "--batch-size", str(batch_size)]


TOOLS: Mapping[str, Tool] = {
    "floor": Tool("onnxruntime", "peers.floor", "plain"),
    "trtq": Tool("", "peers.trtq_itself", "default"),
    "trtq-fp8": Tool("", "peers.trtq_itself", "fp8"),
    "ort-minmax": Tool("onnxruntime", "peers.ort", "minmax"),
    "ort-entropy": Tool("onnxruntime", "peers.ort", "entropy"),
    "ort-percentile": Tool("onnxruntime", "peers.ort", "percentile"),
    "ort-distribution": Tool("onnxruntime", "peers.ort", "distribution"),
    "ort-minmax-all": Tool("onnxruntime", "peers.ort", "minmax-all"),
    "ort-entropy-all": Tool("onnxruntime", "peers.ort", "entropy-all"),
    "ort-percentile-all": Tool("onnxruntime", "peers.ort", "percentile-all"),
    "modelopt-max": Tool("modelopt", "peers.modelopt", "max"),
    "modelopt-entropy": Tool("modelopt", "peers.modelopt", "entropy"),
    "modelopt-fp8": Tool("modelopt", "peers.modelopt", "fp8"),
    "quark-percentile": Tool("quark", "peers.quark", "percentile"),
    "quark-minmax": Tool("quark", "peers.quark", "minmax"),
}
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # what is installed has its bytecode, whatever is set here
    "CUDA_VISIBLE_DEVICES": "",
}


def trtq_command(*arguments: str | Path) -> Sequence[str | Path]:
    """Returns the command line of trtq, in this environment."""
    return [sys.executable, "-c", "from trtq.cli import main; main()", *arguments]


def read_plan(model: Path, size: str, *options: str) -> dict[str, int]:
    """Returns a size of the model by format, as `trtq plan` says.

    Args:
        model: The model.
        size: Which, such as "weights_bytes".
        options: Of `trtq plan`.
    """
    cost = run([*trtq_command("plan", model), *options, "--json"], {}, 24e3)
    if cost.status != "done":
        sys.exit(f"plan: {cost.words}")
    found = json.loads(cost.printed[cost.printed.index("{") :])
    return {item["name"]: item[size] for item in found["schemes"]}


def models(names: Sequence[str] | None, place: Path = MODELS) -> dict[str, Path]:
    """Returns the folders of the named models, or of all that models.py has made in a place."""
    found = {path.parent.name: path.parent for path in sorted(place.glob("*/task.json"))}
    if not found:
        raise SystemExit(f"there are no models in {place}; make bench-peers makes them")
    if unknown := set(names or ()) - set(found):
        raise SystemExit(f"no model {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    return {name: found[name] for name in names or found}


def batch_size(folder: Path) -> int:
    """Returns how many samples a model takes at once, of those that everybody is fed."""
    return 1 if json.loads((folder / "task.json").read_text())["one_by_one"] else 8


def circumstances(names: Sequence[str]) -> dict[str, Any]:
    """Returns when, where and with what it was measured."""
    homes = dict.fromkeys(TOOLS[name].python for name in names)
    return {
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu()},
        "versions": {path.parts[-3]: _versions(path) for path in homes},
    }


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    kept = (
        "trtq", "onnxruntime", "onnxruntime-gpu", "nvidia-modelopt", "amd-quark", "onnx", "numpy", "torch",
        "tensorrt_rtx_cu12", "numba", "ray",
    )  # fmt: skip
    return {item["name"]: item["version"] for item in json.loads(listed.stdout) if item["name"] in kept}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")
