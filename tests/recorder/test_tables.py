"""The tables: what is written is read back; inconsistent rows are refused with file, row and column."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emergence_train.errors import InputError
from emergence_train.recorder import tables


def positions(**changes) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "run": "a",
            "params": 10,
            "step": [1, 1, 2, 2],
            "tokens": [64, 64, 128, 128],
            "split": "iid",
            "position": [1, 2, 1, 2],
            "count": 4,
            "loss_sum": [8.0, 6.0, 7.0, 5.0],
            "loss_sq_sum": [20.0, 12.0, 15.0, 8.0],
            "correct": [0, 1, 1, 2],
        }
    )
    return frame.assign(**changes)


def curves(**changes) -> pd.DataFrame:
    frame = {"run": "a", "params": 10, "step": [2, 1], "tokens": [128, 64], "lr": [1e-3, 2e-3], "loss": [3.0, 4.0]}
    return pd.DataFrame(frame).assign(**changes)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_comes_back_sorted_and_typed(tmp_path, suffix):
    path = tmp_path / f"table.{suffix}"
    shuffled = positions().iloc[[3, 0, 2, 1]]
    if suffix == "csv":
        shuffled.to_csv(path, index=False)
    else:
        tables.write(tables.POSITIONS, shuffled, path)
    read = tables.read(tables.POSITIONS, path)
    pd.testing.assert_frame_equal(read[list(positions())], positions(), check_dtype=False)
    assert read["tokens"].dtype == np.int64 and read["position"].dtype == np.int32


def test_several_files_and_a_run_directory_are_one_table(tmp_path):
    for step in (1, 2):
        part = positions()[lambda f, step=step: f["step"] == step]
        tables.write(tables.POSITIONS, part, tmp_path / "positions" / f"step-{step}.parquet")
    assert len(tables.read(tables.POSITIONS, tmp_path)) == 4
    assert len(tables.read(tables.POSITIONS, sorted((tmp_path / "positions").iterdir()))) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_sum": [8.0, np.nan, 7.0, 5.0]}, "row 2, column 'loss_sum'"),
        ({"loss_sum": [8.0, 6.0, np.inf, 5.0]}, "row 3, column 'loss_sum'"),
        ({"count": [4, 4, 4, -4]}, "row 4, column 'count'"),
        ({"position": [1, 2, 0, 2]}, "row 3, column 'position'"),
        ({"correct": [0, 5, 1, 2]}, "row 2, column 'correct'"),
        ({"loss_sq_sum": [1.0, 12.0, 15.0, 8.0]}, "row 1, column 'loss_sq_sum'"),
        ({"position": [1, 1, 1, 2]}, "is listed twice"),
        ({"params": [10, 10, 11, 11]}, "several values"),
        ({"tokens": [64, 65, 128, 128]}, "several values"),
        ({"step": [1.5, 1.5, 2, 2]}, "not a whole number"),
        ({"run": ["a", None, "a", "a"]}, "row 2, column 'run'"),
        ({"loss_sum": ["8", "many", "7", "5"]}, "row 2, column 'loss_sum'"),
    ],
)
def test_a_bad_table_is_refused_by_place(tmp_path, change, message):
    path = tmp_path / "bad.csv"
    positions(**change).to_csv(path, index=False)
    with pytest.raises(InputError) as error:
        tables.read(tables.POSITIONS, path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_missing_columns_files_and_rows(tmp_path):
    path = tmp_path / "a.csv"
    positions().drop(columns="loss_sum").to_csv(path, index=False)
    with pytest.raises(InputError, match="column 'loss_sum' is missing"):
        tables.read(tables.POSITIONS, path)
    positions().iloc[:0].to_csv(path, index=False)
    with pytest.raises(InputError, match="no rows"):
        tables.read(tables.POSITIONS, path)
    path.write_text("")
    with pytest.raises(InputError, match="cannot be read"):
        tables.read(tables.POSITIONS, path)
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(InputError, match="cannot be read"):
        tables.read(tables.POSITIONS, tmp_path / "b.parquet")
    with pytest.raises(InputError, match="no such file"):
        tables.read(tables.POSITIONS, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no positions table"):
        tables.read(tables.POSITIONS, tmp_path / "empty")


def test_text_that_is_no_text_is_refused(tmp_path):
    """A flipped bit in a name leaves bytes that cannot be printed. (Found by test_fuzz.py.)"""
    path = tmp_path / "t.parquet"
    table = pa.Table.from_pandas(positions(), preserve_index=False)
    names = pa.array([b"\x80id"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index("split"), "split", names), path)
    with pytest.raises(InputError, match="cannot be read as a table of positions"):
        tables.read(tables.POSITIONS, path)


def test_different_vocabularies_are_not_mixed_silently(tmp_path):
    tables.write(tables.POSITIONS, positions(), tmp_path / "a.parquet", vocabulary="one")
    tables.write(tables.POSITIONS, positions(run="b"), tmp_path / "b.parquet", vocabulary="two")
    both = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    with pytest.raises(InputError, match="different vocabularies"):
        tables.read(tables.POSITIONS, both)
    assert len(tables.read(tables.POSITIONS, both, mixed_vocabularies=True)) == 8


def test_curves_without_a_learning_rate_are_marked(tmp_path):
    curves().drop(columns="lr").to_csv(tmp_path / "c.csv", index=False)
    read = tables.read(tables.CURVES, tmp_path / "c.csv")
    assert read.attrs["missing"] == ["lr"] and read["lr"].isna().all() and list(read["step"]) == [1, 2]


@pytest.mark.parametrize("rates", [[None, None], [None, 2e-3]])
def test_a_rate_that_is_not_known_is_empty(tmp_path, rates):
    curves(lr=rates).to_csv(tmp_path / "c.csv", index=False)
    np.testing.assert_array_equal(tables.read(tables.CURVES, tmp_path / "c.csv")["lr"], np.array(rates[::-1], float))
    with pytest.raises(InputError, match="row 1, column 'lr'"):
        tables.read(tables.CURVES, tables.Frame(tmp_path, curves(lr=["fast", 0.1])))


def test_metrics_are_read_as_a_curve_without_a_cut_line(tmp_path):
    lines = [{"kind": "run", "run": "r", "params": 5, "vocabulary": "v"}]
    lines += [{"kind": "train", "step": s, "tokens": 64 * s, "lr": 0.1, "loss": 5.0 - s} for s in (1, 2)]
    text = "\n".join(map(json.dumps, lines)) + '\n{"kind": "train", "st'
    (tmp_path / "metrics.jsonl").write_text(text)
    read = tables.read(tables.CURVES, tmp_path)
    assert list(read["loss"]) == [4.0, 3.0] and set(read["run"]) == {"r"} and set(read["params"]) == {5}
    (tmp_path / "metrics.jsonl").write_text('{"kind": "tr\n' + text)
    with pytest.raises(InputError, match="row 1 is not a JSON object"):
        tables.read(tables.CURVES, tmp_path)


def test_rows_end_where_a_power_cut_left_zeros(tmp_path):
    """A page of the log that did not reach the disk, before one that did."""
    lines = [json.dumps({"kind": "train", "step": step, "loss": 5.0}) + "\n" for step in range(1, 40)]
    text = "".join(lines).encode()
    for first, after in ((512, 1024), (512, len(text)), (len(lines[0]) * 5, len(lines[0]) * 5 + 512)):
        (tmp_path / "metrics.jsonl").write_bytes(text[:first] + bytes(after - first) + text[after:])
        assert tables.read_metrics(tmp_path) == [json.loads(line) for line in text[:first].splitlines(True)[:-1]] + (
            [json.loads(lines[4])] if first == len(lines[0]) * 5 else []
        )


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.parquet"
    tables.write(tables.POSITIONS, positions(), path)
    before = path.read_bytes()
    with pytest.raises(InputError, match="has no column"):
        tables.write(tables.POSITIONS, positions().drop(columns="run"), path)
    with pytest.raises(Exception):  # noqa: B017 - whatever Arrow says of a text in a number's column
        tables.write(tables.POSITIONS, positions(count="many"), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_mean_loss_is_the_mean_of_all_tokens():
    tokens = np.array([[2.0, 1.0], [4.0, 3.0], [3.0, 3.5]])  # three sequences of two positions
    frame = pd.DataFrame(
        {
            "run": "a",
            "params": 1,
            "step": 1,
            "tokens": 6,
            "split": "iid",
            "position": [1, 2],
            "count": 3,
            "loss_sum": tokens.sum(0),
            "loss_sq_sum": (tokens**2).sum(0),
            "correct": 1,
        }
    )
    row = tables.mean_loss(frame).iloc[0]
    assert row["loss"] == pytest.approx(tokens.mean())
    assert row["stderr"] == pytest.approx(tokens.std() / np.sqrt(6)) and row["accuracy"] == pytest.approx(1 / 3)


def test_a_checkpoint_without_rows_is_none_beside_others(tmp_path):
    """Of a run whose losses were no longer finite; a run, or another path, without any row is refused."""
    run = tmp_path / "run"
    tables.write(tables.POSITIONS, positions(), run / "positions" / "step-1.parquet")
    tables.write(tables.POSITIONS, positions().iloc[:0], run / "positions" / "step-2.parquet")
    assert len(tables.read(tables.POSITIONS, run)) == len(positions()) and tables.has_rows(tables.POSITIONS, run)
    (run / "positions" / "step-1.parquet").unlink()
    assert not tables.has_rows(tables.POSITIONS, run)
    tables.write(tables.POSITIONS, positions(), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="step-2.parquet: the positions table has no rows"):
        tables.read(tables.POSITIONS, [run, tmp_path / "other.parquet"])
