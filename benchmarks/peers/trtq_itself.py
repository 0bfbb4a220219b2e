"""trtq, by its own commands, in a process like those of its peers."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peers.arguments import given, timed
from trtq.cli import main as trtq


def main() -> None:
    """Does what the command line asks; what is not quantized stays FP32, so that quantization is compared."""
    asked = given(["default", "fp8", "entropy", "mse", "percentile", "minmax"])
    with tempfile.TemporaryDirectory(prefix="bench-trtq-") as folder:
        ranges = Path(folder) / "ranges.json"
        name = asked.method
        if name == "default" and asked.output is None:
            name = "entropy"  # the pass over the data is measured, as that of the peers
        form = ["--fp8"] if name == "fp8" else []
        method = [] if name in ("default", "fp8") else ["--calib-method", name, "--repair", "none"]
        data = ["--calib-data", str(asked.data)]
        with timed():
            _run(["calibrate", str(asked.model), *form, *data, *method, "--output", str(ranges), "--quiet"])
        if asked.output is not None:
            _run(
                ["quantize", str(asked.model), "--ranges", str(ranges), "--output", str(asked.output),
                 "--high-precision", "fp32", "--quiet"]
            )  # fmt: skip


def _run(arguments: list[str]) -> None:
    code = trtq(arguments, standalone_mode=False)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
