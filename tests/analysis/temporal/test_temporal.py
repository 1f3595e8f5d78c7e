"""analyze temporal: the contract of its result, held-out rows, run directories, bad tables."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import yaml

from emergence_train.analysis import temporal
from emergence_train.analysis.outlook import planned_rates
from emergence_train.analysis.results import as_json
from emergence_train.analysis.runs import load
from emergence_train.analysis.temporal import investigate, simulate
from emergence_train.analysis.temporal.output import format_table, write
from emergence_train.errors import InputError
from emergence_train.recorder import tables

COLUMNS = list(tables.CURVES.columns)


def curve(kind="cosine", seed=0, rows=120, **changes) -> pd.DataFrame:
    return simulate.curve(np.random.default_rng(seed), kind, rows=rows)[0].assign(**changes)


def positions(kind="cosine", seed=0, checkpoints=40, length=64, **more) -> pd.DataFrame:
    return simulate.positions(np.random.default_rng(seed), kind, checkpoints=checkpoints, length=length, **more)[0]


def analyze_temporal(paths, **options) -> dict:
    """The content of result.json."""
    return as_json(temporal.analyze_temporal(paths, **options))


def written(frame: pd.DataFrame, tmp_path, name="table.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysed")
    table = pd.concat([positions(), positions(seed=1, split="ood")])
    tables.write(tables.POSITIONS, table, folder / "positions.parquet")
    written(curve(run="other"), folder, "curves.csv")
    paths = [folder / "positions.parquet", folder / "curves.csv"]
    return write(folder / "out", investigate(paths, fit_fraction=0.3)), folder / "out"


# What others read of result.json; more keys are welcome.
RUN_KEYS = {"run", "split", "fit_fraction", "fit_until_tokens", "selected", "forecast", "final", "models"}
FORECAST_KEYS = {"step", "tokens", "loss", "low95", "high95"}
MODEL_KEYS = {"name", "mse", "r2", "heldout_points"}


def test_result_json_has_the_keys_that_others_rely_on(analysed):
    held = json.loads((analysed[1] / "result.json").read_text())
    assert held.keys() >= {"runs", "skipped", "ranking", "prior", "units", "figures"}
    for run in held["runs"]:
        assert run.keys() >= RUN_KEYS
        assert run["final"].keys() >= FORECAST_KEYS - {"step"}
        assert all(point.keys() >= FORECAST_KEYS for point in run["forecast"])
        assert all(model.keys() >= MODEL_KEYS for model in run["models"])


def test_result_without_held_out_rows_has_no_keys_of_them(tmp_path):
    """A key without meaning is absent; a number that is unknown is null."""
    (run,) = analyze_temporal(written(positions(), tmp_path))["runs"]
    assert run["coverage"] is None and run["models"][0]["mse"] is None
    assert "actual" not in run["final"] and "mse_smooth" not in run["models"][0]
    assert not run["positions"].keys() & {"mse", "r2", "coverage", "held_out"}


def test_result_cannot_be_changed(analysed):
    with pytest.raises(dataclasses.FrozenInstanceError):
        analysed[0].runs[0].selected = "another"


def test_contract_of_the_result(analysed):
    result, out = as_json(analysed[0]), analysed[1]
    assert json.loads((out / "result.json").read_text()) == result
    assert [(run["run"], run["split"]) for run in result["runs"]] == [
        ("simulated", "iid"),
        ("simulated", "ood"),
        ("other", None),
    ]
    for run in result["runs"]:
        assert run["fit_fraction"] == 0.3
        assert 0 < run["fit_until_tokens"] <= 0.3 * 20000 * simulate.TOKENS_PER_STEP
        assert isinstance(run["selected"], str)
        assert run["selected"] == run["models"][0]["name"]
        last = run["fit_until_tokens"]
        for row in run["forecast"]:
            assert isinstance(row["step"], int)
            assert isinstance(row["tokens"], int)
            assert row["tokens"] > last
            last = row["tokens"]
            ends = [row[key] for key in ("low95", "low80", "low50", "loss", "high50", "high80", "high95")]
            assert ends == sorted(set(ends))
        assert run["final"]["tokens"] == 20000 * simulate.TOKENS_PER_STEP
        assert run["final"]["low95"] < run["final"]["loss"] < run["final"]["high95"]
        names = {model["name"] for model in run["models"]}
        assert {"power", "reciprocal", "logarithmic", "annealing", "multi-power", "paper (reconstructed)"} <= names
        for model in run["models"]:
            assert model["heldout_points"] == len(run["forecast"])
            assert np.isfinite(model["mse"]) and np.isfinite(model["r2"])
    selected = {model["name"]: model["mse"] for model in result["runs"][2]["models"]}
    forecast, actual = ([row[key] for row in result["runs"][2]["forecast"]] for key in ("loss", "actual"))
    assert selected[result["runs"][2]["selected"]] == pytest.approx(np.mean((np.array(forecast) - actual) ** 2))


def test_position_part_of_the_result(analysed):
    part = as_json(analysed[0])["runs"][0]["positions"]
    assert part["last_fit"]["status"] == "ok"
    assert set(part["laws"]) == {"a0", "a1", "a2"}
    assert [row["form"] for row in part["forms"]] == ["reciprocal", "power", "exponential"]
    assert part["final"][0]["position_low"] == 1
    assert part["final"][-1]["position_high"] == 64
    assert 0 < part["mse"] < 0.05
    assert part["coverage"]["95"] > 0.8


def test_files_and_printed_table(analysed):
    result, out = analysed
    for name in ("forecast", "models", "parameters", "position_forecast", "residuals", "forms"):
        table = pd.read_csv(out / f"{name}.csv")
        assert len(table) and list(table.columns[:2]) == ["run", "split"], name
    assert len(result.figures) == 2 * (4 + 4 + 1)
    for name in result.figures:
        assert (out / name).stat().st_size > 2000, name
    printed = format_table(result)
    assert "simulated [iid]" in printed and "power" in printed and "30% of the run" in printed


def test_the_held_out_part_touches_nothing(tmp_path):
    frame = curve()
    later = frame["step"] > 0.3 * frame["step"].max()
    spoilt = frame.assign(loss=np.where(later, 9.0 + np.random.default_rng(0).normal(size=len(frame)), frame["loss"]))
    first, second = (
        analyze_temporal(written(part, tmp_path, f"{k}.csv"), fit_fraction=0.3)["runs"][0]
        for k, part in enumerate((frame, spoilt))
    )
    for key in ("loss", "low95", "high95"):
        assert [row[key] for row in first["forecast"]] == [row[key] for row in second["forecast"]]
    assert first["weights"] == second["weights"]
    table = positions()
    later = table["step"] > 0.3 * 20000
    spoilt = table.copy()
    spoilt.loc[later, ["loss_sum"]] *= 2
    spoilt.loc[later, ["loss_sq_sum"]] *= 4
    first, second = (
        analyze_temporal(written(part, tmp_path, f"p{k}.csv"), fit_fraction=0.3)["runs"][0]
        for k, part in enumerate((table, spoilt))
    )
    for key in ("loss", "low95", "high95"):
        assert [row[key] for row in first["forecast"]] == [row[key] for row in second["forecast"]]
        assert [row[key] for row in first["positions"]["final"]] == [row[key] for row in second["positions"]["final"]]


def test_later_rates_count_as_the_plan(tmp_path):
    wsd, constant = curve("wsd"), curve("wsd")
    constant["lr"] = np.where(constant["step"] > 5000, constant["lr"].max(), constant["lr"])
    final = [
        analyze_temporal(written(part, tmp_path, f"{k}.csv"), fit_fraction=0.3)["runs"][0]["final"]["loss"]
        for k, part in enumerate((wsd, constant))
    ]
    assert final[1] - final[0] > 0.1  # the decay to come is worth about 0.2 nats


def run_directory(tmp_path, seen=0.4, kind="cosine"):
    """A run that has got as far as `seen` of its plan."""
    folder = tmp_path / "run"
    (folder / "positions").mkdir(parents=True)
    total = 20000 * simulate.TOKENS_PER_STEP
    schedule = {"kind": kind, "lr": 1e-3, "warmup_tokens": total // 100, "final_ratio": 0.1, "decay_tokens": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump({"training": {"tokens": total, "schedule": schedule}}))
    table = positions()
    tables.write(tables.POSITIONS, table[table["step"] <= seen * 20000], folder / "positions" / "a.parquet")
    lines = [{"kind": "run", "run": "simulated", "params": 10**6}]
    rows = curve(rows=400)
    for row in rows[rows["step"] <= seen * 20000].to_dict("records"):
        lines.append({"kind": "train", **{key: row[key] for key in ("step", "tokens", "lr", "loss")}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_run_that_has_not_ended_is_forecast_to_its_planned_end(tmp_path):
    result = analyze_temporal(run_directory(tmp_path))
    assert [run["split"] for run in result["runs"]] == ["iid", None]
    truth = simulate.curve(np.random.default_rng(0), "cosine")[1][-1]
    for run in result["runs"]:
        assert run["fit_fraction"] is None
        assert run["final"]["step"] == 20000
        assert run["final"]["tokens"] == 20000 * simulate.TOKENS_PER_STEP
        assert run["models"][0]["mse"] is None
        assert len(run["forecast"]) == 40
        assert not any("learning rate unknown" in note for note in run["notes"])
    assert abs(result["runs"][1]["final"]["loss"] - truth) < 0.06


def test_planned_rates_follow_the_configuration(tmp_path):
    path = tmp_path / "config.yaml"
    schedule = {
        "kind": "wsd",
        "lr": 2e-3,
        "warmup_tokens": 100,
        "final_ratio": 0.0,
        "decay_tokens": 200,
        "decay_shape": "sqrt",
    }
    path.write_text(yaml.safe_dump({"training": {"tokens": 1000, "schedule": schedule}}))
    table = planned_rates(path)
    for tokens, rate in ((0, 0), (50, 1e-3), (100, 2e-3), (800, 2e-3), (850, 1e-3), (1000, 0)):
        assert np.interp(tokens, *table.T) == pytest.approx(rate, abs=3e-5)
    path.write_text(yaml.safe_dump({"training": {"tokens": 1000, "schedule": {**schedule, "kind": "staircase"}}}))
    with pytest.raises(InputError, match="staircase"):
        planned_rates(path)
    path.write_text("just: text\n")
    assert planned_rates(path) is None


def test_planned_lr_argument(tmp_path):
    frame = curve("wsd")
    part = frame[frame["step"] <= 6000].drop(columns="lr")
    grid = np.linspace(0, 20000, 500)
    plan = np.c_[grid * simulate.TOKENS_PER_STEP, simulate.learning_rate("wsd", grid)]
    run = analyze_temporal(written(part, tmp_path), planned_lr=plan)["runs"][0]
    assert run["final"]["step"] == 20000
    assert run["final"]["curve_low95"] <= frame["loss"].iloc[-1] <= run["final"]["curve_high95"]
    with pytest.raises(InputError, match="planned_lr"):
        analyze_temporal(written(part, tmp_path), planned_lr=plan[::-1])


def test_ranking_of_several_runs(tmp_path):
    good = curve(run="good")
    bad = curve(run="bad", seed=1)
    bad["loss"] += 0.3
    result = temporal.analyze_temporal(written(pd.concat([bad, good]), tmp_path), fit_fraction=0.4)
    (ranking,) = result.ranking
    assert [place.run for place in ranking.order] == ["good", "bad"]
    assert ranking.probability > 0.9
    assert "1. good" in format_table(result)


def test_a_ranking_has_a_blank_behind_long_names(tmp_path):
    names = ["a" * 29, "b" * 30, "c" * 45]
    frames = [curve(run=name).assign(loss=lambda f, k=k: f["loss"] + k) for k, name in enumerate(names)]
    lines = format_table(temporal.analyze_temporal(written(pd.concat(frames), tmp_path), fit_fraction=0.5)).splitlines()
    ranked = [line.split() for line in lines[-3:]]
    assert [line[1] for line in ranked] == names and all(float(line[2]) > 0 for line in ranked)


def test_step_logs_of_30000_rows(tmp_path):
    frame = simulate.curve(np.random.default_rng(0), "cosine", rows=20000, noise=0.04)[0]
    run = analyze_temporal(written(frame, tmp_path), fit_fraction=0.2)["runs"][0]
    assert len(run["forecast"]) == 2000
    assert run["models"][0]["heldout_points"] > 15000
    rows, smooth = run["models"][0]["mse"], run["models"][0]["mse_smooth"]
    assert rows - smooth == pytest.approx(0.04**2, rel=0.1)  # the rows' noise is what averaging takes out
    assert run["coverage"]["95"] > 0.9


# ------------------------------------------------------------------------------------------------------- bad tables


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(loss=f["loss"].where(f.index != 7)), r"row 8, column 'loss'"),
        (lambda f: pd.concat([f, f.tail(1)]), "is listed twice"),
        (lambda f: f.assign(lr=-f["lr"]), "'lr'.*negative"),
        (lambda f: f.drop(columns="loss"), "no column was recognised as loss .* --column loss=NAME"),
        (lambda f: f.head(1), r"1 checkpoint\(s\)"),
        (lambda f: f.head(2), "not identified: nothing is observed beyond the warm-up"),
        (lambda f: f.head(0), "no rows"),
        (lambda f: f.assign(step=0).head(1), "no row after step 0"),
    ],
    ids=["nan", "duplicate", "negative rate", "column", "one row", "two rows", "empty", "only step 0"],
)
def test_bad_curves(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        analyze_temporal(written(change(curve()), tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.assign(count=-f["count"]), "'count'.*negative"),
        (lambda f: f.assign(loss_sq_sum=f["loss_sq_sum"] / 100), "loss_sq_sum"),
        (lambda f: f.assign(position=f["position"] - 1), "below 1"),
        (lambda f: pd.concat([f, f.head(3)]), "is listed twice"),
        (lambda f: f[f["step"] == f["step"].min()], r"1 checkpoint\(s\)"),
    ],
    ids=["negative count", "impossible squares", "position 0", "duplicate", "one checkpoint"],
)
def test_bad_positions(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        analyze_temporal(written(change(positions()), tmp_path))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_impossible_fractions(tmp_path, fraction):
    with pytest.raises(InputError, match="between 0 and 1"):
        analyze_temporal(written(curve(), tmp_path), fit_fraction=fraction)


def test_paths_that_are_no_tables(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        analyze_temporal(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no positions or curves"):
        analyze_temporal(tmp_path)
    with pytest.raises(InputError, match="given twice"):
        analyze_temporal([written(curve(), tmp_path), written(curve(), tmp_path, "again.csv")])
    with pytest.raises(InputError, match="no table given"):
        analyze_temporal([])


def test_what_is_too_short_is_left_out_with_its_reason(tmp_path):
    short = curve(run="short").head(2)
    result = temporal.analyze_temporal(written(pd.concat([curve(), short]), tmp_path))
    assert [run.run for run in result.runs] == ["simulated"]
    (left,) = result.skipped
    assert left.run == "short" and "not identified" in left.reason
    assert "left out: run 'short'" in format_table(result)


def test_unsorted_rows_are_sorted(tmp_path):
    frame = curve()
    mixed = frame.sample(frac=1, random_state=3)
    first, second = (analyze_temporal(written(part, tmp_path), fit_fraction=0.3)["runs"] for part in (frame, mixed))
    assert first == second


def test_zero_tokens_are_noted_and_steps_are_used(tmp_path):
    run = analyze_temporal(written(curve(tokens=0), tmp_path), fit_fraction=0.3)["runs"][0]
    assert any("counted in steps" in note for note in run["notes"])
    assert run["fit_until_step"] == 6000 or abs(run["fit_until_step"] - 6000) < 200
    assert run["final"]["tokens"] == 0


def test_missing_rate_is_noted(tmp_path):
    run = analyze_temporal(written(curve().drop(columns="lr"), tmp_path), fit_fraction=0.3)["runs"][0]
    assert any("learning rate" in note for note in run["notes"])
    assert run["final"]["low95"] <= run["final"]["actual"] <= run["final"]["high95"]


def test_positions_take_the_rate_from_a_curve_of_the_same_run(tmp_path):
    tables.write(tables.POSITIONS, positions(), tmp_path / "p.parquet")
    series = load([tmp_path / "p.parquet", written(curve(), tmp_path)])
    assert series[0].split == "iid"
    assert series[0].plan is not None and series[0].plan is series[1].plan


def test_step_zero_is_left_out(tmp_path):
    frame = pd.concat([curve().head(1).assign(step=0, tokens=0, loss=11.0, lr=0.0), curve()])
    series = load(written(frame, tmp_path))
    assert series[0].step[0] > 0


def test_an_early_run_without_position_structure_still_forecasts(tmp_path):
    table = positions(checkpoints=12)
    flat = table.groupby("step")["loss_sum"].transform("mean")
    table["loss_sq_sum"] += flat**2 / table["count"] - table["loss_sum"] ** 2 / table["count"]
    table["loss_sum"] = flat
    run = as_json(write(tmp_path / "out", investigate(written(table, tmp_path), fit_fraction=0.5)))["runs"][0]
    assert run["positions"]["identified"] is False and list(run["positions"]["laws"]) == ["a2"]
    assert any("not identified: the position law" in note for note in run["notes"])
    assert run["positions"]["last_fit"]["status"].startswith("not identified")
    assert np.isfinite(run["final"]["loss"])
