"""Scores in JSON as people write them: a row a score, or tasks and metrics nested, by file, line, checkpoint or model."""

import json

import pytest

from emergence_train.analysis.scores import ScoreOptions, holds_scores, with_scores
from emergence_train.errors import InputError
from emergence_train.recorder import tables

VALUES = {
    (step, task): round(0.25 + step / 10_000 + k / 10, 3)
    for step in (1000, 2000)
    for k, task in enumerate(("piqa", "x"))
}
ROWS = [{"model": "m-70m", "step": s, "task": t, "metric": "acc", "value": v} for (s, t), v in VALUES.items()]


def nested(step: int) -> dict:
    return {task: {"acc": value, "acc_stderr": 0.01} for (at, task), value in VALUES.items() if at == step}


def lines(objects) -> str:
    return "\n".join(map(json.dumps, objects)) + "\n"


CHECKPOINTS = [(step, nested(step)) for step in (1000, 2000)]
FILES = {
    "rows": {"x.json": json.dumps(ROWS)},
    "lines": {"x.jsonl": lines(ROWS)},
    "in a list": {"x.json": json.dumps({"made": "today", "model": "m-70m", "results": ROWS})},
    "metrics of a task": {
        "x.jsonl": lines(
            {"model": "m-70m", "step": s, "task": t, "metrics": {"acc": v}} for (s, t), v in VALUES.items()
        )
    },
    "a line a checkpoint": {"x.jsonl": lines({"run": "m-70m", "step": s, "results": n} for s, n in CHECKPOINTS)},
    "a file a checkpoint": {f"m-70m/step{s}.json": json.dumps(n) for s, n in CHECKPOINTS},
    "a directory a checkpoint": {f"m-70m/step_{s}/results.json": json.dumps({"results": n}) for s, n in CHECKPOINTS},
    "a key a checkpoint": {"x.json": json.dumps({f"step{s}": n for s, n in CHECKPOINTS})},
    "a number a checkpoint": {"x.json": json.dumps({s: n for s, n in CHECKPOINTS})},
    "an item a checkpoint": {
        "x.json": json.dumps(
            {
                "tokens": [10_000, 20_000],
                "checkpoints": [1000, 2000],
                "results": {
                    task: {"acc": [VALUES[s, task] for s in (1000, 2000)], "acc_stderr": [0.01, 0.01]}
                    for task in ("piqa", "x")
                },
            }
        )
    },
    "a model a key": {"x.json": json.dumps({f"m-70m-step{s}": n for s, n in CHECKPOINTS})},
}


@pytest.mark.parametrize("name", FILES)
def test_scores_in_json_are_read(name, tmp_path):
    for file, content in FILES[name].items():
        (tmp_path / "r" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "r" / file).write_text(content)
        assert holds_scores(tmp_path / "r" / file)
    (tmp_path / "loss.csv").write_text("step,loss\n500,3.5\n2500,2.5\n")
    unnamed = "checkpoint" in name and name.endswith("a checkpoint") and "x.json" in FILES[name]
    options = ScoreOptions(
        run="m-70m" if unnamed else None, params={"": 70}, tokens_per_step=10, loss=str(tmp_path / "loss.csv")
    )
    known, _ = with_scores([tmp_path / "r"], options)
    frame = tables.read(tables.EVALUATIONS, known)
    assert frame.set_index(["step", "task"])["value"].to_dict() == VALUES
    assert set(frame["run"]) == {"m-70m"} and set(frame["metric"]) == {"acc"}
    if '"acc_stderr"' in next(iter(FILES[name].values())):
        assert set(frame["stderr"]) == {0.01}


NO_SCORES = {
    "items.jsonl": lines({"doc_id": k, "metrics": {"acc": 1}} for k in range(3)),
    "log.jsonl": lines({"step": k, "loss": 5.0, "train/acc": 0.2, "mean_token_accuracy": 0.3} for k in range(3)),
    "log.csv": "step,loss,train/acc,val/accuracy,eval_mean_token_accuracy\n1,5,.2,.3,.4\n",
    "config.json": json.dumps({"model": {"layers": 2}, "lr": 0.1}),
}


@pytest.mark.parametrize("name", NO_SCORES)
def test_what_has_no_task_holds_no_scores(name, tmp_path):
    (tmp_path / name).write_text(NO_SCORES[name])
    assert not holds_scores(tmp_path / name)


WHOLE = json.dumps(
    {"results": {task: {"acc,none": 0.3, "alias": task} for task in ("piqa", "x")}, "configs": {}}, indent=1
)
REFUSED = {
    "cut.json": (WHOLE[: WHOLE.index("0.3") + 2], "is cut off at line 4; name a whole file"),
    "cut_in_text.json": (WHOLE[: WHOLE.index('"x"') + 2], "is cut off at line 7; name a whole file"),
    "broken.json": (WHOLE.replace(":", "=", 1), "is no JSON .* at line 2; name a whole file"),
    "cut.jsonl": (lines(ROWS)[:-20], "is cut off at line 4; name a whole file"),
    "icl.json": (
        '{"name": "m", "eval_metrics": {"icl": {"piqa": 0.6}}}',
        r"it has name, eval_metrics\); write an object a",
    ),
    "numbers.json": ("[1, 2]", "its JSON is not as a harness writes it; write an object a score"),
}


@pytest.mark.parametrize("options", [{}, {"run": "m", "params": {"": 70}}, {"format": "lm-eval"}])
@pytest.mark.parametrize("name", REFUSED)
def test_json_without_scores_says_what_is_wrong(name, options, tmp_path):
    content, says = REFUSED[name]
    (tmp_path / name).write_text(content)
    if "cut" not in name and "broken" not in name and "format" in options:
        says = "holds no results of lm-eval"
    with pytest.raises(InputError, match=says):
        with_scores([tmp_path / name], ScoreOptions(**options))


@pytest.mark.parametrize("options", [{}, {"format": "csv"}])
def test_a_directory_of_unknown_json_has_its_first_message(options, tmp_path):
    """Three levels down, beside what is no result; a run directory below, or a table, is left to their own reader."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "notes.md").write_text("DCLM's evaluations\n")
    for name in ("x.json", "y.json"):
        (tmp_path / "a" / "b" / name).write_text(REFUSED["icl.json"][0])
    with pytest.raises(InputError, match=r"b/x\.json: its JSON is not as a harness writes it \(it has name, eval_m"):
        with_scores([tmp_path], ScoreOptions(**options))
    (tmp_path / "a" / "run").mkdir()
    (tmp_path / "a" / "run" / "metrics.jsonl").write_text("{}\n")
    if not options:
        assert with_scores([tmp_path], ScoreOptions()) == ([tmp_path], [])


def test_the_layout_that_is_asked_for_is_read(tmp_path):
    """As the message writes it."""
    (tmp_path / "x.json").write_text('{"step": 1000, "task": "piqa", "metric": "acc", "value": 0.6}')
    (tmp_path / "step1000.json").write_text('{"piqa": {"acc": 0.6}}')
    for name in ("x.json", "step1000.json"):
        options = ScoreOptions(run="m", params={"": 70}, tokens_per_step=10)
        with pytest.raises(InputError, match="json: loss is not said by the results"):
            with_scores([tmp_path / name], options)
