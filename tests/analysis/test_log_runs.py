"""Several runs in one table: parted where a column says so, else refused; none is a resumption of another."""

import itertools
import json
import random

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.runs import load
from emergence_train.errors import InputError

STEPS = list(range(10, 1000, 10))
KNOWN = {off: [(step, round(2.6 + off + 7.9 / (1 + step / 40) ** 0.55, 4)) for step in STEPS] for off in (0, 1, 2, 3)}
SIZES = {"70M": 70_000_000, "160M": 160_000_000, "410M": 410_000_000}


def written(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows), ""]))
    return path


def curves(path, **options):
    return {
        curve.run: (curve.params, [*zip(curve.frame["step"], curve.frame["loss"])])
        for curve in logs.read(path, LogOptions(**options))
    }


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
@pytest.mark.parametrize("column", ["params", "non_embedding_params", "Params (M)"])
@pytest.mark.parametrize("turn", [False, True])
def test_sizes_of_a_table_are_runs(name, column, turn, tmp_path):
    unit = 10**6 if "M" in column else 1
    rows = [{column: n // unit, "step": s, "loss": x} for k, n in enumerate(SIZES.values()) for s, x in KNOWN[k]]
    rows = sorted(rows, key=lambda row: row["step"]) if turn else rows
    assert curves(written(tmp_path / name, rows)) == {
        f"x-{size}": (params, KNOWN[k]) for k, (size, params) in enumerate(SIZES.items())
    }


def test_sizes_of_a_run_or_a_seed_are_parted_too(tmp_path):
    for column, values in (("run", ["base"]), ("seed", [0, 1])):
        rows = [
            {column: value, "params": n, "step": s, "loss": x}
            for value in values
            for k, n in enumerate(SIZES.values())
            for s, x in KNOWN[k]
        ]
        expected = {f"{v}-{size}": (n, KNOWN[k]) for v in values for k, (size, n) in enumerate(SIZES.items())}
        assert curves(written(tmp_path / "x.csv", rows)) == expected


def test_a_size_that_is_rounded_is_one(tmp_path):
    rows = [{"params": 70_000_000 if s < 500 else 70_426_624, "step": s, "loss": x} for s, x in KNOWN[0]]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (70_000_000, KNOWN[0])}


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize(
    "column, values",
    [
        ("lr", [1e-3, 3e-3]),
        ("size", ["70M", "410M"]),
        ("id", [17, 18, 19]),
        ("optimizer", ["adamw", "muon"]),
        ("N", [1e8, 2e8]),
    ],
)
def test_runs_that_a_column_tells_apart_are_refused(column, values, turn, tmp_path):
    rows = [{column: value, "step": s, "loss": x} for k, value in enumerate(values) for s, x in KNOWN[k]]
    path = written(tmp_path / "x.csv", sorted(rows, key=lambda row: row["step"]) if turn else rows)
    with pytest.raises(InputError, match=f"differ by '{column}' .*as several runs do; give --column run={column}, or"):
        curves(path)
    expected = {str(value): KNOWN[k] for k, value in enumerate(values)}
    assert {run: rows for run, (_, rows) in curves(path, columns={"run": column}).items()} == expected


@pytest.mark.parametrize("column", ["vram_gb", "tok_per_s", "gpu_util", "peak_memory", "step_time"])
def test_what_a_machine_measures_names_no_runs(column, tmp_path):
    """A trial of a few steps before the run, in one file: the run's rows count."""
    rows = [{"step": s, "loss": x + 1, column: 66.73} for s, x in KNOWN[0][:10]]
    rows += [{"step": s, "loss": x, column: 54.64} for s, x in KNOWN[0]]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (0, KNOWN[0])}


@pytest.mark.parametrize("column", ["start_time", "speedrun", "power_law", "memory_type", "time_embed"])
def test_parts_of_words_measure_no_machine(column, tmp_path):
    values = ("flat", "deep") if column == "memory_type" else (1.5, 2.5)
    rows = [{"step": s, "loss": x + k, column: value} for s, x in KNOWN[0] for k, value in enumerate(values)]
    with pytest.raises(InputError, match=f"rows of equal steps differ by '{column}'"):
        logs.read(written(tmp_path / "x.jsonl", rows), LogOptions())


@pytest.mark.parametrize(
    "often, seldom, tokens",
    [
        ({"_step": 3}, {"global_step": 1}, 0),
        ({"iter": 0}, {"step": 1}, 0),
        ({"step": 1, "num_tokens": 0}, {"consumed_tokens": 50}, 50 * 990),
        ({"step": 1, "train_tokens": 0}, {"total_tokens": 50}, 50 * 990),
    ],
)
def test_a_column_of_some_rows_is_no_summary(often, seldom, tokens, tmp_path):
    """The optimizer's step at each tenth micro-batch, tokens at each tenth row."""
    rows = [
        {name: factor * s or 500 for name, factor in often.items()}
        | {"loss": x}
        | ({name: factor * s for name, factor in seldom.items()} if s % 90 == 0 else {})
        for s, x in KNOWN[0]
    ]
    (curve,) = logs.read(written(tmp_path / "x.jsonl", rows), LogOptions())
    expected = KNOWN[0] if "step" in often else [(s, x) for s, x in KNOWN[0] if s % 90 == 0]
    assert [*zip(curve.frame["step"], curve.frame["loss"])] == expected
    assert curve.frame["tokens"].tolist()[-1] == tokens


@pytest.mark.parametrize("ends", [[990], [1, 990]])
def test_a_summary_s_rate_and_tokens_are_not_read(ends, tmp_path):
    rows = [{"iter": s, "loss": x} for s, x in KNOWN[0]]
    path = written(tmp_path / "x.jsonl", [*rows, *({"iterations": n, "total_tokens": n, "lr": 0.5} for n in ends)])
    (curve,) = logs.read(path, LogOptions())
    assert curve.notes == ["read: step from 'iter', loss from 'loss'"]


def test_samples_of_an_evaluation_are_not_named(tmp_path):
    path = written(tmp_path / "x.jsonl", [{"num_eval_samples": s, "loss": x} for s, x in KNOWN[0]])
    with pytest.raises(InputError, match="give --column step=NAME; where none counts steps"):
        logs.read(path, LogOptions())


def test_columns_of_a_summary_are_not_the_rows_own(tmp_path):
    """The end of a log of events has a likelier name of the steps, and tokens and a rate that no row has."""
    rows = [{"event": "train", "iter": s, "loss": x, "learning_rate": 0.1, "_step": 2 * s} for s, x in KNOWN[0]]
    path = written(tmp_path / "x.jsonl", [*rows, {"event": "end", "iterations": 990, "total_tokens": 10**6, "lr": 0.5}])
    (curve,) = logs.read(path, LogOptions())
    assert [*zip(curve.frame["step"], curve.frame["loss"])] == KNOWN[0] and {*curve.frame["lr"]} == {0.1}
    assert curve.notes == ["read: step from 'iter', loss from 'loss', lr from 'learning_rate'"]
    with pytest.raises(
        InputError, match="no row has both 'iterations' and 'loss', whose rows have event, iter, loss, lear"
    ):
        logs.read(path, LogOptions(columns={"step": "iterations"}))


def test_runs_of_one_row_each_are_refused(tmp_path):
    """W&B's table of runs: each has a name, a few rows of one step and its last loss."""
    rows = [{"run_name": f"size-{k}", "iter": 5000, "loss": x, "seed": s} for k in range(4) for s, x in KNOWN[k][:2]]
    with pytest.raises(InputError, match="has a row a run, which is no curve; name the log of one run"):
        load([written(tmp_path / "x.csv", rows)])


def test_runs_that_two_columns_tell_apart_are_refused(tmp_path):
    rows = [
        {"config": {"width": w, "depth": d}, "step": s, "loss": x}
        for k, (w, d) in enumerate([(128, 2), (128, 4), (256, 2), (256, 4)])
        for s, x in KNOWN[k]
    ]
    path = written(tmp_path / "x.jsonl", rows)
    with pytest.raises(InputError, match="differ by 'config/width', 'config/depth' .* a name in a column of its own"):
        curves(path)
    with pytest.raises(InputError, match="differ by 'config/depth' .* a name in a column of its own"):
        curves(path, columns={"run": "config/width"})


def test_a_restart_and_its_parts_are_no_runs(tmp_path):
    """Neither of an attempt that begins at a checkpoint, nor of micro-batches, nor of a table appended to another."""
    rows = [{"attempt": 0, "step": s, "loss": x} for s, x in KNOWN[1] if s <= 500]
    rows += [{"attempt": 1, "step": s, "loss": x} for s, x in KNOWN[0] if s > 400]
    expected = [*KNOWN[1][:40], *KNOWN[0][40:]]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (0, expected)}
    rows = [{"step": s, "micro_step": k, "loss": x + 3 - k} for s, x in KNOWN[0] for k in range(4)]
    (micro,) = curves(written(tmp_path / "x.csv", rows)).values()
    assert [s for s, _ in micro[1]] == STEPS
    rows = [{"step": s, "loss": x} for k in (1, 0) for s, x in KNOWN[k]]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (0, KNOWN[0])}


@pytest.mark.parametrize("column", ["gpu", "node", "worker_id", "rank"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
@pytest.mark.parametrize(
    "by, runs", [("run", ["a", "b"]), ("run_name", ["a", "b"]), ("seed", [0, 1]), ("params", [70e6, 160e6])]
)
def test_runs_each_on_a_rank_of_their_own_all_stay(column, name, by, runs, tmp_path):
    rows = [{by: run, column: k, "step": s, "loss": x} for k, run in enumerate(runs) for s, x in KNOWN[k]]
    known = curves(written(tmp_path / name, rows))
    assert [rows for _, rows in known.values()] == [KNOWN[0], KNOWN[1]]


@pytest.mark.parametrize("end", [500, 900, 960])
@pytest.mark.parametrize("column, places", [("node", ["n1", "n2"]), ("process_id", [3100, 4711]), ("host", ["a", "b"])])
def test_a_run_that_began_anew_elsewhere_is_one(column, places, end, tmp_path):
    rows = [{column: places[0], "step": s, "loss": x} for s, x in KNOWN[1] if s <= end]
    rows += [{column: places[1], "step": s, "loss": x} for s, x in KNOWN[0]]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (0, KNOWN[0])}
    assert curves(tmp_path / "x.csv", columns={"run": "-"}) == {"x": (0, KNOWN[0])}
    text = "".join(f"{row[column]}: step {row['step']} loss {row['loss']}\n" for row in rows)
    (tmp_path / "x.log").write_text(text)
    assert curves(tmp_path / "x.log") == {"x": (0, KNOWN[0])}


@pytest.mark.parametrize("values", [5, 16, 40])
def test_what_fluctuates_names_no_run(values, tmp_path):
    noise = itertools.cycle(random.Random(3).sample(range(4100, 4300), values))
    steps = [*KNOWN[1][:15], *KNOWN[0]]
    rows = [{"step": s, "loss": x, "mfu": next(noise) / 100} for s, x in steps]
    assert curves(written(tmp_path / "x.csv", rows)) == {"x": (0, KNOWN[0])}


def test_sizes_are_read_as_one_where_that_is_said(tmp_path):
    rows = [{"params": n, "step": s, "loss": x} for k, n in ((1, 70e6), (0, 160e6)) for s, x in KNOWN[k]]
    path = written(tmp_path / "x.csv", rows)
    assert curves(path, columns={"run": "-"}, params=5) == {"x": (5, KNOWN[0])}
    assert curves(path, params=5) == {"x-70M": (70_000_000, KNOWN[1]), "x-160M": (160_000_000, KNOWN[0])}
    (first, _) = logs.read(path, LogOptions())
    assert "a run for each size of 'params'; --column run=- reads all rows as one" in first.notes


def test_a_model_that_grows_is_one_run(tmp_path):
    rows = [{"params": 1_000_000 * (1 if s < 500 else 2), "step": s, "loss": x} for s, x in KNOWN[0]]
    assert curves(written(tmp_path / "x.csv", rows), run="a") == {"a": (1_000_000, KNOWN[0])}


def test_sizes_that_are_nearly_equal_have_names_of_their_own(tmp_path):
    sizes = {"124439808": 124_439_808, "124475904": 124_475_904, "350M": 350_000_000}
    rows = [{"params": n, "step": s, "loss": x} for k, n in enumerate(sizes.values()) for s, x in KNOWN[k]]
    expected = {f"x-{size}": (n, KNOWN[k]) for k, (size, n) in enumerate(sizes.items())}
    assert curves(written(tmp_path / "x.csv", rows)) == expected


RUNS_TABLE = {180: 5.1, 167: 3.8, 653: 3.2, 648: 3.1, 1293: 3.3, 456: 3.4, 689: 3.0, 685: 3.15}


@pytest.mark.parametrize("label", ["commit", "Name", "run_id", ""])
def test_a_table_with_a_row_a_run_is_refused(label, tmp_path):
    """A label differs in each row, or the steps fall again and again; --column run=- reads it nevertheless."""
    rows = [f"a{k}9f,{step},{loss}" for k, (step, loss) in enumerate(RUNS_TABLE.items())]
    (tmp_path / "x.csv").write_text("\n".join([f"{label or 'status'},num_steps,loss", *rows]) + "\n")
    beside = f"and '{label}' differs in each, " if label else "as"
    with pytest.raises(InputError, match=rf"the steps fall at 4 of 8 rows \(the first is row 2\).*{beside}.*run=-"):
        logs.read(tmp_path / "x.csv", LogOptions())
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions(columns={"run": "-"}))
    assert dict(zip(curve.frame["step"], curve.frame["loss"])) == RUNS_TABLE


@pytest.mark.parametrize("order", ["by loss", "resumed", "newest", "crashing"])
def test_rows_of_one_run_in_another_order_are_read(order, tmp_path):
    """Checkpoints in the order of a score, a run that was resumed, one with the newest row first, one that crashed often."""
    steps = {
        "by loss": random.Random(0).sample(range(1000, 24000, 1000), 23),
        "resumed": [*range(100, 1300, 100), *range(1050, 2450, 100)],
        "newest": [*range(2000, 0, -100)],
        "crashing": [100 * step for k in range(6) for step in range(k + 1, k + 5)],
    }[order]
    rows = [f"ckpt-{k}-{step},{step},{2 + step**-0.3:.6f}" for k, step in enumerate(steps)]
    (tmp_path / "x.csv").write_text("\n".join([f"{'file' if order == 'crashing' else 'name'},step,loss", *rows]) + "\n")
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert {*curve.frame["step"]} >= {*steps} - {1100, 1200}
    np.testing.assert_allclose(curve.frame["loss"], 2 + curve.frame["step"] ** -0.3, atol=1e-6)


WIDENING = {
    "powers, then even": [*(2**k for k in range(7)), *range(100, 1001, 100)],
    "1, 2, 5": [d * 10**k for k in range(4) for d in (1, 2, 5)],
    "even": [*range(100, 2001, 100)],
    "geometric": sorted({round(1000 ** (k / 40)) for k in range(41)}),
}


@pytest.mark.parametrize("label", ["", "name,checkpoint-{}", "model,pythia-70m-step{:07d}", "checkpoint,run{}"])
@pytest.mark.parametrize("order", ["shuffled", "by name", "swapped"])
@pytest.mark.parametrize("name", WIDENING)
def test_rows_ever_further_apart_are_one_run_in_any_order(name, order, label, tmp_path):
    """Checkpoints as `ls` or writers that overtake one another order them, named by their step."""
    steps = list(WIDENING[name])
    {"shuffled": random.Random(1).shuffle, "by name": lambda s: s.sort(key=str), "swapped": swap}[order](steps)
    column, _, form = (label or "size,x").partition(",")
    rows = [f"{form.format(step)},{step},{2 + step**-0.3:.6f}" for step in steps]
    (tmp_path / "x.csv").write_text("\n".join([f"{column},step,loss", *rows]) + "\n")
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["step"].tolist() == sorted(steps)
    np.testing.assert_allclose(curve.frame["loss"], 2 + curve.frame["step"] ** -0.3, atol=1e-6)


def swap(steps: list[int]) -> None:
    """Each second one before the one it follows."""
    for k in range(0, len(steps) - 1, 2):
        steps[k], steps[k + 1] = steps[k + 1], steps[k]


@pytest.mark.parametrize("form", ["{}-steps", "run {}"])
def test_runs_named_by_their_steps_or_budgets_are_refused(form, tmp_path):
    """Lengths that lie as they fell out, and doubled budgets of runs with names of their own."""
    budgets = {1000: 3.6, 500: 4.1, 4000: 3.1, 2000: 3.3, 16000: 2.7, 8000: 2.9}
    for table, named in ((RUNS_TABLE, form), (budgets, "seed-{0:x}-a")):
        rows = [f"{named.format(step)},{step},{loss}" for step, loss in table.items()]
        (tmp_path / "x.csv").write_text("\n".join(["name,step,loss", *rows]) + "\n")
        with pytest.raises(InputError, match="as in a table with a row a run"):
            logs.read(tmp_path / "x.csv", LogOptions())


def relogged(rows, how):
    """Rows of runs of which the last step, a quarter of one run, or a part of each came again."""
    if how == "a row":
        return [*rows, rows[-1]]
    if how == "a run":
        return [*rows, *rows[-len(STEPS) // 4 :]]
    return [row for k in range(0, len(rows), len(STEPS)) for row in rows[k : k + 60] + rows[k + 50 : k + len(STEPS)]]


@pytest.mark.parametrize("how", ["a row", "a run", "each"])
@pytest.mark.parametrize("names", [("optimizer",), ("width", "depth")])
def test_rows_that_come_again_make_no_run_of_several(names, how, tmp_path):
    values = [("adamw", "deep"), ("muon", "deep"), ("adamw", "flat")][: 3 if names[1:] else 2]
    rows = [dict(zip(names, own)) | {"step": s, "loss": x} for k, own in enumerate(values) for s, x in KNOWN[k]]
    path = written(tmp_path / "x.jsonl", relogged(rows, how))
    with pytest.raises(InputError, match=f"rows of equal steps differ by {', '.join(map(repr, names))} .*several runs"):
        curves(path)
    if not names[1:]:
        expected = {own[0]: KNOWN[k] for k, own in enumerate(values)}
        assert {run: rows for run, (_, rows) in curves(path, columns={"run": names[0]}).items()} == expected


@pytest.mark.parametrize("again", [1, 4, 10])
def test_a_resumption_beside_a_setting_is_one_run(again, tmp_path):
    """A column of two values from the first row on, of which a step that is trained again has the same."""
    rows = [{"step": s, "loss": x, "clipped": s % 20 == 0} for s, x in KNOWN[0]]
    path = written(tmp_path / "x.jsonl", [*rows[:50], *rows[50 - again :]])
    assert curves(path) == {"x": (0, KNOWN[0])}


@pytest.mark.parametrize("unit, names", [(1, ["70M", "160M"]), (1000, None), ("", ["small", "large"])])
def test_model_sizes_part_runs_where_they_are_counts(unit, names, tmp_path):
    """Others, as a width, name runs that the file is refused for."""
    sizes = names if unit == "" else [70_000_000 // unit**2, 160_000_000 // unit**2]
    rows = [{"model_size": n, "step": s, "loss": x} for k, n in enumerate(sizes) for s, x in KNOWN[k]]
    path = written(tmp_path / "x.csv", [*rows, rows[-1]])
    if unit == 1:
        assert curves(path) == {f"x-{name}": (n, KNOWN[k]) for k, (name, n) in enumerate(zip(names, sizes))}
        return
    with pytest.raises(InputError, match="differ by 'model_size' .*give --column run=model_size"):
        curves(path)


def test_sizes_that_are_alike_are_refused(tmp_path):
    rows = [{"params": n, "step": s, "loss": x} for k, n in enumerate((100e6, 101e6)) for s, x in KNOWN[k]]
    with pytest.raises(InputError, match="differ by 'params' .*give --column run=params"):
        curves(written(tmp_path / "x.csv", rows))
