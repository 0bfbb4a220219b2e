"""An ONNX file that workers can open, whatever machine they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trtq.pipeline.graph.onnx_file import list_data_files, read_proto
from trtq.temporary import open_temporary_folder


@dataclass(frozen=True, slots=True)
class ModelFile:
    """An ONNX file with the weights beside it; it pickles as what it holds."""

    path: Path

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yields the path of the file."""
        yield self.path

    def __reduce__(self) -> tuple[Callable[..., _CarriedFile], tuple[str, Mapping[str, bytes]]]:
        """Pickles what the file and those of its weights hold.

        Raises:
            ModelError: It cannot be read.
        """
        names = (self.path.name, *list_data_files(read_proto(self.path), self.path))
        return _CarriedFile, (
            self.path.name,
            {name: (self.path.parent / name).read_bytes() for name in names},
        )


@dataclass(frozen=True, slots=True)
class _CarriedFile:
    """The same in another process, which has it as a temporary file while it is open."""

    name: str
    content: Mapping[str, bytes]

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Yields the path of the file."""
        with open_temporary_folder() as folder:
            for name, content in self.content.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
            yield folder / self.name
