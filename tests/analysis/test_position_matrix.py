"""Tables in pieces as matrices: the same numbers as one frame's, whichever way it is cut."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis import position_matrix
from emergence_train.analysis.position_matrix import position_matrices, read_matrices
from emergence_train.errors import InputError
from emergence_train.recorder import table_files, tables


def draw() -> pd.DataFrame:
    """Two runs, two splits, three steps; one checkpoint has fewer positions."""
    rng = np.random.default_rng(0)
    frame = pd.MultiIndex.from_product(
        [["b", "a"], [10, 2, 30], ["ood", "iid"], [1, 2, 3, 5, 8]], names=["run", "step", "split", "position"]
    ).to_frame(index=False)
    frame = frame.assign(params=10, tokens=frame["step"] * 64, count=rng.integers(1, 9, len(frame)), correct=0)
    frame["loss_sum"] = frame["count"] * rng.uniform(2, 3, len(frame))
    frame["loss_sq_sum"] = frame["loss_sum"] ** 2 / frame["count"] + rng.uniform(1, 2, len(frame))
    return frame[~((frame["run"] == "a") & (frame["step"] == 2) & (frame["position"] == 3))].sample(
        frac=1, random_state=0
    )


@pytest.mark.parametrize("chunk", [3, 1000])
def test_pieces_make_the_same_matrices(tmp_path, monkeypatch, chunk):
    """Against a pivot of the whole frame by pandas, bit for bit."""
    monkeypatch.setattr(table_files, "CHUNK", chunk)
    frame = draw()
    for number, part in enumerate((frame[:20], frame[20:])):
        tables.write(tables.POSITIONS, part, tmp_path / "positions" / f"{number}.parquet")
    matrices = read_matrices(tmp_path)
    whole = position_matrices(tables.read(tables.POSITIONS, tmp_path))
    assert [(m.keys["run"][0], m.keys["split"][0]) for m in matrices] == [(r, s) for r in "ab" for s in ("iid", "ood")]
    for matrix, same in zip(matrices, whole):
        rows = frame[(frame["run"] == matrix.keys["run"][0]) & (frame["split"] == matrix.keys["split"][0])]
        pivot = {
            name: rows.pivot(index="step", columns="position", values=name).fillna(0) for name in ("count", "loss_sum")
        }
        np.testing.assert_array_equal(matrix.count, pivot["count"].to_numpy(float))
        np.testing.assert_array_equal(matrix.loss, (pivot["loss_sum"] / pivot["count"].clip(lower=1)).to_numpy())
        assert matrix.keys["step"].tolist() == [2, 10, 30] and matrix.keys["tokens"].tolist() == [128, 640, 1920]
        pd.testing.assert_frame_equal(matrix.keys, same.keys)
        for name in ("position", "count", "loss", "variance", "mean_loss"):
            np.testing.assert_array_equal(getattr(matrix, name), getattr(same, name))


def test_steps_that_share_no_position_are_refused(monkeypatch):
    """A table of 200 rows would be a matrix of 40,000 cells."""
    monkeypatch.setattr(position_matrix, "SPARSE", (50, 1000))
    frame = draw().head(1).loc[lambda f: f.index.repeat(200)].assign(step=range(200), position=range(1, 201))
    with pytest.raises(InputError, match="200 steps and 200 positions, but only 200 rows; give each checkpoint"):
        position_matrices(frame)
