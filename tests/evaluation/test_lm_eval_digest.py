"""The digest of lm-eval's tasks: of what is asked, wherever it is from. Skipped where lm-eval is not installed."""

import functools
import json
import random

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from emergence_train import config as configs  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402
from emergence_train.evaluation import lm_eval_adapter  # noqa: E402
from emergence_train.evaluation.offline import evaluate  # noqa: E402
from emergence_train.recorder import tables  # noqa: E402
from emergence_train.training.run import train  # noqa: E402

ROWS = [
    {"q": f"{a} plus {b} is", "choices": [str(c) for c in range(4)], "gold": (a + b) % 4}
    for a in range(3)
    for b in range(3)
]


def task_in(folder, rows=ROWS, **more):
    """A task over a local file, with its few-shot examples from the same rows; more keys of its file."""
    folder.mkdir(exist_ok=True)
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    keys = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
        "metadata": {"version": 1},
    }
    (folder / "task.yaml").write_text(json.dumps(keys | more))  # JSON is YAML
    return str(folder)


@pytest.fixture(autouse=True)
def own_tasks_alone(tmp_path, monkeypatch):
    """lm-eval takes most of a minute to read its own 13,000 task files."""

    @functools.cache
    def tasks(include_path=None, shots=None):
        return lm_eval_adapter.Tasks(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval_adapter, "tasks", tasks)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_digest_of_an_lm_eval_task_is_of_what_it_asks(tmp_path):
    """The rows at another place, in another order, with a column that is not used, are the same; what changes a score is not."""
    turned = [row | {"id": n} for n, row in enumerate(random.Random(0).sample(ROWS, len(ROWS)))]
    same = [task_in(tmp_path / "a"), task_in(tmp_path / "b", turned)]
    other = {
        "rows": task_in(tmp_path / "c", [ROWS[0] | {"gold": 3}, *ROWS[1:]]),
        "prompt": task_in(tmp_path / "d", doc_to_text="Q: {{q}}"),
        "description": task_in(tmp_path / "e", description="Add. "),
        "metric": task_in(tmp_path / "f", metric_list=[{"metric": "acc_norm"}]),
        "version": task_in(tmp_path / "g", metadata={"version": 2}),
    }
    digests = [lm_eval_adapter.digest("sums", None, None, place) for place in same]
    assert digests[0] == digests[1] == lm_eval_adapter.digest("sums", 0, None, same[0])
    changed = {name: lm_eval_adapter.digest("sums", None, None, place) for name, place in other.items()}
    changed["shots"] = lm_eval_adapter.digest("sums", 2, None, same[0])
    changed["limit"] = lm_eval_adapter.digest("sums", None, 4, same[0])
    assert len({digests[0], *changed.values()}) == 1 + len(changed)


def test_shots_and_rows_of_lm_eval_that_changed_are_refused(config_file, tmp_path):
    """Between evaluations of one run; the digest neither changes the scores nor is changed by scoring."""
    changed = ["training.tokens=1024", "checkpoints.every_tokens=512", "checkpoints.save_state=every"]
    run = train(configs.load(config_file, changed), lambda line: None)

    def scored(step, place, **more):
        result = evaluate(run, step, ["lm-eval/sums"], log=lambda line: None, include_path=place, **more)
        return {row["metric"]: row["value"] for row in result["tasks"]}

    first = task_in(tmp_path / "a", num_fewshot=2)
    values = scored(2, first)
    assert scored(2, first) == values
    scored(4, task_in(tmp_path / "again", num_fewshot=2))
    for place in (task_in(tmp_path / "shots", num_fewshot=3), task_in(tmp_path / "rows", ROWS[1:], num_fewshot=2)):
        with pytest.raises(
            InputError, match="step-0000000002.*has scores of 'sums' on other items than the task asks now"
        ):
            scored(4, place)
    assert tables.read(tables.EVALUATIONS, run)["task_digest"].nunique() == 1
    scored(4, place, replace=True)
    assert set(tables.read(tables.EVALUATIONS, run)["step"]) == {4}


DRAWN = """
import random

def text(doc):
    return random.choice(["Q: ", "What: ", "Sum: "]) + doc["q"]

def rows(dataset):
    def shuffled(doc):
        order = random.sample(range(4), 4)
        return {"choices": [doc["choices"][k] for k in order], "gold": order.index(doc["gold"])}
    return dataset.map(shuffled)

def own(doc):
    return random.SystemRandom().choice(["Q: ", "What: ", "Sum: "]) + doc["q"]

def right(doc):
    raise KeyError("gold")

def scored(doc, results):
    return {"acc": 1.0}
"""


def drawing(folder, text="{{q}}", keys="", function=""):
    """A task whose functions draw: of another place, so of another cache."""
    folder.mkdir()
    (folder / "drawn.py").write_text(DRAWN)
    task_in(folder, doc_to_text=text)
    lines = json.loads((folder / "task.yaml").read_text())
    for key, name in [each.split("=") for each in keys.split()]:
        lines.pop(key, None)
        function += f"{key}: !function drawn.{name}\n"
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
    (folder / "task.yaml").write_text(text + function)
    return str(folder)


@pytest.mark.parametrize("keys", ["doc_to_text=text", "process_docs=rows"])
def test_a_task_that_draws_asks_the_same_each_time(tmp_path, keys):
    """Whatever was drawn before, in a process or a cache; and what the training run draws is as without."""
    places = [drawing(tmp_path / name, keys=keys) for name in ("a", "b")]
    digests = []
    for seed, place in ((1, places[0]), (2, places[1]), (3, places[0])):
        random.seed(seed)
        np.random.seed(seed)
        digests.append(lm_eval_adapter.digest("sums", None, None, place))
        drawn = random.random(), np.random.random()
        random.seed(seed)
        np.random.seed(seed)
        assert drawn == (random.random(), np.random.random())
    assert digests[0] and len(set(digests)) == 1


def test_what_is_another_each_time_has_no_digest(tmp_path):
    assert lm_eval_adapter.digest("sums", None, None, drawing(tmp_path / "a", keys="doc_to_text=own")) == ""


def test_a_right_answer_that_cannot_be_had_is_the_row(tmp_path):
    """A task that generates and scores by a metric of its own needs none."""
    place = task_in(tmp_path / "a")
    task = lm_eval_adapter.tasks(place).load(["sums"])["tasks"]["sums"]
    task.doc_to_target = lambda doc: doc["nothing"]
    assert lm_eval_adapter._right(task, ROWS[0]) == ROWS[0]


def test_a_run_resumes_where_rows_of_lm_eval_changed(config_file, tmp_path):
    """Its data are not the user's to restore: a warning, and a digest that parts the scores."""

    def trained_for(tokens, rows, lines):
        tasks = [{"task": "lm-eval/sums", "include_path": task_in(tmp_path / "tasks", rows)}]
        changed = [f"training.tokens={tokens}", "checkpoints.every_tokens=512", f"tasks={json.dumps(tasks)}"]
        steady = "training.schedule={kind: constant, lr: 1.0e-3}"
        lm_eval_adapter.tasks.cache_clear()
        return train(configs.load(config_file, [*changed, steady]), lines.append)

    trained_for(512, ROWS, [])
    run = trained_for(1024, ROWS[1:], lines := [])
    (warning,) = [line for line in lines if "other items" in line]
    assert "has scores of 'sums' on other items than the task asks now" in warning and "part its scores" in warning
    frame = tables.read(tables.EVALUATIONS, run)
    assert dict(zip(frame["step"], frame["items"])) == {2: 9, 4: 8} and frame["task_digest"].nunique() == 2
