"""Which models of ONNX's own test suite trtq takes: all of them through inspect, lint and build.

    .venv/bin/python benchmarks/conformance.py --output benchmarks/results/conformance-2026-11-28.json

The suite comes with the package `onnx`: node, simple, pytorch-converted and pytorch-operator, each model with
inputs. ONNX Runtime loads and runs it, TensorRT-RTX's parser reads it, and trtq builds it for ONNX Runtime on
the suite's inputs. The bound: what ONNX Runtime runs and the parser takes, trtq refuses only for a reason
that `conformance_refusals.py` lists. Everything works in a child process; a model of which it dies, or that
takes over a minute, is named.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conformance_refusals import REASONS
from numpy.typing import NDArray
from onnx import numpy_helper

import trtq

STEPS = ("onnxruntime", "tensorrt-rtx", "inspect", "lint", "build")
"""What is asked of every model, in this order: the first two are the judges."""
KINDS = ("simple", "pytorch-converted", "pytorch-operator")
SECONDS = 60
_MOST_WORDS = 240


def main() -> None:
    """Runs the suite, prints the counts and the refusals and, if asked, writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="models with such a name")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--details", type=Path, help="what each step made of each model, as JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        work(given.child)
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trtq-conformance-") as place:
        names = write_suite(Path(place), re.compile(given.only))
        answers = ask(Path(place), names)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": {"python": platform.python_version(), "platform": platform.platform()},
        "versions": {
            name: version(name) for name in ("trtq", "onnx", "onnxruntime", "onnx-ir", "tensorrt-rtx-cu12")
        },
        "seconds": round(time.monotonic() - start, 1),
        **summarize(answers),
    }
    text = json.dumps(result, indent=1)
    print(text)
    for path, content in ((given.output, text), (given.details, json.dumps(answers, indent=1))):
        if path is not None:
            path.write_text(content + "\n")
    sys.exit(bool(result["refused without a reason"]))


def write_suite(place: Path, wanted: re.Pattern[str]) -> list[str]:
    """Writes each model into a folder of its name with one feed, and returns the names.

    A feed with what NumPy's files do not hold (bfloat16, sequences) is left out; then random numbers are fed.
    """
    names = []
    for name, model, inputs in list_models():
        if wanted.search(name):
            (place / name / "feed").mkdir(parents=True)
            (place / name / "model.onnx").write_bytes(model.SerializeToString())
            feed = name_inputs(model, inputs)
            if feed and all(is_plain(array) for array in feed.values()):
                np.savez(place / name / "feed" / "0.npz", **feed)
            names.append(name)
    return names


def list_models() -> Iterator[tuple[str, onnx.ModelProto, Sequence[Any]]]:
    """Yields the name, the model and the inputs of every model of the suite that comes with `onnx`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases
        from onnx.backend.test.loader import load_model_tests

        cases = collect_testcases(None)
    for case in cases:
        assert case.model is not None
        yield case.name, case.model, case.data_sets[0][0] if case.data_sets else ()
    for kind in KINDS:
        for case in load_model_tests(kind=kind):
            folder = Path(case.model_dir or "")
            model = onnx.load(folder / "model.onnx")
            files = sorted((folder / "test_data_set_0").glob("input_*.pb"), key=lambda path: len(path.name))
            yield f"{kind}/{case.name}", model, [read_input(path) for path in files]


def read_input(path: Path) -> Any:
    """Returns the array of a file of the suite; None if it holds something else."""
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(path.read_bytes())
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, RuntimeError, KeyError):
        return None


def name_inputs(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, Any]:
    """Returns the inputs by their names in the graph."""
    weights = {item.name for item in model.graph.initializer}
    names = [item.name for item in model.graph.input if item.name not in weights]
    return dict(zip(names, inputs, strict=False))


def is_plain(array: Any) -> bool:
    """Returns whether NumPy's own files hold this."""
    return isinstance(array, np.ndarray | np.generic) and np.asarray(array).dtype.isbuiltin == 1


def ask(place: Path, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns what each step says of each model; a child that dies is followed by another."""
    answers: dict[str, dict[str, str]] = {name: {} for name in names}
    todo = [(name, step) for name in names for step in STEPS]
    log = place / "answers"
    while todo:
        (place / "work").write_text("\n".join(json.dumps(item) for item in todo))
        log.write_text("")
        command = [sys.executable, __file__, "--child", str(place)]
        child = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        done = [json.loads(line) for line in log.read_text().splitlines()]
        for name, step, words in done:
            answers[name][step] = words
        todo = todo[len(done) :]
        if todo:
            name, step = todo.pop(0)
            late = child.returncode == -signal.SIGALRM
            answers[name][step] = "HANG" if late else f"CRASH: it ended with {child.returncode}"
            print(name, step, answers[name][step], child.stderr[-500:], file=sys.stderr)
        print(f"{len(names) * len(STEPS) - len(todo)} of {len(names) * len(STEPS)}", file=sys.stderr)
    return answers


def work(place: Path) -> None:
    """Does the steps that the file `work` names, and leaves their answers line by line."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process, whatever code it is in
    warnings.simplefilter("ignore")
    with (place / "answers").open("w") as answers:
        for line in (place / "work").read_text().splitlines():
            name, step = json.loads(line)
            signal.alarm(SECONDS)
            try:
                words = _CALLS[step](place / name)
            except trtq.TrtqError as error:
                words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            except Exception as error:  # noqa: BLE001 - what is being looked for
                words = f"TRACEBACK of {type(error).__name__}: {' '.join(str(error).split())}"
            signal.alarm(0)
            answers.write(json.dumps([name, step, words.replace(str(place), "")[:_MOST_WORDS]]) + "\n")
            answers.flush()


def read_feed(folder: Path) -> Mapping[str, NDArray[Any]]:
    """Returns the inputs of a model; none if they are no arrays of NumPy's own."""
    path = folder / "feed" / "0.npz"
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays.items())


def run_onnxruntime(folder: Path) -> str:
    """Runs the model in ONNX Runtime; it is enough that it loads where there are no inputs to run it on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        feed = read_feed(folder)
        if feed or not session.get_inputs():
            session.run(None, dict(feed))
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's share no class
        return f"refused: {' '.join(str(error).split())}"
    return ""


def parse_tensorrt(folder: Path) -> str:
    """Has TensorRT-RTX's parser read the model."""
    import tensorrt_rtx as trt

    class Quiet(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            pass

    global _BUILDER  # its logger must outlive everything
    _BUILDER = _BUILDER or (logger := Quiet(), trt.Builder(logger))
    network = _BUILDER[1].create_network(0)
    parser = trt.OnnxParser(network, _BUILDER[0])
    if not parser.parse_from_file(str(folder / "model.onnx")):
        return f"refused: {parser.get_error(0).desc() if parser.num_errors else 'no reason given'}"
    return "" if network.num_outputs else "refused: no outputs"


_BUILDER: Any = None


def inspect_model(folder: Path) -> str:
    """Looks at the model as `trtq inspect` does."""
    trtq.inspect(folder / "model.onnx")
    return ""


def lint_model(folder: Path) -> str:
    """Looks for what TensorRT refuses, as `trtq lint` does; findings are no refusal."""
    trtq.lint(folder / "model.onnx")
    return ""


def build_model(folder: Path) -> str:
    """Builds the model for ONNX Runtime as `trtq build --int8` does; a gate that fails is no refusal."""
    has_feed = (folder / "feed" / "0.npz").exists()
    spec = trtq.ModelSpec(
        calibration=trtq.CalibrationSpec(data=str(folder / "feed") if has_feed else None, method="minmax"),
        quantization=trtq.QuantizationSpec(repair=("none",)),
    )
    target = trtq.Target(backend="onnxruntime")
    report = trtq.build(
        folder / "model.onnx", spec=spec, target=target, output=folder / "built", random_data=not has_feed
    )
    return f"verdict: {report.verdict}"


_CALLS = dict(
    zip(STEPS, (run_onnxruntime, parse_tensorrt, inspect_model, lint_model, build_model), strict=True)
)


def summarize(answers: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Returns the counts, and the refusals with their reasons."""
    refused = {name: dict(find_refusals(said)) for name, said in answers.items()}
    refused = {name: said for name, said in refused.items() if said}
    by_runtime = {name for name, said in answers.items() if not said["onnxruntime"]}
    by_both = {name for name in by_runtime if not answers[name]["tensorrt-rtx"]}
    groups: dict[str, list[str]] = {}
    for name in sorted(by_runtime & refused.keys()):
        groups.setdefault(find_reason(name, refused[name]), []).append(name)
    unlisted = groups.pop("", [])
    verdicts = Counter(said["build"].removeprefix("verdict: ") for said in answers.values())
    return {
        "models": len(answers),
        "onnxruntime runs": len(by_runtime),
        "onnxruntime runs and the parser takes": len(by_both),
        "refused": len(refused),
        "refused that onnxruntime runs": len(by_runtime & refused.keys()),
        "refused that both take": len(by_both & refused.keys()),
        "tracebacks, crashes and hangs": sum(
            words.startswith(("TRACEBACK", "CRASH", "HANG"))
            for said in answers.values()
            for step, words in said.items()
            if step in STEPS[2:]
        ),
        "verdicts": {word: verdicts[word] for word in ("pass", "fail", "unverified")},
        "refused for a reason": {
            reason: {"that both take": sum(name in by_both for name in group), "models": group}
            for reason, group in sorted(groups.items(), key=lambda item: -len(item[1]))
        },
        "refused without a reason": {name: refused[name] for name in unlisted},
    }


def find_refusals(said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the steps of trtq that refuse a model, with their words."""
    for step in STEPS[2:]:
        if said[step] and not said[step].startswith("verdict: "):
            yield step, said[step]


def find_reason(name: str, refusals: Mapping[str, str]) -> str:
    """Returns the listed reason for which all steps refuse a model; empty if one has none."""
    reasons = [
        next((reason for reason, words in REASONS.items() if re.search(words, text)), "")
        for text in refusals.values()
    ]
    return "" if "" in reasons else reasons[0]


if __name__ == "__main__":
    main()
