"""evaluate on a saved checkpoint: tasks of the command line, and what a finished run says of tasks that it has not scored."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from emergence_train import config as configs
from emergence_train.config import TaskConfig
from emergence_train.data import tokenizer as tokenizers
from emergence_train.errors import InputError, RunError
from emergence_train.evaluation import offline
from emergence_train.evaluation.offline import chosen, evaluate
from emergence_train.evaluation.saved_model import load_model
from emergence_train.parallel import ranks
from emergence_train.training.run import train
from emergence_train.training.run_directory import other_tasks, write_config
from support import metrics

ITEMS = [
    {"context": "the model reads", "choices": [" a line", " of text", " xyz"], "answer": 1},
    {"context": "one two", "choices": [" three", " nine nine"], "answer": 0},
]


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


def test_items_of_a_file_are_scored_without_a_configuration(config_file, items):
    """The accuracy by hand: of each choice the sum of log p, token by token."""
    run = train(configs.load(config_file, ["training.tokens=512", "checkpoints.every_tokens=512"]), lambda line: None)
    result = evaluate(run, tasks=[f"mine={items}"], log=lambda line: None)
    rows = {row["metric"]: row for row in result["tasks"]}
    model = load_model(configs.load_run(run).model, run / "checkpoints" / "step-0000000002").eval()
    tokenizer = tokenizers.load_file(run / "tokenizer.json")
    right, probabilities = [], []
    for item in ITEMS:
        before = tokenizer.encode(item["context"]).ids
        sums = []
        for choice in item["choices"]:
            ids = tokenizer.encode(item["context"] + choice).ids
            log_p = model(tensor(ids[:-1])).detach()[0].double().log_softmax(-1)
            sums.append(sum(float(log_p[k - 1, ids[k]]) for k in range(len(before), len(ids))))
        right.append(int(np.argmax(sums)) == item["answer"])
        probabilities.append(np.exp(sums[item["answer"]]) / np.exp(sums).sum())
    assert rows["acc"]["task"] == "mine" and rows["acc"]["value"] == np.mean(right)
    assert rows["correct_choice_prob"]["value"] == pytest.approx(np.mean(probabilities), abs=1e-5)


def test_scores_that_cannot_be_written_are_not_lost(config_file, items, monkeypatch):
    """What a user may not write is refused before it is computed; where writing fails all the same, the scores are shown."""
    run, lines = train(configs.load(config_file, ["training.tokens=512", "checkpoints.every_tokens=512"]), print), []
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
        patch.setattr(offline, "measure", lambda *of: pytest.fail("is not computed"))
        with pytest.raises(InputError, match="evaluations: cannot be made or written.*choose another place .a copy"):
            evaluate(run, tasks=[f"mine={items}"], log=lines.append)
    monkeypatch.setattr(offline.evaluations, "add", lambda path, *of: failing(path))
    with pytest.raises(RunError, match="no space left"):
        evaluate(run, tasks=[f"mine={items}"], log=lines.append)
    assert len(lines) == 1 and "mine, acc: " in lines[0]


def failing(path):
    raise RunError(f"{path}: no space left on the disk")


def tensor(ids):
    import torch

    return torch.tensor([ids])


def test_tasks_of_the_command_line_are_understood(tmp_path):
    own = [TaskConfig(task="copying", items=3), TaskConfig(task="lm-eval/a", shots=1)]
    steps = TaskConfig(task="cipher", steps=5)  # beside the task of one question, by its name in the tables
    for both in ([TaskConfig(task="cipher"), steps], [steps, TaskConfig(task="cipher")]):
        assert chosen(both, ["cipher-5-steps", "cipher"]) == [steps, TaskConfig(task="cipher")]
    assert chosen(own, ["a"]) == chosen(own, ["lm-eval/a"]) == own[1:]
    assert chosen(own, None) == own and chosen(own, ["copying", "x=y=z.jsonl"]) == [
        own[0],
        TaskConfig(task="x", file="y=z.jsonl"),
    ]
    [task] = chosen(own, ["lm-eval/a"], str(tmp_path))
    assert task == TaskConfig(task="lm-eval/a", shots=1, include_path=str(tmp_path))
    for text in ("=a.jsonl", "a=", "lm-eval/a=b.jsonl"):
        with pytest.raises(InputError, match="write it as NAME=ITEMS.jsonl"):
            chosen(own, [text])
    for taken in ("copying", "continuation"):
        with pytest.raises(InputError, match=f"{taken} is a task that is generated.*as my-{taken}=a.jsonl"):
            chosen(own, [f"{taken}=a.jsonl"])
    with pytest.raises(InputError, match="no such directory; give one that holds lm-eval's task files"):
        chosen(own, ["lm-eval/a"], str(tmp_path / "none"))
    with pytest.raises(InputError, match="--tasks: an empty name"):  # of a variable that is not set
        chosen(own, [""])
    with pytest.raises(InputError, match="is for tasks of lm-eval; name one, as --tasks lm-eval/NAME"):
        chosen(own, ["copying"], str(tmp_path))


def test_a_finished_run_says_which_tasks_are_not_scored(config_file, items):
    """And keeps them, so that the command it names scores them."""
    over = ["training.tokens=512", "checkpoints.every_tokens=512"]
    tasks = "tasks=[{task: copying, items: 4}%s]"

    def start(more: str) -> str:
        lines: list[str] = []
        train(configs.load(config_file, [*over, tasks % more]), lines.append)
        return lines[-1]

    start("")
    assert start("").endswith("is finished (2 steps); nothing to do")
    more = f", {{task: mine, file: {items}}}"
    run = configs.load(config_file).run_directory
    says = f"nothing to do, but tasks mine are new or changed: score them with `emergence-train evaluate {run}`"
    assert start(more).endswith(says)
    assert {row["task"] for row in evaluate(run, log=lambda line: None)["tasks"]} == {"copying", "mine"}
    assert start(more).endswith("nothing to do")
    assert len(metrics(run)) == 2


@pytest.mark.parametrize("rows, is_left", [(["glue/cola", "glue/sst2"], False), (["glue"], False), (["glued"], True)])
def test_a_tag_is_scored_by_the_rows_of_its_tasks(rows, is_left, config_file, tmp_path):
    write_config(tmp_path, configs.load(config_file, ["tasks=[]"]))
    (tmp_path / "evaluations").mkdir()
    pd.DataFrame({"task": rows}).to_parquet(tmp_path / "evaluations" / "step-0000000002.parquet")
    assert ("tasks glue are new" in other_tasks(tmp_path, [TaskConfig(task="lm-eval/glue")], list)) is is_left


def test_a_process_may_train_again_after_a_command(config_file):
    """A command ends the process group that it used; DeepSpeed must not keep its copy of it for the next run."""
    short = ["training.tokens=512", "checkpoints.every_tokens=512"]
    for name in ("first", "second"):
        assert train(configs.load(config_file, [*short, f"name={name}"]), lambda line: None).name == name
        ranks.stop()
