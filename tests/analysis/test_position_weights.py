"""Position weighting study: pairing by seed, regions, intervals."""

import json

import numpy as np
import pytest
import yaml

from emergence_train import cli
from emergence_train.analysis.position_weights import compare_position_weights, regions
from emergence_train.analysis.temporal import simulate
from emergence_train.errors import InputError
from emergence_train.recorder import tables


def run(folder, seed, weights, shift):
    """A run whose tail losses differ from the uniform run's of the same seed by `shift`."""
    path = folder / f"{'-'.join(weights) or 'uniform'}-{seed}"
    frame = simulate.positions(np.random.default_rng(seed), checkpoints=3, length=100, run=path.name)[0]
    tail = frame["position"] > 90
    mean = frame["loss_sum"] / frame["count"]
    frame.loc[tail, "loss_sum"] += shift * frame["count"]
    frame.loc[tail, "loss_sq_sum"] += (2 * mean * shift + shift**2) * frame["count"]
    (path / "positions").mkdir(parents=True)
    tables.write(tables.POSITIONS, frame, path / "positions" / "a.parquet")
    (path / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "training": {"position_weights": weights}}))
    return path


def test_regions_are_ten_eighty_ten():
    assert regions(1024) == {"all": (1, 1024), "head": (1, 102), "body": (103, 922), "tail": (923, 1024)}


def test_differences_are_paired_by_seed(tmp_path):
    paths = [run(tmp_path, seed, {}, 0.0) for seed in (1, 2, 3)]
    paths += [run(tmp_path, seed, {"tail": 0.5}, shift) for seed, shift in ((1, 0.10), (2, 0.12), (3, 0.14))]
    table = compare_position_weights(paths).set_index("region")
    assert set(table["variant"]) == {"tail x0.5"}
    assert table.loc["tail", "difference"] == pytest.approx(0.12)
    # by hand: t(0.975, 2) = 4.3027, standard error 0.02 / sqrt 3
    assert table.loc["tail", "high95"] - 0.12 == pytest.approx(4.3027 * 0.02 / np.sqrt(3), rel=1e-4)
    assert table.loc["head", "difference"] == pytest.approx(0, abs=1e-12)
    assert table.loc["all", "difference"] == pytest.approx(0.012)
    assert table.loc["tail", "p"] < 0.05


def test_the_verb_writes_numbers_and_a_figure(tmp_path, capsys):
    paths = [run(tmp_path, seed, {}, 0.0) for seed in (1, 2)] + [
        run(tmp_path, seed, {"tail": 0.5}, 0.1) for seed in (1, 2)
    ]
    assert cli.main(["analyze", "weights", *map(str, paths), "--out", str(tmp_path / "out")]) == 0
    assert "tail x0.5" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    tail = [row for row in result["rows"] if row["region"] == "tail"]
    assert tail and all(row["difference"] == pytest.approx(0.1) and row["seeds"] == 2 for row in tail)
    assert result["figures"] == [f"position_weights.{suffix}" for suffix in ("png", "svg", "pdf")]
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in result["figures"])
    assert cli.main(["analyze", "weights", str(paths[0])]) == 2


def test_one_seed_has_no_interval(tmp_path):
    table = compare_position_weights([run(tmp_path, 1, {}, 0.0), run(tmp_path, 1, {"head": 0.5}, 0.1)])
    assert table["low95"].isna().all() and (table["seeds"] == 1).all()


def test_what_cannot_be_compared(tmp_path):
    uniform, other = run(tmp_path, 1, {}, 0.0), run(tmp_path, 2, {"body": 0.5}, 0.1)
    with pytest.raises(InputError, match="shares its seed"):
        compare_position_weights([uniform, other])
    with pytest.raises(InputError, match="a second run"):
        compare_position_weights([uniform, uniform])
    with pytest.raises(InputError, match="is this a run directory"):
        compare_position_weights([tmp_path])
