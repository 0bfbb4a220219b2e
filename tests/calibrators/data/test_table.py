"""Parquet files and the folders of Hugging Face's datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoded import png
from made_up import join, sizes_of

from trtq.calibrators.batches import Batches
from trtq.calibrators.sources import open_batches
from trtq.errors import DataError
from trtq.models.preprocess import Preprocess
from trtq.models.signature import TensorSpec

OPEN = [TensorSpec("x", "float32", ("N", 2))]
CUBES = [TensorSpec("x", "float32", ("N", 2, 3, 4))]
PICTURES = [TensorSpec("pixels", "float32", ("N", 3, 4, 4))]
PLAIN = Preprocess(scale=1.0, mean=(0.0,), std=(1.0,))
X = np.arange(20, dtype=np.float32).reshape(10, 2)
CUBE = np.arange(240, dtype=np.float32).reshape(10, 2, 3, 4)


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def save_dataset(folder: Path, *tables: pa.Table, **state: object) -> Path:
    """Writes what `Dataset.save_to_disk` of Hugging Face's datasets writes."""
    folder.mkdir()
    names = [f"data-{index:05}-of-{len(tables):05}.arrow" for index in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    described = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", **state}
    (folder / "state.json").write_text(json.dumps(described))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def read(
    source: object, inputs: Sequence[TensorSpec] = OPEN, size: int = 4, extra: Sequence[str] = ()
) -> Batches:
    return open_batches(str(source), inputs, size, preprocess=PLAIN, extra=extra)


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2), pa.large_list(pa.float16())]
)
def test_a_column_of_lists_is_an_input(tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([[np.float16(v) for v in row] for row in X], kind)
    batches = read(write(tmp_path / "a.parquet", x=values, other=["text"] * 10))
    assert sizes_of(batches) == sizes_of(batches) == [4, 4, 2]
    assert np.array_equal(join(batches), X)
    assert batches.num_samples == 10


def test_nested_lists_tensors_and_flat_lists_have_the_shape_of_the_input(tmp_path: Path) -> None:
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(CUBE)
    for index, column in enumerate((CUBE.tolist(), CUBE.reshape(10, -1).tolist(), tensors)):
        assert np.array_equal(join(read(write(tmp_path / f"{index}.parquet", x=column), CUBES)), CUBE)


def test_a_tensor_has_its_axes_in_their_order(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.float32(), [4, 2, 3], permutation=[1, 2, 0])
    stored = pa.array(CUBE.transpose(0, 3, 1, 2).reshape(10, -1).tolist(), kind.storage_type)
    column = pa.ExtensionArray.from_storage(kind, stored)
    assert np.array_equal(join(read(write(tmp_path / "a.parquet", x=column), CUBES)), CUBE)


def test_whole_numbers_and_labels_are_columns_too(tmp_path: Path) -> None:
    ids = [TensorSpec("ids", "int64", ("N",))]
    path = write(tmp_path / "a.parquet", ids=pa.array(range(5), pa.int32()), label=[4, 3, 2, 1, 0])
    (first, _) = read(path, ids, 4, ["label"])
    assert (first.arrays["ids"].tolist(), first.arrays["ids"].dtype.name) == ([0, 1, 2, 3], "int64")
    assert first.arrays["label"].tolist() == [4, 3, 2, 1]
    assert next(iter(read(path, ids, 4, ["class"]))).arrays.keys() == {"ids"}


@pytest.mark.parametrize("is_struct", [False, True])
def test_encoded_pictures_are_decoded_and_prepared(tmp_path: Path, *, is_struct: bool) -> None:
    colors = [(1, 2, 3), (4, 5, 6)]
    cells = [{"bytes": png(color), "path": None} if is_struct else png(color) for color in colors]
    (feed,) = read(write(tmp_path / "a.parquet", image=cells, label=[0, 1]), PICTURES, 4, ["label"])
    assert feed.arrays["pixels"][:, :, 0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_pictures_are_prepared_and_numbers_are_not(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.parquet", image=[png((1, 2, 3))]), PICTURES).preprocess == PLAIN
    assert read(write(tmp_path / "b.parquet", x=X.tolist())).preprocess is None


def test_a_folder_with_another_state_is_one_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "state.json").write_text("[]")
    assert sizes_of(read(tmp_path, PICTURES)) == [1]


def test_a_folder_of_parquet_files_is_read_by_file(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "a.parquet", x=X[:5].tolist())
    write(tmp_path / "b" / "c.pq", x=X[5:].tolist())
    batches = read(tmp_path)
    assert np.array_equal(join(batches), X)
    assert (sizes_of(batches), batches.num_samples) == ([4, 1, 4, 1], 10)
    parts = [[feed.num_samples for feed in batches.shard(part, 2)] for part in (1, 2)]
    assert parts == [[4, 1], [4, 1]]
    fixed = read(tmp_path, [TensorSpec("x", "float32", (4, 2))])
    assert (sizes_of(fixed), fixed.num_samples, fixed.left_out) == ([4, 4], 8, 2)


def test_parquet_comes_from_s3(s3: Any, tmp_path: Path) -> None:
    s3.put(str(write(tmp_path / "a.parquet", x=X.tolist())), "data/table/a.parquet")
    batches = read("s3://data/table/a.parquet")
    assert np.array_equal(join(batches), X)
    assert batches.num_samples is None


def test_a_folder_of_datasets_is_read_in_the_order_of_its_state(tmp_path: Path) -> None:
    tables = [pa.table({"x": part.tolist()}) for part in (X[5:], X[:5])]
    batches = read(save_dataset(tmp_path / "saved", *tables))
    assert np.array_equal(join(batches), np.concatenate([X[5:], X[:5]]))
    assert batches.num_samples == 10


def test_a_folder_of_datasets_comes_from_s3(s3: Any, tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved", pa.table({"x": X.tolist()}))
    s3.put(str(folder), "data/saved-dataset", recursive=True)
    assert np.array_equal(join(read("s3://data/saved-dataset")), X)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1.0, 2.0], None], r"^column 'x' of .*a.parquet, row 1 is empty; leave such rows out$"),
        ([[1.0, None]], r"a.parquet, row 0 has an empty element in a list; leave such rows out$"),
        ([[[1.0], None]], r"a.parquet, row 0 has an empty element in a list; leave such rows out$"),
        ([[[1.0], [1.0, 2.0]]], r"a.parquet, row 0 has lists of 1, 2 elements in one array$"),
        ([b"picture"], r"^column 'x' of .*a.parquet, row 0 holds bytes, and 'x' is not an input of rank 4$"),
        (["text"], r"input 'x' of .*a.parquet, row 0 is .*, the model expects float32"),
        ([[1.0, 2.0, 3.0]], r"a.parquet, row 0 has shape \(1, 3\), the model expects \(N, 2\)"),
        (
            [[1.0, 2.0], [1.0]],
            r"array 'x' of .*a.parquet, row 1 has shape \(1\), others in its batch have \(2\)",
        ),
    ],
)
def test_cells_that_do_not_fit_are_told(tmp_path: Path, column: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list(read(write(tmp_path / "a.parquet", x=column)))


def test_a_picture_without_its_bytes_is_told(tmp_path: Path) -> None:
    cells = pa.array(
        [{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    with pytest.raises(
        DataError,
        match=r"a.parquet, row 0 has the path of an image without its bytes; save the data with the images$",
    ):
        list(read(write(tmp_path / "a.parquet", pixels=cells), PICTURES))


def test_a_column_that_is_missing_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", y=X.tolist(), z=X.tolist())
    with pytest.raises(
        DataError,
        match=r"a.parquet has no column 'x'; it has y, z; call a column as the model calls its input$",
    ):
        list(read(path))


def test_whole_numbers_that_do_not_fit_stay_as_they_are(tmp_path: Path) -> None:
    bytes_ = [TensorSpec("x", "uint8", ("N", 2))]
    assert join(read(write(tmp_path / "a.parquet", x=[[0, 255]]), bytes_)).dtype == np.uint8
    with pytest.raises(DataError, match=r"is int64, the model expects uint8"):
        list(read(write(tmp_path / "b.parquet", x=[[0, 256]]), bytes_))


@pytest.mark.parametrize("name", ["a.parquet", "data-00000-of-00001.arrow"])
def test_a_file_that_is_cut_short_is_told(tmp_path: Path, name: str) -> None:
    folder = save_dataset(tmp_path / "saved", pa.table({"x": X.tolist()}))
    path = folder / name if name.endswith("arrow") else write(tmp_path / name, x=X.tolist())
    path.write_bytes(path.read_bytes()[:400])
    kind = "an Arrow stream" if name.endswith("arrow") else "Parquet"
    with pytest.raises(DataError, match=rf"{name} cannot be read as {kind}: "):
        list(read(folder if name.endswith("arrow") else path))


def test_a_stream_that_is_cut_between_two_batches_or_joined_is_told(tmp_path: Path) -> None:
    folder = save_dataset(tmp_path / "saved", pa.table({"x": X.tolist()}))
    path = folder / "data-00000-of-00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content * 2)
    with pytest.raises(DataError, match=r"there is more data after the stream; save each stream alone$"):
        list(read(folder))
    path.write_bytes(content[:-8])
    with pytest.raises(
        DataError, match=r"it ends without the mark of an Arrow stream's end: it is cut short$"
    ):
        list(read(folder))


def test_folders_of_datasets_that_are_not_whole_are_told(tmp_path: Path) -> None:
    table = pa.table({"x": X.tolist()})
    folder = save_dataset(tmp_path / "selected", table, _indices_files=[{"filename": "indices.arrow"}])
    with pytest.raises(
        DataError, match=r"selected is a selection of rows; save it after flatten_indices\(\)$"
    ):
        read(folder)
    folder = save_dataset(tmp_path / "partial", table, table)
    (folder / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(
        DataError,
        match=r"partial has no file data-00000-of-00002.arrow, which its state.json names; copy it whole$",
    ):
        read(folder)
    (folder / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state.json cannot be read as JSON: .*it is no mapping$"):
        read(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json cannot be read: "):
        read(folder)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(
        DataError, match=r"holds several splits \(train, test\); name the folder of one of them$"
    ):
        read(tmp_path)
