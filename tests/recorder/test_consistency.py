"""Tables read in pieces: every fault across pieces is named as a look at the whole table names it."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.errors import InputError
from emergence_train.recorder import consistency, table_files, tables


def draw(rng) -> pd.DataFrame:
    """A valid `positions` table of two runs."""
    frame = pd.MultiIndex.from_product(
        [["a", "b"], [1, 2, 3], ["iid", "ood"], [1, 2, 3]], names=["run", "step", "split", "position"]
    ).to_frame(index=False)
    frame = frame.assign(params=10, tokens=frame["step"] * 64, count=4, loss_sum=8.0, loss_sq_sum=20.0, correct=1)
    return frame[list(tables.POSITIONS.columns)].sample(frac=1, random_state=int(rng.integers(1000)))


def write_parts(frame: pd.DataFrame, folder) -> list:
    """The frame as three files of unequal lengths."""
    paths = []
    for number, part in enumerate((frame[:7], frame[7:20], frame[20:])):
        paths.append(folder / f"{number}.{'csv' if number == 1 else 'parquet'}")
        if number == 1:
            part.to_csv(paths[-1], index=False)
        else:
            tables.write(tables.POSITIONS, part, paths[-1])
    return paths


def expected(frame: pd.DataFrame, paths: list) -> str | None:
    """The first fault by a plain look at all rows at once."""
    lengths = [7, 13, len(frame) - 20]
    place = [(path, row) for path, length in zip(paths, lengths) for row in range(1, length + 1)]
    key = list(tables.POSITIONS.key)
    rows = list(frame[key].itertuples(index=False, name=None))
    for row in rows:
        if rows.count(row) > 1:
            first, second = [place[k] for k, other in enumerate(rows) if other == row][:2]
            named = ", ".join(f"{name}={value}" for name, value in zip(key, row))
            places = f"{first[0]} row {first[1]} and {second[0]} row {second[1]}"
            return f"the key ({named}) is listed twice: {places}; keep one of them"
    for columns, value in ((["run"], "params"), (["run", "step"], "tokens")):
        groups = list(frame[columns].itertuples(index=False, name=None))
        for k, group in enumerate(groups):
            values = sorted({v for other, v in zip(groups, frame[value]) if other == group})
            if len(values) > 1:
                named = ", ".join(f"{name}={part}" for name, part in zip(columns, group))
                return (
                    f"{place[k][0]}: row {place[k][1]}, column {value!r}: {named} has several values "
                    f"({', '.join(map(str, values[:3]))}); give different runs different names"
                )
    return None


@pytest.mark.parametrize("fault", ["none", "twice", "params", "tokens", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_faults_across_pieces_are_named_as_in_the_whole(tmp_path, monkeypatch, fault, seed):
    monkeypatch.setattr(table_files, "CHUNK", 4)
    rng = np.random.default_rng(seed)
    frame = draw(rng)
    if fault in ("twice", "all"):
        frame = pd.concat([frame, frame.sample(5, random_state=seed)]).sample(frac=1, random_state=seed)
    for column in {"params": ["params"], "tokens": ["tokens"], "all": ["params", "tokens"]}.get(fault, []):
        frame = frame.assign(**{column: np.where(rng.random(len(frame)) < 0.2, 99, frame[column])})
    paths = write_parts(frame, tmp_path)
    message = None
    try:
        result = tables.read(tables.POSITIONS, paths)
        pd.testing.assert_frame_equal(
            result, frame.sort_values(list(tables.POSITIONS.key), ignore_index=True), check_dtype=False
        )
    except InputError as error:
        message = str(error)
    assert message == expected(frame, paths)
    assert (message is None) == (fault == "none")


def test_keys_that_share_a_hash_are_no_duplicates(tmp_path, monkeypatch):
    """A hash that knows ten values only: what is there twice is still found, and nothing else."""
    whole = consistency.Consistency._hash
    monkeypatch.setattr(consistency.Consistency, "_hash", lambda self, chunk: whole(self, chunk) % np.uint64(10))
    frame = draw(np.random.default_rng(0))
    assert len(tables.read(tables.POSITIONS, write_parts(frame, tmp_path))) == len(frame)
    frame = pd.concat([frame, frame[11:12]])
    paths = write_parts(frame, tmp_path)
    with pytest.raises(InputError) as error:
        tables.read(tables.POSITIONS, paths)
    assert str(error.value) == expected(frame, paths)
