"""Scores of other items under one name: refused where they would be added, parted where they are analysed."""

import gzip
import json
import random

import pandas as pd
import pytest

from emergence_train import config as configs
from emergence_train.analysis.emergence.table import load
from emergence_train.errors import InputError
from emergence_train.evaluation import items, task_digest
from emergence_train.evaluation.offline import evaluate
from emergence_train.recorder import tables
from emergence_train.training.run import train

QUESTIONS = [
    {"context": f"the model {word}", "choices": [" a line", " of text", " xyz"], "answer": n % 3}
    for n, word in enumerate(("reads", "writes", "sees", "holds"))
]
OPEN = [{"context": f"{n} and", "answers": [str(n), "none"], "extract": "number"} for n in range(3)]
STEPS = [{"steps": QUESTIONS[:2]}, {"steps": QUESTIONS[2:]}]
ONE = [{"context": row["context"], "continuation": row["choices"][0]} for row in QUESTIONS]


STEADY = "training.schedule={kind: constant, lr: 1.0e-3}"  # may be extended


def silent(line):
    """No log."""


def digest_of(path, most=None):
    return task_digest.of_task(items.from_file("any", path, most))


def written(path, rows, **style):
    path.write_text("\n".join(json.dumps(row, **style) for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def trained(config_file):
    """A run with two checkpoints, at the steps 2 and 4."""
    changed = ["name=digests", "training.tokens=1024", "checkpoints.every_tokens=512"]
    return train(configs.load(config_file, [*changed, "checkpoints.save_state=every"]), silent)


@pytest.mark.parametrize("rows", [QUESTIONS, STEPS, ONE, [row | {"answers": [row["context"][:1]]} for row in OPEN]])
def test_a_rewritten_file_has_the_same_digest(tmp_path, rows):
    """Moved, compressed, in another order of lines and keys, with blank lines, escapes and keys of its own."""
    before = digest_of(written(tmp_path / "a.jsonl", rows))
    turned = [dict(reversed(row.items())) | {"source": "elsewhere"} for row in random.Random(1).sample(rows, len(rows))]
    text = "\r\n\r\n".join(json.dumps(row, indent=None, separators=(" ,", " : ")) for row in turned)
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "b.gz").write_bytes(gzip.compress(text.encode()))
    assert digest_of(tmp_path / "moved" / "b.gz") == before


def test_every_change_of_a_score_changes_the_digest(tmp_path):
    kinds = {
        "choices": QUESTIONS,
        "context": [QUESTIONS[0] | {"context": "a model reads"}, *QUESTIONS[1:]],
        "answer": [QUESTIONS[0] | {"answer": 1}, *QUESTIONS[1:]],
        "a choice": [QUESTIONS[0] | {"choices": [" a line", " of text", " xy"]}, *QUESTIONS[1:]],
        "fewer": QUESTIONS[:3],
        "repeated": [*QUESTIONS, QUESTIONS[0]],
        "one": ONE,
        "steps": STEPS,
        "number": [{"context": "q", "answers": ["3"], "extract": "number"}],
        "text": [{"context": "q", "answers": ["3"]}],
    }
    digests = {name: digest_of(written(tmp_path / "a.jsonl", rows)) for name, rows in kinds.items()}
    assert len(set(digests.values())) == len(kinds)
    assert digest_of(written(tmp_path / "a.jsonl", QUESTIONS), 3) == digests["fewer"]


def scores(run):
    """Accuracies of the task by step."""
    try:
        frame = tables.read(tables.EVALUATIONS, run)
    except InputError:
        return {}
    rows = frame[(frame["task"] == "mine") & (frame["metric"] == "acc")]
    return dict(zip(rows["step"], rows["items"]))


def test_an_edited_file_is_refused_until_all_is_scored_again(trained, tmp_path):
    """Both remedies: another name, and --replace at the first of the checkpoints that are scored again."""
    path = written(tmp_path / "mine.jsonl", QUESTIONS)
    for step in (2, 4):
        evaluate(trained, step, [f"mine={path}"], log=silent)
    written(path, QUESTIONS[:3])
    with pytest.raises(InputError) as error:
        evaluate(trained, 4, [f"mine={path}"], log=silent)
    says = str(error.value)
    assert f"step-0000000002.parquet: has scores of 'mine' on other items than {path} holds now" in says
    assert f"--tasks mine-2={path}" in says and "--replace" in says and "\n" not in says
    assert scores(trained) == {2: 4, 4: 4}
    evaluate(trained, 4, [f"mine-2={path}"], log=silent)
    evaluate(trained, 4, [f"mine={path}"], log=silent, replace=True)
    assert scores(trained) == {4: 3}
    evaluate(trained, 2, [f"mine={path}"], log=silent)
    assert scores(trained) == {2: 3, 4: 3}
    assert {"mine", "mine-2"} <= set(tables.read(tables.EVALUATIONS, trained)["task"])


def test_scores_without_a_digest_go_on(trained, tmp_path):
    """Tables of runs from before."""
    path = written(tmp_path / "old.jsonl", QUESTIONS)
    evaluate(trained, 2, [f"old={path}"], log=silent)
    table = trained / "evaluations" / "step-0000000002.parquet"
    frame = tables.read(tables.EVALUATIONS, table).drop(columns=["task_digest", "vocabulary"])
    tables.write(tables.EVALUATIONS, frame, table)
    evaluate(trained, 4, [f"old={written(path, QUESTIONS[:2])}"], log=silent)
    evaluate(trained, 2, [f"other={path}"], log=silent)
    frame = tables.read(tables.EVALUATIONS, table)
    assert set(frame["task_digest"][frame["task"] == "old"]) == {""}
    assert all(frame["task_digest"][frame["task"] == "other"])


def test_training_refuses_a_task_that_asks_anew(config_file, tmp_path):
    """A file that was edited before the run resumes, a seed, and a number of items; a name of their own is taken."""
    path = written(tmp_path / "mine.jsonl", QUESTIONS)

    def trained_for(tokens, *tasks):
        changed = [f"training.tokens={tokens}", "checkpoints.every_tokens=512", "name=resumed", STEADY]
        return train(configs.load(config_file, [*changed, f"tasks={json.dumps(tasks)}"]), silent)

    mine, copying = {"task": "mine", "file": str(path)}, {"task": "copying", "items": 4}
    trained_for(512, mine, copying)
    written(path, QUESTIONS[1:])
    with pytest.raises(
        InputError, match="has scores of 'mine' on other items .*jsonl holds now.*--tasks mine --replace`"
    ):
        trained_for(1024, mine, copying)
    with pytest.raises(
        InputError, match="jsonl holds now.*; restore its items and settings, or give it another `name`"
    ):
        trained_for(1024, mine | {"items": 3}, copying)
    written(path, QUESTIONS)
    for other in (copying | {"seed": 1}, copying | {"items": 5}):
        with pytest.raises(
            InputError,
            match="'copying' on other items than the task asks now.*restore its items and settings, or give it",
        ):
            trained_for(1024, mine, other)
    run = trained_for(1024, mine, copying, copying | {"seed": 1, "name": "more"})
    frame = tables.read(tables.EVALUATIONS, run)
    assert set(frame[frame["task"] == "mine"]["step"]) == {2, 4} and (frame["task_digest"] != "").all()
    assert frame.groupby("task")["task_digest"].nunique().to_dict() == {"copying": 1, "mine": 1, "more": 1}


def test_a_name_that_begins_as_anothers_is_its_own(config_file, tmp_path):
    """x/y is no row of x: a resume goes on, and --replace of x leaves the scores of x/y."""
    first, second = written(tmp_path / "a.jsonl", QUESTIONS), written(tmp_path / "b.jsonl", QUESTIONS[1:])
    tasks = [{"task": "x", "file": str(second)}, {"task": "x/y", "file": str(first)}]

    def trained_for(tokens):
        changed = [
            f"training.tokens={tokens}",
            "checkpoints.every_tokens=512",
            "name=xy",
            STEADY,
            f"tasks={json.dumps(tasks)}",
        ]
        return train(configs.load(config_file, [*changed, "checkpoints.save_state=every"]), silent)

    trained_for(512)
    run = trained_for(1024)
    evaluate(run, 4, [f"x={written(tmp_path / 'c.jsonl', QUESTIONS[2:])}"], log=silent, replace=True)
    frame = tables.read(tables.EVALUATIONS, run)
    assert set(zip(frame["task"], frame["step"])) == {("x/y", 2), ("x/y", 4), ("x", 4)}


def test_rows_of_a_tag_are_of_the_longest_name():
    digests = task_digest.Digests({"x": "1", "x/y": "2", "z": "3"}, frozenset({"x", "x/y"}))
    assert [digests.of(row) for row in ("x", "x/z", "x/y", "x/y/z", "z", "z/y", "xy")] == [
        "1",
        "1",
        "2",
        "2",
        "3",
        "",
        "",
    ]


def test_a_finished_run_takes_changed_tasks(config_file):
    """It goes on ending well, its tasks are kept, and what it says to score them is true."""
    over = ["name=done", "training.tokens=1024", "checkpoints.every_tokens=512", "checkpoints.save_state=every"]

    def started(items):
        lines = []
        tasks = f"tasks={json.dumps([{'task': 'copying', 'items': items}])}"
        return train(configs.load(config_file, [*over, tasks]), lines.append), lines[-1]

    started(4)
    run, line = started(5)
    says = f"but tasks copying are new or changed: score them with `emergence-train evaluate {run} --replace`, which removes"
    assert says in line and configs.load_run(run).tasks[0].items == 5
    evaluate(run, log=silent, replace=True)
    frame = tables.read(tables.EVALUATIONS, run)
    assert set(zip(frame["step"], frame["items"])) == {(4, 5)}


def test_replace_names_the_steps_of_unknown_items(trained, tmp_path):
    """Scores of before digests may be of the same items, so they stay, and it says so."""
    path = written(tmp_path / "old.jsonl", QUESTIONS)
    evaluate(trained, 2, [f"old={path}"], log=silent)
    table = trained / "evaluations" / "step-0000000002.parquet"
    frame = tables.read(tables.EVALUATIONS, table).drop(columns=["task_digest", "vocabulary"])
    tables.write(tables.EVALUATIONS, frame, table)
    lines = []
    evaluate(trained, 4, [f"old={path}"], log=lines.append, replace=True)
    says = "scores of old at step-0000000002 stay, on items that are not known; score those steps again too"
    assert [line for line in lines if says in line]
    assert set(tables.read(tables.EVALUATIONS, trained)["step"]) == {2, 4}
    evaluate(trained, 2, [f"old={path}"], log=lines.append, replace=True)
    assert sum("stay" in line for line in lines) == 1


def rows_of(run, digest, items):
    place = {"run": run, "params": 1000, "task": "mine", "metric": "acc", "stderr": 0.01, "chance": 0.5}
    each = [{"step": k, "tokens": 10 * k, "loss": 5 - k / 4, "value": 0.5 + k / 40} for k in range(1, 9)]
    more = {"items": items, "higher_is_better": True, "task_digest": digest}
    return pd.DataFrame([place | row | more for row in each])


def test_runs_scored_on_other_items_are_analysed_apart(tmp_path):
    """Two runs of one task's name; the same items, or unknown ones beside one known digest, are one task."""
    for number, (digests, wanted) in enumerate(
        [
            (("aaaaaaaa11", "bbbbbbbb22"), ["mine:aaaaaaaa", "mine:bbbbbbbb"]),
            (("aaaaaaaa11", "aaaaaaaa11"), ["mine"]),
            (("aaaaaaaa11", ""), ["mine"]),
            (("aaaaaaaa11", "aaaaaaaa12"), ["mine:aaaaaaaa11", "mine:aaaaaaaa12"]),
            (("aaaaaaaa11", "bbbbbbbb22", ""), ["mine:aaaaaaaa", "mine:bbbbbbbb", "mine:unknown"]),
        ]
    ):
        path = tmp_path / f"{number}.parquet"
        parts = [rows_of(f"run{k}", digest, 100 + k) for k, digest in enumerate(digests)]
        tables.write(tables.EVALUATIONS, pd.concat(parts), path, vocabulary="v")
        tasks, _, notes = load(path)
        assert [task.task for task in tasks] == wanted
        assert any("was scored on different items under one name" in note for note in notes) == (len(wanted) > 1)


def test_tasks_of_a_tag_are_parted_in_one_note(tmp_path):
    parts = [
        rows_of(f"run{k}", digest, 100).assign(task=name)
        for k, digest in enumerate("ab")
        for name in ("t/a", "t/b", "t/c", "t/d")
    ]
    tables.write(tables.EVALUATIONS, pd.concat(parts), tmp_path / "e.parquet", vocabulary="v")
    notes = [note for note in load(tmp_path / "e.parquet")[2] if "different items" in note]
    assert (
        len(notes) == 1
        and notes[0].startswith("tasks 't/a', 't/b', 't/c' and 1 more were scored")
        and "(a run0; b run1)" in notes[0]
    )
