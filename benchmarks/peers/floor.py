"""Plain FP32 inference in ONNX Runtime over the same data: what no calibration can be faster than."""

from __future__ import annotations

import onnxruntime  # noqa: TID253 - the process is for this
from feeds import read_feeds

from peers.arguments import given, timed


def main() -> None:
    """Runs the model on all the data and drops what comes out."""
    asked = given(["plain"])
    with timed():
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(str(asked.model), options, providers=["CPUExecutionProvider"])
        for feed in read_feeds(asked.data, asked.batch_size):
            session.run(None, feed)


if __name__ == "__main__":
    main()
