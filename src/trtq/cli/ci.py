"""What a job of CI shows of a command: a summary in Markdown, and a test case for each gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trtq.cli.junit import Case, to_junit
from trtq.cli.markdown import write_title
from trtq.cli.options import combine_options
from trtq.errors import ArtifactError, GateError, TrtqError, UsageError
from trtq.files import check_outputs, write_atomically
from trtq.pipeline.graph.onnx_file import list_model_files
from trtq.temporary import is_device

summary_option = click.option(
    "--summary",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append the result to this file as Markdown, such as $GITHUB_STEP_SUMMARY or /dev/stderr.",
)
ci_options = combine_options(
    summary_option,
    click.option(
        "--junit",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write a JUnit XML file with a test case for each gate.",
    ),
)


@dataclass(frozen=True, slots=True)
class CiFiles:
    """What is written for a job of CI, and what it is of: `trtq build model.onnx`."""

    title: str
    summary: Path | None = None
    junit: Path | None = None

    def check(self, *sources: Path | str | None, **outputs: Path | None) -> None:
        """Refuses, before any work, files that cannot be written.

        Args:
            sources: What the command reads.
            outputs: What else it writes, by the names of the options.

        Raises:
            ArtifactError, UsageError: As of `check_outputs`; or the summary is to be JSON.
        """
        if self.summary is not None and self.summary.suffix == ".json":
            raise UsageError(
                f"--summary writes Markdown, and {self.summary} is named as JSON; use --json for the "
                "result (trtq build-all: -o FILE), or name the summary .md"
            )
        others = {f"--{name}": path for name, path in outputs.items()}
        summary = None if self.summary is None or is_device(self.summary) else self.summary
        outputs = {"--summary": summary, "--junit": self.junit, **others}
        check_outputs(outputs, *_with_weights(sources, outputs.values()))

    def write(self, text: str, cases: Sequence[Case]) -> None:
        """Adds a text to the summary, and writes the cases.

        Raises:
            ArtifactError: A file cannot be written.
        """
        if self.summary is not None:
            try:
                with self.summary.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise ArtifactError(f"cannot write {self.summary}: {error.strerror or error}") from error
        if self.junit is not None:
            write_atomically(self.junit, to_junit(self.title, cases))

    @contextmanager
    def tell_errors(self) -> Iterator[None]:
        """Writes an error that ends the command, unless it is a gate's, which its command has written."""
        try:
            yield
        except GateError:
            raise
        except TrtqError as error:
            self.write(
                write_title("error", self.title, [str(error)]), [Case(self.title, "error", str(error))]
            )
            raise


def take_ci_files(words: Sequence[Any], given: dict[str, Any]) -> CiFiles:
    """Returns the files that options name, which are taken out of what is given."""
    return CiFiles(" ".join(("trtq", *map(str, words))), given.pop("summary"), given.pop("junit"))


def _with_weights(
    sources: Sequence[Path | str | None], outputs: Iterable[Path | None]
) -> Iterator[Path | str | None]:
    """Yields what is read, with the files of the weights of models among it."""
    there = [*outputs]
    for source in sources:
        is_model = source is not None and Path(source).suffix == ".onnx"
        yield from list_model_files(Path(str(source)), *there) if is_model else [source]
