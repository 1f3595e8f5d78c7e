"""Files in pieces: places are those of the file, and a file that would not fit in memory is refused before it is read."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emergence_train.errors import InputError
from emergence_train.recorder import table_files, tables


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_are_numbered_over_the_whole_file(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(table_files, "CHUNK", 3)
    frame = pd.DataFrame(
        {"run": "a", "params": 1, "step": range(1, 11), "tokens": range(64, 704, 64), "lr": 1e-3, "loss": 3.0}
    )
    path = tmp_path / f"c.{suffix}"
    for loss in (3.0, np.nan):
        frame.loc[7, "loss"] = loss
        if suffix == "csv":
            frame.to_csv(path, index=False)
        else:
            pq.write_table(pa.Table.from_pandas(frame), path)
        chunks = table_files.chunks_of(tables.CURVES, path)
        if loss == 3.0:
            pieces = list(chunks)
            assert [len(piece) for piece in pieces] == [3, 3, 3, 1]
            assert [piece.attrs["before"] for piece in pieces] == [0, 3, 6, 9]
    with pytest.raises(InputError, match=r"row 8, column 'loss': .*nan.* is empty or NaN"):
        list(chunks)


def test_a_small_file_of_many_rows_is_refused_unread(tmp_path, monkeypatch):
    """Equal rows take next to no room, here 400,000 of them; the limit is on what the file's metadata says."""
    assert table_files.MOST_ROWS == 20_000_000
    monkeypatch.setattr(table_files, "MOST_ROWS", 300_000)
    columns = [
        pa.array(["a"] * 400_000) if kind == pa.string() else pa.array(np.ones(400_000), kind, safe=False)
        for kind in tables.POSITIONS.columns.values()
    ]
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.Table.from_arrays(columns, schema=tables.POSITIONS.schema), path)
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_: pytest.fail("was read"))
    with pytest.raises(InputError, match=r"bomb.parquet: holds 400,000 rows, and no more than 300,000"):
        tables.read(tables.POSITIONS, path)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (pd.Series([50257, None]), ["50257", ""]),
        (pd.Series([0.5, None]), ["0.5", ""]),
        (pd.Series([1e300, 2.0]), ["1e+300", "2.0"]),
        (pd.Series(["a", None], dtype="category"), ["a", ""]),
        (pd.Series([50257, None], dtype="Int64"), ["50257", ""]),
        (pd.to_datetime(pd.Series(["2020-01-01", None])), ["2020-01-01", ""]),
        (pd.Series([None, None], dtype=object), ["", ""]),
        (pd.Series(["a", None], dtype="string"), ["a", ""]),
    ],
    ids=["whole", "real", "large", "category", "integer", "date", "empty", "text"],
)
def test_text_of_any_kind_reads_as_from_csv(tmp_path, cells, expected):
    frame = pd.DataFrame({"run": "a", "params": 1, "step": [1, 2], "tokens": [64, 128], "loss": 3.0, "task": "t"})
    frame = frame.assign(metric="acc", value=0.5, family=cells)
    frame.to_parquet(tmp_path / "e.parquet")
    assert tables.read(tables.EVALUATIONS, tmp_path / "e.parquet")["family"].tolist() == expected
