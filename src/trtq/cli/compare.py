"""`trtq compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from trtq.cli import options
from trtq.cli.ci import CiFiles, ci_options
from trtq.cli.console import ConsoleWatcher, open_console, print_json
from trtq.cli.help import GroupedCommand
from trtq.cli.markdown import write_comparison
from trtq.cli.options import Given
from trtq.cli.tables import create_comparison_table, format_outcome, print_accuracy, print_logits
from trtq.cli.verdicts import list_pair_cases
from trtq.errors import GateError, UsageError
from trtq.json import to_plain
from trtq.models.spec import AccuracySpec, CalibrationSpec, EvaluationSpec, ModelSpec, OperatorSpec
from trtq.numbers import format_count
from trtq.pipeline.calibrate.data import find_spec
from trtq.pipeline.compare import compare, compare_reading, compare_writing, name_compared
from trtq.pipeline.deliver.advice import group_reasons
from trtq.pipeline.judge.gate import judge_pair
from trtq.pipeline.judge.generate import Generated


@click.command("compare", cls=GroupedCommand)
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@options.spec_option
@options.take_one(
    EvaluationSpec, "data", "--data", text="Data to compare on, in any format of `trtq build --calib-data`."
)
@options.take_one(
    EvaluationSpec,
    "labels",
    text="One class index for each sample: the name of an array of --data, or a .npy file.",
)
@options.take(EvaluationSpec, "output")
@options.take_one(EvaluationSpec, "samples", "--samples")
@options.take_one(CalibrationSpec, "batch_size", "--batch-size", text="Samples in a batch.  [default: 8]")
@options.take_pictures()
@options.take(OperatorSpec)
@options.take(AccuracySpec, "min_cosine", "max_drop", "metric")
@click.option(
    "--generate",
    type=click.IntRange(1, 4096),
    metavar="COUNT",
    help="Compare this many greedily generated tokens instead.",
)
@options.take_path(
    "--prompt-ids", text="Prompts for --generate: token ids, one prompt per line, or a .npy file."
)
@options.take_path(
    "--token-ids", text="Compare logits on texts instead: token ids, one text per line, or a .npy file."
)
@click.option(
    "--window",
    type=click.IntRange(2),
    metavar="COUNT",
    help="Context window in tokens.  [default: 512]",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Move the window by this many tokens; a model with a KV cache reads this many at a time.  "
    "[default: half a window]",
)
@ci_options
@options.json_option
@options.quiet_option
@options.pass_given
def command(
    given: Given,
    reference: Path,
    candidate: Path,
    generate: int | None,
    prompt_ids: Path | None,
    token_ids: Path | None,
    window: int | None,
    stride: int | None,
    summary: Path | None,
    junit: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare the outputs of two models on the same data and apply the gate.

    The first model is the reference. The second may be a build folder; its engine then runs, which needs
    the TensorRT version and GPU that it was built for.

    \b
      trtq compare model.onnx model.int8.onnx --data eval.npz --labels labels
      trtq compare model.onnx model.trtq --data eval.npz
      trtq compare decoder.onnx decoder.int4.onnx --generate 32 --prompt-ids prompts.txt
      trtq compare decoder.onnx decoder.int4.onnx --token-ids text.npy --window 1024
    """
    if (generate is None) != (prompt_ids is None):
        raise UsageError("--generate and --prompt-ids go together; give both, or neither")
    if token_ids is None and (window, stride) != (None, None):
        raise UsageError("--window and --stride are for --token-ids; give it, or leave them out")
    if prompt_ids is not None or token_ids is not None:
        mode, other = ("--generate", token_ids) if prompt_ids else ("--token-ids", None)
        _refuse_unused(mode, given, summary=summary, junit=junit, **{"token-ids": other})
        spec = _read_operators(given, reference)
        if token_ids is not None:
            with ConsoleWatcher(quiet=quiet) as watcher:
                read = compare_reading(
                    reference,
                    candidate,
                    token_ids,
                    window=window or 512,
                    stride=stride,
                    spec=spec,
                    watcher=watcher,
                )
            if as_json:
                print_json(to_plain(read))
            elif not quiet:
                print_logits(open_console(), [read])
            return
        assert prompt_ids is not None
        assert generate is not None
        with ConsoleWatcher(quiet=quiet) as watcher:
            written = compare_writing(reference, candidate, prompt_ids, generate, spec=spec, watcher=watcher)
        if as_json:
            print_json([{**to_plain(item), "diverges_at": item.diverges_at} for item in written])
        elif not quiet:
            _print_written(name_compared(reference, candidate), written, generate)
        return
    spec = given.read_spec(reference)
    files = CiFiles(f"trtq compare {reference} {candidate}", summary, junit)
    files.check(reference, candidate, *spec.sources)
    with files.tell_errors(), ConsoleWatcher(quiet=quiet) as watcher:
        comparison = compare(reference, candidate, spec=spec, watcher=watcher)
    verdict = judge_pair(comparison, spec.accuracy)
    cases = list_pair_cases(comparison, verdict, spec.accuracy)
    files.write(write_comparison(files.title, verdict.outcome, comparison, cases), cases)
    if as_json:
        print_json({"verdict": verdict.outcome, "reasons": verdict.reasons, **to_plain(comparison)})
    elif not quiet:
        console = open_console()
        if comparison.accuracy:
            print_accuracy(console, comparison.accuracy, comparison.num_samples, comparison.metric)
        if comparison.top5:
            print_accuracy(console, comparison.top5, comparison.num_samples, "top-5")
        if comparison.outputs:
            console.print(create_comparison_table(comparison.outputs))
        print_logits(console, comparison.logits)
        console.print(
            f"on {format_count(comparison.num_samples, 'sample')} of {comparison.data}", soft_wrap=True
        )
        if verdict.outcome == "unverified":
            console.print(format_outcome(verdict.outcome, verdict.reasons))
    if verdict.outcome == "fail":
        raise GateError("the accuracy gate failed: " + "; ".join(group_reasons(verdict.reasons)))


def _read_operators(given: Given, reference: Path) -> ModelSpec:
    """Returns the settings without those of the file that are not `[operators]`."""
    found = find_spec(reference, trust=True)
    return given.read_spec(reference, ModelSpec(operators=found.operators, file=found.file))


def _refuse_unused(mode: str, given: Given, **files: Path | None) -> None:
    """Refuses what is of no use in a mode that reads no data, has no gate and needs only operators.

    Raises:
        UsageError: There is such an option.
    """
    unused = [change.option for change in given.changes if change.settings is not OperatorSpec]
    unused += [f"--{name}" for name, path in files.items() if path is not None]
    if unused:
        raise UsageError(f"{unused[0]} has no effect with {mode}: tokens are shown, not judged on data")


def _print_written(names: tuple[str, str], found: Sequence[Generated], count: int) -> None:
    """Prints what both models write, and where they part; what differs is no failure."""
    console = open_console()
    for number, item in enumerate(found, 1):
        place = item.diverges_at
        parted = f"the same {count} tokens" if place is None else f"diverges at token {place + 1} of {count}"
        console.print(f"prompt {number}, {format_count(len(item.prompt), 'token')}: {parted}")
        for name, tokens in zip(names, (item.reference, item.candidate), strict=True):
            console.print(f"  {name}  {' '.join(map(str, tokens))}", soft_wrap=True)
    same = [count if item.diverges_at is None else item.diverges_at for item in found]
    console.print(f"on average, the first {sum(same) / len(same):.1f} of {count} tokens are the same")
