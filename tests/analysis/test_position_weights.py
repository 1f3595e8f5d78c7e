"""Position weighting study: pairing by seed, regions, intervals."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from result_tables import write_weighted_run

from emergence_train import cli
from emergence_train.analysis.position_weights import compare_position_weights, regions
from emergence_train.analysis.results import as_json
from emergence_train.errors import InputError
from emergence_train.recorder import tables


def test_regions_are_ten_eighty_ten():
    assert regions(1024) == {"all": (1, 1024), "head": (1, 102), "body": (103, 922), "tail": (923, 1024)}


def test_differences_are_paired_by_seed(tmp_path):
    paths = [write_weighted_run(tmp_path, seed, {}, 0.0) for seed in (1, 2, 3)]
    paths += [
        write_weighted_run(tmp_path, seed, {"tail": 0.5}, shift) for seed, shift in ((1, 0.10), (2, 0.12), (3, 0.14))
    ]
    table = pd.DataFrame(as_json(compare_position_weights(paths).rows)).set_index("region")
    assert set(table["variant"]) == {"tail x0.5"}
    assert table.loc["tail", "difference"] == pytest.approx(0.12)
    # by hand: t(0.975, 2) = 4.3027, standard error 0.02 / sqrt 3
    assert table.loc["tail", "high95"] - 0.12 == pytest.approx(4.3027 * 0.02 / np.sqrt(3), rel=1e-4)
    assert table.loc["head", "difference"] == pytest.approx(0, abs=1e-12)
    assert table.loc["all", "difference"] == pytest.approx(0.012)
    assert table.loc["tail", "p"] < 0.05


def test_analyze_weights_writes_numbers_and_a_figure(tmp_path, capsys):
    paths = [write_weighted_run(tmp_path, seed, {}, 0.0) for seed in (1, 2)] + [
        write_weighted_run(tmp_path, seed, {"tail": 0.5}, 0.1) for seed in (1, 2)
    ]
    assert cli.main(["analyze", "weights", *map(str, paths), "--out", str(tmp_path / "out"), "--pdf"]) == 0
    assert "tail x0.5" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    tail = [row for row in result["rows"] if row["region"] == "tail"]
    assert tail and all(row["difference"] == pytest.approx(0.1) and row["seeds"] == 2 for row in tail)
    assert result["figures"] == [f"position_weights.{suffix}" for suffix in ("png", "svg", "pdf")]
    assert all((tmp_path / "out" / name).stat().st_size > 1000 for name in result["figures"])
    assert cli.main(["analyze", "weights", str(paths[0])]) == 2


def test_a_split_that_a_run_has_not_is_left_out(tmp_path, capsys):
    """Whichever run it is and in whichever order they are named; of two seeds one pair is left."""
    runs = [write_weighted_run(tmp_path, seed, {}, 0.0) for seed in (1, 2)]
    runs += [write_weighted_run(tmp_path, seed, {"tail": 0.5}, 0.1 * seed) for seed in (1, 2)]
    for run in runs:
        frame = tables.read(tables.POSITIONS, run)
        both = pd.concat([frame, frame.assign(split="other")])
        tables.write(tables.POSITIONS, both, run / "positions" / "a.parquet")
    uniform = runs[0]
    frame = tables.read(tables.POSITIONS, uniform)
    tables.write(tables.POSITIONS, frame[frame["split"] != "other"], uniform / "positions" / "a.parquet")
    for order in (runs, runs[::-1]):
        result = compare_position_weights(order)
        tail = {row.split: (row.seeds, row.difference) for row in result.rows if row.region == "tail"}
        assert tail["other"] == (1, pytest.approx(0.2)) and tail["iid"] == (2, pytest.approx(0.15))
        assert result.notes == (f"{uniform}: has no losses of other at step {result.rows[0].step}; left out there",)
    assert cli.main(["analyze", "weights", *map(str, runs)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("left out there")
    frame = tables.read(tables.POSITIONS, runs[2])
    tables.write(tables.POSITIONS, frame[frame["split"] == "other"], runs[2] / "positions" / "a.parquet")
    with pytest.raises(InputError, match="no pair of runs has a split in common; train both"):
        compare_position_weights([runs[0], runs[2]])


def test_one_seed_has_no_interval(tmp_path):
    rows = compare_position_weights(
        [write_weighted_run(tmp_path, 1, {}, 0.0), write_weighted_run(tmp_path, 1, {"head": 0.5}, 0.1)]
    ).rows
    assert {(row.seeds, row.low95, row.high95, row.p) for row in rows} == {(1, None, None, None)}


def variant_rows(runs: list) -> dict:
    """{variant: (seeds, difference) over all positions}; a shift of the tail by s is one of s / 10 over all."""
    rows = compare_position_weights(runs).rows
    return {row.variant: (row.seeds, pytest.approx(row.difference)) for row in rows if row.region == "all"}


def weighted(folder, name: str, seed: int, weights: dict, shift: float, **config):
    run = write_weighted_run(folder / name, seed, weights, shift)
    settings = {"seed": seed, "training": {"position_weights": weights}} | config
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    return run.rename(folder / name / name)


def test_each_vector_is_a_variant(tmp_path):
    """Of one seed and of two; A lowers the loss by 0.05, B raises it, and their mean of 0 is of neither."""
    uniform = [write_weighted_run(tmp_path, seed, {}, 0.0) for seed in (1, 2)]
    ones, zeros = [1.0] * 50 + [0.0] * 50, [0.0] * 50 + [1.0] * 50
    a = weighted(tmp_path, "A", 1, {"vector": ones}, -0.5)
    assert variant_rows([*uniform, a]) == {"vector": (1, -0.05)}
    for seed in (1, 2):
        b = weighted(tmp_path, f"B{seed}", seed, {"vector": zeros}, 0.5)
        assert variant_rows([*uniform, a, b]) == {"vector of A": (1, -0.05), f"vector of B{seed}": (1, 0.05)}
    again = weighted(tmp_path, "again", 2, {"vector": [2 * weight for weight in ones]}, -0.5)
    assert variant_rows([*uniform, a, again]) == {"vector": (2, -0.05)}


def test_each_configuration_is_a_variant(tmp_path):
    """Pairs of two sizes have no common mean; pairs that differ in seeds alone have."""
    runs = []
    for seed, width, shift in ((1, 64, 0.1), (2, 512, -0.1), (3, 512, -0.3)):
        config = {"model": {"width": width}, "data": {"seed": 10 + seed}}
        runs += [weighted(tmp_path, f"u{seed}", seed, {}, 0.0, **config)]
        runs += [weighted(tmp_path, f"h{seed}", seed, {"head": 0.5}, shift, **config)]
    assert variant_rows(runs) == {"head x0.5 of h1": (1, 0.01), "head x0.5 of h2": (2, -0.02)}
    note = f"{runs[3]}: differs from {runs[1]} in model.width, and is a variant of its own"
    assert compare_position_weights(runs).notes == (note,)


@pytest.mark.parametrize(
    ("weights", "variant"),
    [
        ({"head": 0.5, "body": 0.5, "tail": 0.5}, "uniform"),
        ({"vector": [1.0] * 100}, "uniform"),
        ({"vector": [0.5] * 10 + [1.0] * 90}, "head x0.5"),
        ({"head": 0.25, "body": 0.5, "tail": 0.5}, "head x0.5"),
        ({"head": 0.15, "body": 0.3, "tail": 0.3}, "head x0.5"),
        ({"vector": [0.35] * 10 + [0.7] * 90}, "head x0.5"),
        ({"head": 0.5000001}, "head x0.5000001"),
    ],
)
def test_weights_of_one_effect_are_one_variant(tmp_path, weights, variant):
    """The loss is a weighted mean, so a factor of all weights has no effect; beside a uniform run and one of head x0.5."""
    runs = [write_weighted_run(tmp_path, seed, {}, 0.0) for seed in (1, 2)] + [
        write_weighted_run(tmp_path, seed, {"head": 0.5}, 0.1) for seed in (1, 2)
    ]
    other = weighted(tmp_path, "other", 2, weights, 0.1)
    runs = [
        run for run in runs if not (variant == "uniform" and run == runs[1] or variant != "uniform" and run == runs[3])
    ]
    rows = variant_rows([*runs, other])
    if variant == "uniform":
        assert rows == {"head x0.5": (2, 0.005)}
    else:
        assert rows == (
            {variant: (2, 0.01)} if variant == "head x0.5" else {"head x0.5": (1, 0.01), variant: (1, 0.01)}
        )


def test_runs_that_do_not_compare_are_refused(tmp_path):
    uniform, other = write_weighted_run(tmp_path, 1, {}, 0.0), write_weighted_run(tmp_path, 2, {"body": 0.5}, 0.1)
    with pytest.raises(InputError, match=r"shares its seed .*body x0.5 of seed 2, uniform of seed 1"):
        compare_position_weights([uniform, other])
    with pytest.raises(InputError, match="of seed 2, uniform of seed none"):
        compare_position_weights([other])
    with pytest.raises(InputError, match="all runs have uniform weights"):
        compare_position_weights([uniform])
    larger = write_weighted_run(tmp_path / "larger", 1, {}, 0.0)
    for run, width in ((uniform, 64), (larger, 128)):
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump(config | {"model": {"width": width}}))
    with pytest.raises(
        InputError, match=f"a second run .* beside {uniform}, from which it differs in model.width; give one"
    ):
        compare_position_weights([uniform, larger])
    with pytest.raises(InputError, match="is this a run directory"):
        compare_position_weights([tmp_path])


def test_runs_that_differ_in_more_than_weights_are_refused(tmp_path):
    """What may change when a run resumes does not count: it changes no loss by more than rounding."""
    uniform, other = write_weighted_run(tmp_path, 1, {}, 0.0), write_weighted_run(tmp_path, 1, {"tail": 0.5}, 0.1)
    weights = {"position_weights": {"tail": 0.5}}

    def compared(**changed) -> None:
        for run, training in (
            (uniform, {"schedule": {"lr": 1e-3}}),
            (other, {"schedule": {"lr": 1e-3}} | weights | changed),
        ):
            (run / "config.yaml").write_text(yaml.safe_dump({"seed": 1, "name": run.name, "training": training}))
        compare_position_weights([uniform, other])

    compared(zero_stage=1, micro_batch=2, threads=3)
    with pytest.raises(InputError, match="differs from .* in training.schedule.lr beside its weights"):
        compared(schedule={"lr": 1e-2})
    (other / "parent.json").write_text(json.dumps({"path": "/runs/elsewhere", "step": 8}))
    with pytest.raises(InputError, match="differs from .* in --from beside its weights"):
        compared()
    (other / "parent.json").unlink()
    for run, digest in ((uniform, "d1"), (other, "d2")):
        (run / "data.json").write_text(json.dumps({"data": digest}))
    with pytest.raises(InputError, match="differs from .* in the prepared data beside its weights"):
        compared()


def test_seeds_of_other_data_or_parents_are_other_variants(tmp_path):
    """Two seeds, whose pairs began from runs of one step: of the same configuration or not, on the same data or not."""

    def names(widths: list[int], digests: list[str]) -> set[str]:
        place = tmp_path / f"{widths}-{digests}"
        runs = []
        for seed, width, digest in zip((1, 2), widths, digests):
            parent = place / f"p{seed}"
            parent.mkdir(parents=True)
            (parent / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "model": {"width": width}}))
            for weights in ({}, {"head": 0.5}):
                run = write_weighted_run(place, seed, weights, 0.1)
                (run / "parent.json").write_text(json.dumps({"path": str(parent), "step": 100}))
                (run / "data.json").write_text(json.dumps({"data": digest}))
                runs.append(run)
        return {row.variant for row in compare_position_weights(runs).rows}

    assert names([64, 64], ["d", "d"]) == {"head x0.5"}
    assert len(names([64, 128], ["d", "d"])) == len(names([64, 64], ["d", "e"])) == 2
