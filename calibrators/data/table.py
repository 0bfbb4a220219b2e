"""Parquet files and the folders of Hugging Face's datasets: a row is a sample, a column is an array."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from trtq import lazy
from trtq.calibrators.data.files import StoredFile, find_suffix
from trtq.calibrators.data.pictures import PictureInput, find_picture_input
from trtq.calibrators.data.samples import Sample, SampleFiles, Wanted
from trtq.errors import DataError
from trtq.files import refuse_damage
from trtq.models.preprocess import Preprocess
from trtq.workers import Threads

PARQUET_SUFFIXES = (".parquet", ".pq")
STATE = "state.json"
SPLITS = "dataset_dict.json"
_ROWS = 64
_BUFFER_BYTES = 1 << 20
"""Of each column; without it, whole chunks of columns are held."""
_ARROW_END = b"\xff\xff\xff\xff\0\0\0\0"
_WORK = "reading Parquet and Arrow files"


def open_table(files: Sequence[StoredFile], name: str, wanted: Wanted, steps: Preprocess) -> SampleFiles:
    """Returns the rows of Parquet or Arrow files as samples.

    A column that is called like an input or the labels is that array; a model with one input also takes the
    only other column.
    """
    return SampleFiles(name, files, partial(_read_rows, wanted=wanted, steps=steps), _count_rows, str(steps))


def table_has_pictures(file: StoredFile, wanted: Wanted) -> bool:
    """Returns whether an input is read out of a column of bytes; a file that is damaged has none."""
    types = lazy.require("pyarrow.types", "data", _WORK)
    with suppress(DataError), _refuse_damaged(file), file.open() as stream:
        is_parquet = find_suffix(file) in PARQUET_SUFFIXES
        schema = _open_parquet(stream).schema_arrow if is_parquet else _open_arrow(stream).schema
        columns = _match_columns(file.name, schema.names, wanted).items()
        kinds = [schema.field(column).type for name, column in columns if wanted.find(name) is not None]
        return any(types.is_struct(kind) or _is_binary(kind, types) for kind in kinds)
    return False


def _is_binary(kind: Any, types: Any) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def find_dataset_files(name: str, files: Sequence[StoredFile]) -> Sequence[StoredFile]:
    """Returns the Arrow files of a folder that `Dataset.save_to_disk` has written, in their order.

    Args:
        name: Of the folder.
        files: What lies in it. None are returned if it is another folder.

    Raises:
        DataError: It holds several splits, lacks a file, or is a selection of rows.
    """
    held = {file.base: file for file in files}
    if SPLITS in held:
        splits = ", ".join(_read_json(held[SPLITS]).get("splits", ()))
        raise DataError(f"{name} holds several splits ({splits}); name the folder of one of them")
    if STATE not in held or not any(find_suffix(file) == ".arrow" for file in files):
        return ()
    state = _read_json(held[STATE])
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{name} is a selection of rows; save it after flatten_indices()")
    with refuse_damage(DataError, f"{held[STATE].name} cannot be read"):
        names = [str(item["filename"]) for item in state["_data_files"]]
    if missing := [each for each in names if each not in held]:
        raise DataError(f"{name} has no file {missing[0]}, which its {STATE} names; copy it whole")
    return [held[each] for each in names]


def _read_json(file: StoredFile) -> Mapping[str, Any]:
    with refuse_damage(DataError, f"{file.name} cannot be read as JSON"), file.open() as stream:
        content = json.loads(stream.read())
        if not isinstance(content, dict):
            raise TypeError("it is no mapping")
        return content


def _count_rows(file: StoredFile) -> int:
    with _refuse_damaged(file), file.open() as stream:
        if find_suffix(file) in PARQUET_SUFFIXES:
            return int(_open_parquet(stream).metadata.num_rows)
        return sum(batch.num_rows for batch in _open_arrow(stream))


def _refuse_damaged(file: StoredFile) -> Any:
    kind = "Parquet" if find_suffix(file) in PARQUET_SUFFIXES else "an Arrow stream"
    return refuse_damage(DataError, f"{file.name} cannot be read as {kind}")


def _open_parquet(stream: IO[bytes]) -> Any:
    return lazy.require("pyarrow.parquet", "data", _WORK).ParquetFile(stream, buffer_size=_BUFFER_BYTES)


def _open_arrow(stream: IO[bytes]) -> Any:
    """Opens a stream; Arrow would take the end of a file that was cut between two batches for its own."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - len(_ARROW_END)))
    if stream.read() != _ARROW_END:
        raise EOFError("it ends without the mark of an Arrow stream's end: it is cut short")
    stream.seek(0)
    return lazy.require("pyarrow.ipc", "data", _WORK).open_stream(stream)


def _read_rows(file: StoredFile, wanted: Wanted, steps: Preprocess) -> Iterator[Sample]:
    with _refuse_damaged(file), file.open() as stream:
        if find_suffix(file) in PARQUET_SUFFIXES:
            table = _open_parquet(stream)
            columns = _match_columns(file.name, table.schema_arrow.names, wanted)
            batches = table.iter_batches(batch_size=_ROWS, columns=sorted({*columns.values()}))
        else:
            batches = _open_arrow(stream)
            columns = _match_columns(file.name, batches.schema.names, wanted)
        yield from _read_batches(file.name, batches, columns, wanted, steps)
        if find_suffix(file) not in PARQUET_SUFFIXES and stream.read(1):
            raise ValueError("there is more data after the stream; save each stream alone")


def _match_columns(source: str, held: Sequence[str], wanted: Wanted) -> Mapping[str, str]:
    """Returns the column of each array.

    Raises:
        DataError: One has none.
    """
    columns = {name: name for name in wanted.names if name in held}
    others = [name for name in held if name not in wanted.extra]
    if len(wanted.inputs) == 1 and wanted.inputs[0].name not in columns and len(others) == 1:
        columns = {wanted.inputs[0].name: others[0], **columns}
    if missing := [spec.name for spec in wanted.inputs if spec.name not in columns]:
        raise DataError(
            f"{source} has no column {missing[0]!r}; it has {', '.join(held) or 'none'}; call a column as "
            f"the model calls its input"
        )
    return columns


def _read_batches(
    source: str, batches: Any, columns: Mapping[str, str], wanted: Wanted, steps: Preprocess
) -> Iterator[Sample]:
    start = 0
    for batch in batches:
        batch.validate(full=True)  # Arrow ends the process where offsets lead out of a damaged file

        def read(row: int, batch: Any = batch, start: int = start) -> Sample:
            where = f"{source}, row {start + row}"
            cells = {name: batch.column(column).slice(row, 1) for name, column in columns.items()}
            arrays = {name: _read_cell(cell, name, where, wanted, steps) for name, cell in cells.items()}
            return Sample(arrays, where)

        yield from Threads().map(read, range(batch.num_rows))
        start += batch.num_rows


def _read_cell(cell: Any, name: str, where: str, wanted: Wanted, steps: Preprocess) -> NDArray[Any]:
    """Returns what a cell holds: numbers, lists of them, or an encoded picture."""
    types = lazy.require("pyarrow.types", "data", _WORK)
    if cell.null_count:
        raise DataError(f"column {name!r} of {where} is empty; leave such rows out")
    if hasattr(cell, "storage"):  # an extension type, such as a tensor
        flat = _to_array(cell.storage, where, types)[0]
        array = flat.reshape(getattr(cell.type, "shape", None) or flat.shape)
        order = getattr(cell.type, "permutation", None)
        return wanted.fit(name, array.transpose(order) if order else array)
    if types.is_struct(cell.type) or _is_binary(cell.type, types):
        return _read_picture(cell, where, _require_picture(name, where, wanted, steps))
    return wanted.fit(name, _to_array(cell, where, types)[0])


def _require_picture(name: str, where: str, wanted: Wanted, steps: Preprocess) -> PictureInput:
    found = find_picture_input(wanted.inputs, steps, name)
    if found is None:
        raise DataError(f"column {name!r} of {where} holds bytes, and {name!r} is not an input of rank 4")
    return found


def _read_picture(cell: Any, where: str, taken: PictureInput) -> NDArray[Any]:
    """Returns a picture out of its bytes, or out of Hugging Face's {bytes, path}."""
    value = cell[0].as_py()
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise DataError(f"{where} has the path of an image without its bytes; save the data with the images")
    return taken.read(io.BytesIO(content), where)


def _to_array(cells: Any, where: str, types: Any) -> NDArray[Any]:
    """Returns cells along the first axis, with nested lists as further axes."""
    kind = cells.type
    if hasattr(cells, "storage"):
        return _to_array(cells.storage, where, types)
    if cells.null_count:
        raise DataError(f"{where} has an empty element in a list; leave such rows out")
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _to_array(cells.flatten(), where, types)
        length, rest = divmod(len(inner), max(1, len(cells)))
        lengths = {len(cell) for cell in cells}
        if rest or len(lengths) > 1:
            raise DataError(
                f"{where} has lists of {', '.join(map(str, sorted(lengths)))} elements in one array"
            )
        return inner.reshape(len(cells), length, *inner.shape[1:])
    return np.asarray(cells.to_numpy(zero_copy_only=False))
