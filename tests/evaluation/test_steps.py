"""Tasks of several steps against plain loops: each step's choices from the logits, the whole by answering step after step."""

import json

import numpy as np
import pytest
import torch

from emergence_train import config as configs
from emergence_train.config import TaskConfig
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.evaluation import items, synthetic
from emergence_train.evaluation.metrics import steps_metrics
from emergence_train.evaluation.suite import Suite
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.parallel.ranks import start

MOST = 128


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(2)
    decoder = Decoder(DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, ffn=24, vocab_size=320, max_sequence=MOST))
    with torch.no_grad():
        decoder.head.weight *= 20  # so that choices differ
    return decoder.eval()


def likelihood(suite: Suite, model: Decoder, context: str, choice: str) -> float:
    """Log-likelihood of a choice, one token after another."""
    before = suite.tokenizer.encode(context, add_special_tokens=False).ids
    ids = suite.tokenizer.encode(context + choice, add_special_tokens=False).ids
    total = 0.0
    for place in range(len(before), len(ids)):
        logits = model(torch.tensor([ids[:place]]))[0, -1].double()
        total += float(logits.log_softmax(-1)[ids[place]].detach())
    return total


def answers(suite: Suite, model: Decoder, chain: tuple[items.Item, ...]) -> list[bool]:
    """The model continues from its own answers: a step is right while all before it are."""
    context, right = chain[0].context, []
    for number, step in enumerate(chain):
        pick = max(step.choices, key=lambda choice: likelihood(suite, model, context, choice))
        right.append(pick == step.choices[step.answer])
        if number + 1 < len(chain):
            asked = chain[number + 1].context[len(step.context + pick) :]  # what the line has between two answers
            context += pick + asked
    return right


def test_scores_are_those_of_a_plain_loop(config_file, model):
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    wanted = [TaskConfig(task="sums", steps=3, items=12), TaskConfig(task="copying", items=3)]
    wanted += [TaskConfig(task="cipher", steps=2, items=6, name="letters")]
    suite = Suite(wanted, dataset, MOST)
    scored = {(row["task"], row["metric"]): row for row in suite.score(model, start(1))[0]}
    for name, skill, steps, count in (("sums-3-steps", "sums", 3, 12), ("letters", "cipher", 2, 6)):
        chains = synthetic.planted_steps(skill, steps, count, 0)
        logs = np.array(
            [[[likelihood(suite, model, step.context, c) for c in step.choices] for step in chain] for chain in chains]
        )
        place = np.array([[step.answer for step in chain] for chain in chains])
        right = logs.argmax(-1) == place
        of_right = np.take_along_axis(logs, place[..., None], -1)[..., 0]
        shares = np.exp(of_right) / np.exp(logs).sum(-1)
        assert 0 < right.mean() < 1
        for step in range(steps):
            row = scored[name, f"step_{step + 1}"]
            assert row["value"] == pytest.approx(right[:, step].mean()) and row["chance"] == 0.25
        whole = scored[name, "acc"]
        assert whole["value"] == pytest.approx(np.mean([all(answers(suite, model, chain)) for chain in chains]))
        assert whole["items"] == count and whole["chance"] == pytest.approx(0.25**steps)
        assert scored[name, "answer_loglik"]["value"] == pytest.approx(of_right.sum(1).mean(), abs=1e-4)
        assert scored[name, "correct_choice_prob"]["value"] == pytest.approx(shares.prod(1).mean(), abs=1e-6)
    assert ("copying", "acc") in scored and ("copying", "step_1") not in scored


def test_metrics_by_hand():
    """Two items of two steps; the second item's second step has two choices alone."""
    yes_no, three = items.Item("q", (" y", " n"), 0), items.Item("q", (" a", " b", " c"), 2)
    task = items.StepsTask("t", ((three, three), (three, yes_no)))
    logs = [[np.log([0.1, 0.2, 0.7]), np.log([0.6, 0.2, 0.2])], [np.log([0.2, 0.2, 0.6]), np.log([0.3, 0.1])]]
    by = {row["metric"]: row for row in steps_metrics(task, logs)}
    assert (by["acc"]["value"], by["step_1"]["value"], by["step_2"]["value"]) == (0.5, 1.0, 0.5)
    assert by["acc"]["chance"] == pytest.approx((1 / 9 + 1 / 6) / 2)
    assert by["step_2"]["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert by["correct_choice_prob"]["value"] == pytest.approx((0.7 * 0.2 + 0.6 * 0.75) / 2)
    assert by["answer_loglik"]["value"] == pytest.approx((np.log(0.7 * 0.2) + np.log(0.6 * 0.3)) / 2)


def written(path, *rows: object):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


STEP = {"context": "1 + 1 =", "choices": [" 2", " 3"], "answer": 0}


def test_steps_of_a_file(tmp_path):
    path = written(tmp_path / "own.jsonl", *[{"steps": [STEP, STEP | {"context": "1 + 1 = 2 + 1 ="}]}] * 3)
    task = items.from_file("own", path, 2)
    assert isinstance(task, items.StepsTask) and len(task.items) == 2 and task.steps == 2
    assert task.items[0][1] == items.Item("1 + 1 = 2 + 1 =", (" 2", " 3"), 0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"steps": [STEP]}], "item 1 of task 't' has 1 steps"),
        ([{"steps": [STEP] * 2}, {"steps": [STEP] * 3}], "item 2 of task 't' has 3 steps, the first 2; give all"),
        ([{"steps": [STEP, STEP | {"answer": 2}]}], "step 2 of item 1 of task 't' has the answer 2"),
        ([{"steps": "no"}], "row 1: needs steps (a list)"),
        ([{"steps": [STEP] * 2}, STEP], "row 2: needs steps"),
        ([{"steps": [STEP, {"context": "a", "choices": ["b", "c"]}]}], "row 1: needs context, choices"),
        ([{"steps": []}], "has 0 steps"),
        ([{"steps": [STEP, {"context": "a", "continuation": "b"}]}], "row 1: needs steps"),
    ],
)
def test_bad_steps_are_one_line(tmp_path, rows, message):
    path = written(tmp_path / "own.jsonl", *rows)
    with pytest.raises(InputError) as error:
        items.from_file("t", path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_steps_of_other_tasks_are_refused(config_file):
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    with pytest.raises(InputError, match=r"'copying': steps are of planted skills \(latest, .*; leave steps out"):
        Suite([TaskConfig(task="copying", steps=3)], dataset, MOST)
    with pytest.raises(InputError, match="'cipher': lines that ask 6 times are too rare; lower steps"):
        Suite([TaskConfig(task="cipher", steps=6, items=2)], dataset, MOST)
    with pytest.raises(ValueError, match="leave steps out"):
        TaskConfig(task="own", file="x.jsonl", steps=3)
