"""The command line: options, one call of the library, output."""

from __future__ import annotations

import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from trtq.cli.console import echo, open_closed_streams
from trtq.cli.help import GuessingGroup, complete_names
from trtq.errors import BuildError, GateError, TrtqError, UsageError
from trtq.lazy import defer

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_HARDLY_USED = (
    "sympy", "onnx_ir._symbolic_shapes", "google.protobuf.json_format", "google.protobuf.text_format",
)  # fmt: skip
"""onnx_ir needs the first two for arithmetic with the names of axes; they take as long to import as all else
of it. onnx needs the others for models as text."""
_COLLECTED = (20_000, 10, 10)
"""How many new objects Python looks through for garbage at a time; with its own numbers that takes much of
the time of a graph of thousands of nodes."""
_AS_JSON, _WORDS = "trtq.json", "trtq.words"
_COMMANDS = {
    "init": "Write a commented settings file to start from.",
    "export": "Export a PyTorch module to ONNX and check that both agree.",
    "plan": "Estimate the GPU memory a model needs in each precision.",
    "build": "Build a verified INT8 (or FP8, FP16, ...) engine from an ONNX model.",
    "build-all": "Build several models, described in one file.",
    "calibrate": "Compute the calibration ranges of a model from data.",
    "merge-statistics": "Merge the calibration statistics of all shards of the data.",
    "quantize": "Write the Q/DQ model from a float model and its ranges.",
    "sensitivity": "Measure the accuracy cost of each quantized layer.",
    "compare": "Compare the outputs of two models on the same data.",
    "run": "Run a build on data and save its outputs.",
    "report": "Rewrite the HTML report of a build, or compare two builds.",
    "bench": "Measure the speed of models and engines side by side.",
    "package": "Add a build to a Triton model repository, or write it for DeepStream.",
    "lint": "Find Q/DQ that TensorRT rejects or silently runs in float.",
    "cache": "Show, convert, compare and write TensorRT calibration caches.",
    "migrate": "Turn a model and its calibration cache into a Q/DQ model and an engine.",
    "verify": "Check every file of a build folder, and its signature.",
    "sign": "Sign a build folder.",
    "inspect": "Show what is in a model, ranges file, cache or build folder.",
    "doctor": "Show what is installed and which backends work here.",
    "demo": "Write a small trained model with data, for trying out trtq.",
    "completion": "Print a completion script for bash, zsh or fish.",
}


def _interrupt(signum: int, frame: object) -> None:
    """Ends the command as Ctrl-C does, so that it clears up behind itself."""
    raise KeyboardInterrupt


def _interrupt_again(unraisable: sys.UnraisableHookArgs) -> None:
    """Interrupts anew, in a moment, where Python drops an interruption: while it clears a generator away."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _set_alarm(0.05)
    else:
        sys.__unraisablehook__(unraisable)


def _forget_interruption() -> None:
    """Has Python end with the exit code of the command after an interruption within `exec` of a string.

    `python -m` would end by SIGINT, although the interruption was handled. Dataclasses and named tuples are
    made by such an `exec`, so that any import may be hit. The next `exec` of a string resets it.
    """
    exec("")


def _print_what_can_be_printed() -> None:
    """Has "?" printed for what stdout has no character for, as code pages of Windows have no bars.

    UTF-8 has all but the bytes of names that are not UTF-8, which are printed as they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "replace")


def _set_alarm(seconds: float) -> None:
    """Interrupts this process in so many seconds, 0: not any more; Windows has no such alarm."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _imported(name: str) -> ModuleType:
    """Returns a module that holds for good: its objects are never looked through for garbage."""
    if name in sys.modules:
        return sys.modules[name]
    defer(*_HARDLY_USED)
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        gc.set_threshold(*_COLLECTED)
        gc.enable()


def _explain(error: OSError | MemoryError) -> str:
    """Returns what the machine refuses: a path or the memory that the work needs."""
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {str(error) or 'smaller batches or settings need less'}"
    return f"{error.strerror or error}: {error.filename}" if error.filename else error.strerror or str(error)


@contextmanager
def _one_line(ctx: click.Context) -> Iterator[None]:
    """Ends the command with one line for an expected failure, and what a builder says or helps below it."""
    try:
        yield
    except (BuildError, GateError) as error:
        line, *more = str(error).split("\n")
        _end(ctx, line, error.exit_code, more)
    except TrtqError as error:
        _end(ctx, str(error), error.exit_code)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # of click 8.2, which shows the help by it
            raise
        advice = f"`{_name(error.ctx or ctx)} --help` lists what there is"
        told = error.format_message().replace("\n\t", " ")  # click lists choices so
        _end(ctx, f"{told.rstrip('.')}; {advice}", error.exit_code)
    except click.ClickException as error:
        _end(ctx, error.format_message(), error.exit_code)
    except BrokenPipeError:
        raise  # click ends it in silence
    except (OSError, MemoryError) as error:
        _end(ctx, _explain(error), 2)


def _end(ctx: click.Context, text: str, code: int, more: Sequence[str] = ()) -> NoReturn:
    """Prints an error and ends the command; an end of a line within a name is printed as `\\n`."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    for line in (text.replace("\n", "\\n"), *more):
        echo(line, err=True)
    ctx.exit(code)


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuses an empty word, which a path would take for the current folder and a pattern for every name.

    Raises:
        UsageError: A shell variable was not set, most likely.
    """
    for before, word in pairwise(("", *words)):
        option, is_joined, value = word.partition("=")
        if not word or (is_joined and not value and option.startswith("--")):
            name = option or (before if before.startswith("-") else "an argument")
            raise UsageError(f"{name} is empty; give it a value or leave it out")


def _name(ctx: click.Context) -> str:
    """Returns the words of a command: `trtq cache show`."""
    return "trtq" if ctx.parent is None else f"{_name(ctx.parent)} {ctx.info_name}"


def _keep_stdout(*, is_json: bool) -> AbstractContextManager[None]:
    """Returns what keeps stdout for the answer, where that is JSON."""
    if not is_json:
        return nullcontext()
    from trtq.cli.console import keep_stdout

    return keep_stdout()


class _LazyGroup(GuessingGroup):
    """Imports a command when it is run: `trtq --help` loads click alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of the work."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Returns the command of this name."""
        if name not in _COMMANDS:
            return None
        command: click.Command = _imported(f"trtq.cli.{name.replace('-', '_')}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Returns the commands and options that begin so."""
        return complete_names(self, ctx, incomplete, _COMMANDS)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Notes the words, and whether the answer is to be JSON, before any code of a command runs."""
        ctx.meta[_AS_JSON], ctx.meta[_WORDS] = "--json" in args, tuple(args)
        with _one_line(ctx):
            _refuse_empty(args)
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; its expected failures end it without a traceback."""
        signal.signal(signal.SIGTERM, _interrupt)
        if hasattr(signal, "SIGALRM"):
            signal.signal(signal.SIGALRM, _interrupt)
        open_closed_streams()
        hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
        _print_what_can_be_printed()
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime 1.31 and later report their use
        try:
            with _one_line(ctx), _keep_stdout(is_json=ctx.meta[_AS_JSON]):
                return super().invoke(ctx)
        finally:
            _set_alarm(0)  # too late to interrupt what is done
            _forget_interruption()
            sys.unraisablehook = hook


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(None, "-V", "--version", package_name="trtq", prog_name="trtq")
def main() -> None:
    """Turn a float ONNX model into a verified INT8 TensorRT engine, with or without a GPU.

    \b
      trtq build model.onnx --int8 --calib-data calib.npz

    Exit codes: 0 success; 2 bad input or usage; 3 the accuracy or speed gate failed, or an export differs
    from PyTorch; 4 a build failed; 5 a required package is not installed.
    """
