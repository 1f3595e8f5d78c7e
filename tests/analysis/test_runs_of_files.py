"""Tables without a column of runs, a file a model: each a run, where they cannot be of one; and `--run` merges no models."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.scores import options_of, with_scores
from emergence_train.errors import InputError

PLAIN = {"format": "auto", "run": None, "params": [], "tokens_per_step": 1000, "columns": [], "loss": None}
STEPS = range(1000, 6000, 1000)


def read(paths, **options) -> tuple[pd.DataFrame, list[str]]:
    (table,), notes = with_scores(list(paths), options_of(**{**PLAIN, **options}))
    return table.frame, notes


def history(path, steps=STEPS, level=0.0, task="piqa_acc", **columns):
    path.parent.mkdir(exist_ok=True)
    rows = {"step": list(steps), "loss": [5 - step / 1e4 for step in steps]}
    rows[task] = [0.5 + level + step / 1e5 for step in steps]
    pd.DataFrame(rows | columns).to_csv(path, index=False)
    return path


def test_files_of_the_same_scores_are_a_run_each(tmp_path):
    """With its size from its name, as temporal reads their curves."""
    files = [history(tmp_path / f"{name}.csv", level=k / 10) for k, name in enumerate(["190M-10xC", "1B-10xC"])]
    frame, notes = read(files)
    assert frame.groupby("run")["params"].first().to_dict() == {"190M-10xC": 190_000_000, "1B-10xC": 1_000_000_000}
    for k, name in enumerate(["190M-10xC", "1B-10xC"]):
        own = frame[frame["run"] == name].sort_values("step")
        assert np.allclose(own["value"], [0.5 + k / 10 + step / 1e5 for step in STEPS])
    assert any(note.startswith("a run a file") and "190M-10xC, 1B-10xC" in note for note in notes)


def test_alternating_checkpoints_are_of_two_runs(tmp_path):
    files = [history(tmp_path / "a.csv", [1000, 3000, 5000]), history(tmp_path / "b.csv", [1500, 3500, 5500], 0.1)]
    frame, _ = read(files, params=["1e8"])
    assert frame.groupby("run")["step"].apply(list).to_dict() == {"a": [1000, 3000, 5000], "b": [1500, 3500, 5500]}


def test_files_of_one_name_are_called_by_their_directory(tmp_path):
    files = [history(tmp_path / name / "log.csv", level=k / 10) for k, name in enumerate(["70m", "160m"])]
    frame, _ = read(files)
    assert frame.groupby("run")["params"].first().to_dict() == {"70m/log": 70_000_000, "160m/log": 160_000_000}


def test_run_does_not_merge_models(tmp_path):
    """The message's remedy holds: without --run they are read."""
    files = [history(tmp_path / f"{name}.csv", level=k / 10) for k, name in enumerate(["small", "large"])]
    with pytest.raises(
        InputError, match=r"--run ladder: .*small.csv, .*large.csv have other values .* leave --run out"
    ):
        read(files, run="ladder", params=["1e8"])
    assert set(read(files, params=["small=1e8", "large=1e9"])[0]["params"]) == {10**8, 10**9}


@pytest.mark.parametrize(
    "second",
    [
        {"steps": [6000, 7000]},
        {"task": "sciq_acc"},
        {"steps": STEPS, "level": 0.0},
        {"steps": [5000, 6000, 7000, 8000, 9000], "level": 0.001},
    ],
    ids=["later", "another task", "a copy", "one step again"],
)
def test_run_joins_the_files_of_one_run(second, tmp_path):
    """Later checkpoints, other tasks, a copy, and a checkpoint that was scored again."""
    files = [history(tmp_path / "one.csv"), history(tmp_path / "two.csv", **second)]
    frame, _ = read(files, run="mine", params=["1e8"])
    assert set(frame["run"]) == {"mine"}
    wanted = {(step, "piqa") for step in STEPS} | {
        (step, second.get("task", "piqa_acc")[:-4]) for step in second.get("steps", STEPS)
    }
    assert set(zip(frame["step"], frame["task"])) == wanted
    with pytest.raises(InputError, match="run is not said by the results"):
        read(files, params=["1e8"])


def test_seeds_in_a_column_are_joined_by_run(tmp_path):
    """What tells rows apart by itself is no patchwork."""
    files = [
        history(tmp_path / f"{seed}.csv", level=seed / 100, seed=[seed] * 5, params=[10**8] * 5) for seed in (1, 2)
    ]
    frame, _ = read(files, run="m")
    assert set(frame["run"]) == {"m-seed1", "m-seed2"} and len(frame) == 10


def test_results_made_again_keep_their_run(tmp_path):
    """Files that name one run themselves may hold it twice: the later counts, as without --run."""
    files = [history(tmp_path / f"{k}.csv", level=k / 100, run=["m"] * 5) for k in (1, 2)]
    for run in (None, "m"):
        frame, notes = read(files, run=run, params=["1e8"])
        assert np.allclose(frame["value"], [0.52 + step / 1e5 for step in STEPS])
        assert any(note.startswith("5 scores are of a run, step, task and metric that come again") for note in notes)


@pytest.mark.parametrize("kind", ["three decimals", "half precision"])
def test_a_copy_of_other_precision_is_of_the_same_run(kind, tmp_path):
    first, second = history(tmp_path / "a.csv"), history(tmp_path / "b.csv")
    table = pd.read_csv(second)
    cells = table["piqa_acc"].round(3) if kind == "three decimals" else table["piqa_acc"].astype("float16")
    table.assign(piqa_acc=cells + 1e-4).to_csv(second, index=False)
    assert set(read([first, second], run="mine", params=["1e8"])[0]["run"]) == {"mine"}
    with pytest.raises(InputError, match="run is not said by the results"):
        read([first, second], params=["1e8"])


def test_a_resumed_run_scores_some_checkpoints_again(tmp_path):
    """Each file begins and ends later than the one before; as many scores again in files that do not are of two runs."""
    files = [
        history(tmp_path / "a.csv", range(1000, 8000, 1000)),
        history(tmp_path / "b.csv", range(6000, 13000, 1000), 0.01),
    ]
    assert len(read(files, run="mine", params=["1e8"])[0]) == 12
    with pytest.raises(InputError, match="run is not said by the results"):
        read(files, params=["1e8"])
    files[1] = history(tmp_path / "b.csv", [3000, 4000], 0.01)
    with pytest.raises(InputError, match="as several runs have"):
        read(files, run="mine", params=["1e8"])


@pytest.mark.parametrize("column", ["num_fewshot", "split"])
def test_what_tells_tasks_apart_makes_no_runs(column, tmp_path):
    """A file for each number of shots of one run."""
    files = [history(tmp_path / f"{k}.csv", level=k / 100, **{column: [k] * 5}) for k in (0, 5)]
    frame, _ = read(files, run="mine", params=["1e8"])
    assert frame["task"].nunique() == 2 and len(frame) == 10
    with pytest.raises(InputError, match="run is not said by the results"):
        read(files, params=["1e8"])


def test_a_column_of_tokens_hides_no_step_of_a_files_name(tmp_path):
    """Those of the whole run, or of the checkpoint."""
    files = [history(tmp_path / "m-70m" / f"step{step}.csv", [step], train_tokens=[10**9]) for step in STEPS]
    for file in files:
        pd.read_csv(file).drop(columns="step").to_csv(file, index=False)
    frame, _ = read(files, params=["1e8"])
    assert set(frame["step"]) == set(STEPS) and set(frame["run"]) == {"m-70m"}
    assert frame["tokens"].tolist() == [1000 * step for step in frame["step"]]


def test_planned_tokens_are_none_of_a_checkpoint(tmp_path):
    rows = {"params": [10**8] * 5, "train_tokens": [10**9] * 5}
    file = history(tmp_path / "a.csv", **rows)
    with pytest.raises(InputError, match="tokens is not said by the results"):
        read([file], run="m", tokens_per_step=None)
    assert any("'train_tokens' is not taken for tokens" in note for note in read([file], run="m")[1])
    seen = history(tmp_path / "b.csv", **rows | {"train_tokens": [7 * step for step in STEPS]})
    assert read([seen], run="m", tokens_per_step=None)[0]["tokens"].tolist() == [7 * step for step in STEPS]
