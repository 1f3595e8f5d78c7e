"""Tasks, their scoring and their metrics: against hand computation, against plain logits, over ranks, in and after training."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from emergence_train import config as configs
from emergence_train.config import TaskConfig
from emergence_train.data.dataset import Dataset
from emergence_train.errors import InputError
from emergence_train.evaluation import items, synthetic
from emergence_train.evaluation.comparable import (
    bits_per_byte,
    log_unigram_normalised_perplexity,
    unigram_cross_entropy,
    unigram_losses,
)
from emergence_train.evaluation.items import Item, Task
from emergence_train.evaluation.metrics import choice_metrics, exact_match
from emergence_train.evaluation.offline import evaluate
from emergence_train.evaluation.scoring import Request, encode, log_likelihoods
from emergence_train.evaluation.suite import Suite
from emergence_train.models.decoder import Decoder
from emergence_train.models.decoder_config import DecoderConfig
from emergence_train.parallel.mesh import data_parallel
from emergence_train.parallel.ranks import start
from emergence_train.recorder import tables
from support import command, metrics, small_config

TASKS = [{"task": "copying", "items": 12}, {"task": "modular-addition", "name": "sums", "items": 8}]


def by_metric(rows: list[dict]) -> dict:
    return {row["metric"]: row for row in rows}


def random_model(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(layers=2, width=16, heads=2, kv_heads=1, ffn=24, vocab_size=64, max_sequence=32))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


# ------------------------------------------------------------------------------------------------------- metrics


def test_metrics_by_hand():
    """Two items of four choices, with probabilities 0.4, 0.3, 0.2, 0.1 and right answers 0 and 2."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    choices = ("aa", "b", "cé", "d")
    task = Task("t", (Item("x", choices, 0), Item("x", choices, 2)))
    metrics = by_metric(choice_metrics(task, [np.log(p) - 3, np.log(p) + 1]))  # a common term cancels in p
    assert (
        metrics["acc"]["value"] == 0.5
        and metrics["acc"]["stderr"] == pytest.approx(0.5)
        and metrics["acc"]["chance"] == 0.25
    )
    assert metrics["correct_choice_prob"]["value"] == pytest.approx((0.4 + 0.2) / 2)
    first, second = 0.36 + 0.09 + 0.04 + 0.01, 0.16 + 0.09 + 0.64 + 0.01
    assert metrics["brier"]["value"] == pytest.approx((first + second) / 2) and metrics["brier"]["chance"] == 0.75
    assert metrics["brier"]["stderr"] == pytest.approx(abs(second - first) / 2)
    logs = np.array([np.log(0.4) - 3, np.log(0.2) + 1])
    assert metrics["answer_loglik"]["value"] == pytest.approx(logs.mean())
    assert metrics["answer_bits_per_byte"]["value"] == pytest.approx((-logs / np.log(2) / [2, 3]).mean())
    assert np.isnan(metrics["answer_loglik"]["chance"]) and all(row["items"] == 2 for row in metrics.values())
    # divided by characters: (log p - 3) / (2, 1, 2, 1) is largest for choice 0, (log p + 1) / ... for choice 0 again
    assert metrics["acc_norm"]["value"] == 0.5


def test_acc_norm_counts_the_characters_lm_eval_counts():
    """Its choices have no delimiter: -6/2 and -13/5 for "to" and "right"; with the space -6/3 and -13/6 are the other way."""
    item = Item("x", (" to", " right"), 1)
    metrics = by_metric(choice_metrics(Task("t", (item,)), [np.array([-6.0, -13.0])]))
    assert metrics["acc"]["value"] == 0 and metrics["acc_norm"]["value"] == 1
    bare = Item("x", ("to", "right"), 1)
    assert by_metric(choice_metrics(Task("t", (bare,)), [np.array([-6.0, -13.0])]))["acc_norm"]["value"] == 1
    assert metrics["answer_bits_per_byte"]["value"] == pytest.approx(13 / np.log(2) / 6)  # of the text that is scored


def test_acc_norm_of_a_space_has_a_length():
    """A choice of the space alone counts one character: -1/1 against -3/1 and against -0.5/1."""
    for other, right in ((-3.0, 1.0), (-0.5, 0.0)):
        rows = choice_metrics(Task("t", (Item("x", (" ", " b"), 0),)), [np.array([-1.0, other])])
        assert by_metric(rows)["acc_norm"]["value"] == by_metric(rows)["acc"]["value"] == right


def test_brier_of_uniform_and_of_constant_answers():
    """Sum over options: 0.75 for uniform guesses among four, 1.5 for always the same certain one."""
    task = Task("t", tuple(Item("x", ("a", "b", "c", "d"), answer) for answer in range(4)))
    uniform = by_metric(choice_metrics(task, [np.zeros(4)] * 4))["brier"]["value"]
    certain = by_metric(choice_metrics(task, [np.array([0.0, -500, -500, -500])] * 4))["brier"]["value"]
    assert uniform == pytest.approx(0.75) and certain == pytest.approx(1.5)


# ------------------------------------------------------------------------------------------------------- scoring


@torch.no_grad()
def test_log_likelihoods_are_those_of_plain_logits():
    model = random_model()
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 33, 40)
    requests = [Request(tuple(rng.integers(0, 64, n).tolist()), int(rng.integers(1, n))) for n in lengths]
    scored = log_likelihoods(model, requests, start(1))
    for request, value in zip(requests, scored):
        logs = torch.log_softmax(model(torch.tensor([request.ids[:-1]]))[0].double(), -1)
        wanted = sum(float(logs[-k, request.ids[-k]]) for k in range(1, request.scored + 1))
        assert value == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("greedy", [False, True])
def test_requests_that_begin_alike_share_a_row(greedy, monkeypatch):
    """Choices under one context, of any lengths: the same values from fewer tokens, in any grouping."""
    from emergence_train.evaluation import scoring

    model, rng = random_model(), np.random.default_rng(1)
    requests = []
    for item in range(30):
        context = rng.integers(0, 64, rng.integers(0, 20)).tolist()
        for _ in range(rng.integers(1, 6)):
            choice = rng.integers(0, 4, rng.integers(1, 8)).tolist()
            requests.append(Request((7, *context, *choice), len(choice)))
        if item % 5 == 0:
            likeliest = model(torch.tensor([[7, *context]]))[0, -1].argmax().item()
            requests += [requests[-1], Request((7, *context, likeliest), 1)]  # the same twice, and a greedy one
    monkeypatch.setattr(scoring, "TOKENS", 300)
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    together = scoring.score(model, requests, start(1), greedy=greedy)
    tokens = sum(batch.numel() for batch in seen)
    monkeypatch.setattr(scoring, "LONGEST_SHARED", 0)
    seen.clear()
    alone = scoring.score(model, requests, start(1), greedy=greedy)
    handle.remove()
    assert np.allclose(together, alone, rtol=0, atol=1e-4) and tokens < 0.7 * sum(batch.numel() for batch in seen)
    assert not greedy or 0 < together[:, 1].sum() < len(requests)


def test_requests_are_split_as_lm_eval_splits_them(data_path):
    from emergence_train.data.tokenizer import load_file

    tokenizer = load_file(data_path / "tokenizer.json")
    plain = tokenizer.encode("the cat sat", add_special_tokens=False).ids
    request = encode(tokenizer, "the cat", " sat", 0, 32)
    assert list(request.ids) == plain and request.scored == len(plain) - len(tokenizer.encode("the cat").ids)
    assert encode(tokenizer, "the cat ", "sat", 0, 32) == request  # the space moves into the continuation
    empty = encode(tokenizer, "", "the", 7, 32)
    assert empty.ids[0] == 7 and empty.scored == len(empty.ids) - 1
    cut = encode(tokenizer, "the cat " * 20, "sat", 0, 10)
    assert len(cut.ids) == 11 and cut.ids[-1] == plain[-1]


def test_a_rank_without_a_batch_runs_as_many_forwards(monkeypatch):
    """Three batches on two ranks: both run two forwards, and their sums together are those of one rank."""
    from emergence_train.evaluation import scoring

    monkeypatch.setattr(scoring, "TOKENS", 40)
    model = random_model()
    requests = [Request(tuple(range(1 + k, 17 + k)), 3 + k % 3) for k in range(5)]
    alone = log_likelihoods(model, requests, start(1))
    parts, forwards = [], []
    for rank in range(2):
        calls = []
        handle = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        parts.append(log_likelihoods(model, requests, data_parallel(rank, 2, rank, torch.device("cpu"))))
        forwards.append(len(calls))
        handle.remove()
    assert forwards[0] == forwards[1] and np.allclose(parts[0] + parts[1], alone)
    assert all((part != 0).any() for part in parts)


# --------------------------------------------------------------------------------------------------------- items


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", ["items.jsonl", "items.jsonl.gz", ""])
def test_items_are_unpacked_by_their_first_bytes(name, packed, tmp_path):
    """Whatever the name: of a pipe, as of process substitution, it says nothing."""
    data = b"".join(b'{"context": "q%d", "choices": ["a", "b"], "answer": 1}\n' % k for k in range(20))
    data = gzip.compress(data) if packed else data
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    path = tmp_path / name if name else Path(f"/dev/fd/{reading}")
    if name:
        path.write_bytes(data)
    assert items.from_file("t", path).items == tuple(Item(f"q{k}", ("a", "b"), 1) for k in range(20))
    os.close(reading)


@pytest.mark.parametrize("make", synthetic.GENERATORS.values())
def test_generated_items_follow_the_seed_with_right_answers(make):
    drawn = make(50, 3)
    assert drawn == make(50, 3) and drawn != make(50, 4)
    items.checked("t", drawn, "here")
    assert len({item.answer for item in drawn}) > 2  # the index of the right answer is uniform


def test_answers_of_made_items():
    for item in synthetic.modular_addition(30, 0):
        a, b = (int(word) for word in item.context.splitlines()[-1].removesuffix(" =").split(" + "))
        assert item.choices[item.answer] == f" {(a + b) % synthetic.MODULUS}"
    for item in synthetic.copying(30, 0):
        words, _, begun = (line.split() for line in item.context.splitlines())
        assert item.choices[item.answer] == " " + words[len(begun)]
        assert all(choice.strip() in words for choice in item.choices)
    for item in synthetic.unscrambling(30, 0):
        letters = item.context.splitlines()[-1].removesuffix(" ->")
        assert [sorted(choice.strip()) == sorted(letters) for choice in item.choices].index(True) == item.answer


def test_items_of_files(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"context": "a", "choices": [" b", " c"], "answer": 1}\n')
    assert items.from_file("t", path).items == (Item("a", (" b", " c"), 1),)
    path.write_text('{"context": "a", "choices": [" b", " c"], "answer": 1.0}\n')
    assert items.from_file("t", path).items == (Item("a", (" b", " c"), 1),)
    rows = [
        {"doc_id": d, "idx": i, "label": 1, "request": {"context": f"q{d}", "continuation": f" {c}"}}
        for d in (0, 1, 1_000_000)
        for i, c in ((1, "no"), (0, "yes"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    task = items.from_file("t", path)
    assert task.items[0] == Item("q0", (" yes", " no"), 1) and len(task.items) == 2 and task.chance == 0.5


def test_one_answer_is_scored_by_likelihood_and_greediness(tmp_path, config_file):
    """LAMBADA's rows in the requests' schema (idx null, the label a list) and our own rows, against plain logits."""
    texts = [("the cat sat on the", " mat"), ("once upon a", " time"), ("it is", " not so")]
    rows = [
        {"doc_id": d, "idx": None, "label": [a.strip()], "request": {"context": c, "continuation": a}}
        for d, (c, a) in enumerate(texts)
    ]
    (tmp_path / "requests.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"context": c, "continuation": a}) for c, a in texts))
    two = [{"context": c, "choices": [a, " x"], "answer": 0} for c, a in texts]
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, two)))
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    wanted = [TaskConfig(task=name, file=str(tmp_path / f"{name}.jsonl")) for name in ("requests", "two", "own")]
    suite = Suite(wanted, dataset, 32)
    torch.manual_seed(1)
    model = Decoder(
        DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, ffn=24, vocab_size=320, max_sequence=32)
    ).eval()
    logs, greedy, hidden = [], [], []
    for number, (context, answer) in enumerate(texts):
        ids = suite.tokenizer.encode(context + answer, add_special_tokens=False).ids
        count = len(ids) - len(suite.tokenizer.encode(context, add_special_tokens=False).ids)
        if number == 0:  # train on the first answer, so that both values of greediness occur
            with torch.no_grad():
                model.head.weight.zero_()
                handle = model.head.register_forward_hook(lambda _, given, out: hidden.append(given[0]))
                model(torch.tensor([ids[:-1]]))
                handle.remove()
                for k in range(count):
                    model.head.weight[ids[-1 - k]] += 5 * hidden[0][0, -1 - k] / hidden[0][0, -1 - k].norm()
        p = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), -1)
        logs.append(sum(float(p[-k, ids[-k]].detach()) for k in range(1, count + 1)))
        greedy.append(all(int(p[-k].argmax()) == ids[-k] for k in range(1, count + 1)))
    assert greedy[0] and not all(greedy)
    scored = {(row["task"], row["metric"]): row for row in suite.score(model, start(1))[0]}
    assert [metric for task, metric in scored if task == "own"] == [
        "exact_match",
        "answer_loglik",
        "answer_bits_per_byte",
    ]
    size = [len(answer) for _, answer in texts]
    for task in ("requests", "own"):
        assert (
            scored[task, "exact_match"]["value"] == pytest.approx(np.mean(greedy))
            and scored[task, "exact_match"]["chance"] == 0
        )
        assert scored[task, "answer_loglik"]["value"] == pytest.approx(np.mean(logs), abs=1e-4)
        bits = -np.mean(np.divide(logs, size)) / np.log(2)
        assert scored[task, "answer_bits_per_byte"]["value"] == pytest.approx(bits, abs=1e-4)
        assert not scored[task, "answer_bits_per_byte"]["higher_is_better"]
    assert scored["two", "answer_loglik"]["value"] == pytest.approx(np.mean(logs), abs=1e-4)
    (tmp_path / "own.jsonl").write_text('{"context": "a", "continuation": " "}')
    with pytest.raises(InputError, match="item 1 of task 'own' has an empty continuation"):
        items.from_file("own", tmp_path / "own.jsonl")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "choices": ["b", " "], "answer": 0}, "item 1 of task 't' has an empty choice"),
        ({"context": "a", "choices": ["b", "b"], "answer": 0}, "the same choice twice"),
        ({"context": "a", "choices": ["b"], "answer": 0}, "has 1 choices"),
        ({"context": "a", "choices": ["b", "c"], "answer": 2}, "the answer 2, which is not one of 0 to 1"),
        (
            {"context": "a", "choices": ["b", "c"]},
            "row 1: needs context, choices (a list) and answer (an index): it has no 'answer'",
        ),
        ({"context": "a", "choices": "bc", "answer": 0}, "its choices are 'bc'"),
        ({"context": "a", "choices": ["b", "c"], "answer": "c"}, "its answer is 'c'"),
        ({"context": "a", "choices": ["b", "c"], "answer": 0.5}, "its answer is '0.5'"),
        ([1], "is not a JSON object"),
        ({"context": None, "choices": ["b", "c"], "answer": 0}, "its context is 'None', which is no text"),
        ({"context": ["a"], "choices": ["b", "c"], "answer": 0}, "its context is \"['a']\", which is no text"),
        ({"context": "a", "choices": [None, "c"], "answer": 0}, "a choice is 'None', which is no text"),
        ({"context": "a", "choices": [{"text": "b"}, {"text": "c"}], "answer": 0}, "which is no text"),
        ({"context": "a", "choices": [True, False], "answer": 0}, "a choice is 'True', which is no text"),
        ({"context": "a", "choices": [math.nan, 1], "answer": 0}, "a choice is 'nan', which is no text"),
        ({"context": "\ud800 a", "choices": ["b", "c"], "answer": 0}, "its context has half of a surrogate pair"),
        ({"context": "a", "continuation": None}, "its continuation is 'None', which is no text"),
        ({"context": "a", "answers": [None]}, "an answer is 'None', which is no text"),
        ({"context": "a", "answers": [{"x": 1}]}, "which is no text"),
        ({"context": 3, "answers": ["b"]}, "its context is '3', which is no text"),
        ({"context": "a", "answers": ["#### 42"], "extract": "number"}, "its answer '#### 42' is no number"),
        ({"context": "a", "answers": ["$42"], "extract": "number"}, "its answer '$42' is no number"),
        ({"context": "a", "choices": ["b", "c"], "answer": 0, "answers": ["b"]}, "has answers and choices"),
        (
            {"context": "a", "continuation": "b", "answers": ["b"]},
            "needs answers alone, and has answers and continuation",
        ),
        ({"context": "a", "choices": ["b", "c"], "answer": 0, "continuation": "b"}, "has continuation and choices"),
    ],
)
def test_bad_items_are_one_line(tmp_path, row, message):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputError) as error:
        items.from_file("t", path)
    assert message in str(error.value) and str(path) in str(error.value)


def request(idx: object, label: object, **given: object) -> dict:
    return {"doc_id": 0, "idx": idx, "label": label, "request": {"context": "a", "continuation": f" {idx}"} | given}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"context": "a", "choices": ["b", "c"], "answer": 0}, {"context": "a", "continuation": "b"}],
            "row 2: needs choices",
        ),
        (
            [{"context": "a", "answers": ["5"]}, {"context": "a", "answers": ["5"], "extract": "number"}],
            "row 2: give all rows",
        ),
        ([request(0, 1), request(2, 1)], "the idx of its choices are 0, 2, not 0, 1, ..."),
        ([request(0, 1), request(0, 1, continuation=" b")], "the idx of its choices are 0, 0"),
        ([request(0, "A"), request(1, "A")], "its label is 'A'"),
        ([request(0, 0, context=None), request(1, 0)], "a context is 'None', which is no text"),
        ([request(None, ["b"], continuation=None)], "a continuation is 'None', which is no text"),
    ],
)
def test_rows_that_do_not_go_together_are_one_line(tmp_path, rows, message):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError) as error:
        items.from_file("t", path)
    assert message in str(error.value) and str(path) in str(error.value)


def test_numbers_are_texts_and_deep_lines_are_refused(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"context": "1 + 1 =", "choices": [1, 2.5, "2"], "answer": 2}')
    assert items.from_file("t", path).items == (Item("1 + 1 =", ("1", "2.5", "2"), 2),)
    path.write_text('{"context": "1 + 1 =", "answers": [2, "1,234.5"], "extract": "number"}')
    assert items.from_file("t", path).items[0].answers == ("2", "1,234.5")
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="cannot be read as JSONL"):
        items.from_file("t", path)


def test_a_few_bad_items_are_skipped_and_noted(tmp_path):
    """Real data sets have them: SciQ, CommonsenseQA and SIQA repeat choices. Each choice may have a context of its own."""
    good = [{"context": f"q{n}", "choices": [" b", " c"], "answer": 1} for n in range(40)]
    path = tmp_path / "items.jsonl"
    path.write_text(
        "\n".join(map(json.dumps, [*good[:7], {"context": "q", "choices": [" b", " b"], "answer": 0}, *good[7:]]))
    )
    task = items.from_file("t", path)
    assert (
        len(task.items) == 40
        and "1 of 41 items skipped" in task.note
        and "item 8 has the same choice twice" in task.note
    )
    rows = [
        {"doc_id": 0, "idx": i, "label": 1, "request": {"context": f"the {noun} was", "continuation": " too large"}}
        for i, noun in enumerate(("trophy", "case"))
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    (item,) = items.from_file("t", path).items
    assert item.pairs == [("the trophy was", " too large"), ("the case was", " too large")] and item.answer == 1


def test_answers_longer_than_a_sequence_are_not_scored(tmp_path, config_file):
    """Of 41 items one does not fit: it is skipped with a note. As many tokens as a sequence has fit, a token more does not."""
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    path = tmp_path / "own.jsonl"

    def suite(*rows, longest=32):
        path.write_text("\n".join(map(json.dumps, rows)))
        return Suite([TaskConfig(task="own", file=str(path))], dataset, longest)

    good, long = ({"context": f"it {'was ' * 40}", "continuation": text} for text in (" so", " and so on" * 40))
    skipping = suite(*[good] * 40, long)
    assert len(skipping.answers) == 40 and not any(request.lost for request in skipping.answers)
    assert "1 of 41 items skipped, the first because item 41 has an answer of" in skipping.notes[0]
    assert "40 of 40 contexts are longer than 32 tokens" in skipping.notes[1]
    row = {"context": "it was", "continuation": " so and so on and on"}
    tokenizer = skipping.tokenizer
    size = len(tokenizer.encode("it was so and so on and on").ids) - len(tokenizer.encode("it was").ids)
    assert suite(row, longest=size).answers[0].scored == size
    step = {"context": "it", "choices": [" was", long["continuation"]], "answer": 0}
    for rows, longest, says in (
        (
            [row],
            size - 1,
            f"item 1 of task 'own' has an answer of {size} tokens, more than the {size - 1} of a sequence",
        ),
        ([step] * 3, 32, "item 1 of task 'own' has an answer of .* cannot be scored.; fix the file"),
        ([{"steps": [step, step]}], 32, "step 1 of item 1 of task 'own' has an answer of"),
    ):
        with pytest.raises(InputError, match=says):
            suite(*rows, longest=longest)


def test_unknown_tasks_are_answered_with_near_names(config_file):
    config = configs.load(config_file)
    dataset = Dataset(config.data, 1, verify=False)
    with pytest.raises(InputError, match="did you mean 'copying'"):
        Suite([TaskConfig(task="copyng")], dataset, 32)
    with pytest.raises(InputError, match="is listed twice"):
        Suite([TaskConfig(task="copying"), TaskConfig(task="copying")], dataset, 32)
    with pytest.raises(InputError, match="no such file"):
        Suite([TaskConfig(task="mine", file="nowhere.jsonl")], dataset, 32)
    task = Suite([TaskConfig(task="continuation", items=5)], dataset, 32).tasks[0]
    assert len(task.items) == 5 and task.chance == 0.25


def test_open_answers(tmp_path, config_file):
    """Exact match by hand, and a file of open items scored on a model by generation."""
    plain, number = items.OpenItem("q", ("Kurt Gödel",)), items.OpenItem("q", ("1,234",), number=True)
    assert exact_match(plain, " kurt  Gödel ") and not exact_match(plain, "Gödel")
    assert (
        exact_match(number, "so 12 and then 1234.0")
        and not exact_match(number, "1234 or 5")
        and not exact_match(number, "x")
    )
    rows = [{"context": "what is", "answers": ["it"]}, {"context": "1 + 1 =", "answers": ["2"]}]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = Dataset(configs.load(config_file).data, 1, verify=False)
    suite = Suite([TaskConfig(task="qa", file=str(tmp_path / "open.jsonl"))], dataset, 32)
    model = Decoder(DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, ffn=24, vocab_size=320, max_sequence=32))
    (row,), _ = suite.score(model, start(1))
    assert row["metric"] == "exact_match" and row["items"] == 2 and row["chance"] == 0.0 and 0 <= row["value"] <= 1
    (tmp_path / "open.jsonl").write_text('{"context": "what is", "answers": [" "]}')
    with pytest.raises(InputError, match="row 1: has no answer"):
        items.from_file("qa", tmp_path / "open.jsonl")
    for wrong, message in (
        ({"answers": ["5"], "extract": "Number"}, "extract is 'Number'; write \"number\", or leave it out"),
        ({"answers": "five"}, "needs context and answers .a list.: its answers are 'five'"),
    ):
        (tmp_path / "open.jsonl").write_text(json.dumps({"context": "2 + 3 ="} | wrong))
        with pytest.raises(InputError, match=message):
            items.from_file("qa", tmp_path / "open.jsonl")
    (tmp_path / "open.jsonl").write_bytes('{"context": "é", "answers": ["5"]}'.encode("utf-16"))
    with pytest.raises(InputError, match="is not UTF-8; convert it first"):
        items.from_file("qa", tmp_path / "open.jsonl")


# -------------------------------------------------------------------------------------------------- comparable loss


def test_losses_that_compare_by_hand():
    assert bits_per_byte(2.0, 100, 400) == pytest.approx(2.0 * 100 / 400 / np.log(2))
    assert log_unigram_normalised_perplexity(3.0, 7.0) == -4.0
    counts, targets = np.array([7, 1, 0]), np.array([0, 0, 1, 2])
    wanted = -(2 * np.log(8 / 11) + np.log(2 / 11) + np.log(1 / 11)) / 4
    assert unigram_cross_entropy(counts, targets) == pytest.approx(wanted)


def test_unigram_loss_lies_between_entropy_and_uniform(config_file):
    config = configs.load(config_file)
    dataset = Dataset(config.data, 1, verify=False)
    losses = unigram_losses(dataset)
    assert set(losses) == set(dataset.index["validation"]["splits"])
    assert all(3 < loss < np.log(dataset.vocabulary) for loss in losses.values())


# ------------------------------------------------------------------------------------------------- in a training run


@pytest.fixture(scope="module")
def trained(data_path, tmp_path_factory):
    """The same small run with one process at ZeRO 1 and with two at ZeRO 3."""
    runs = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"run{processes}")
        prompts = [{"context": "the " * n, "answers": ["it"]} for n in (3, 5, 5, 9)]
        (folder / "qa.jsonl").write_text("\n".join(map(json.dumps, prompts)))
        tree = small_config(data_path, folder) | {"tasks": [*TASKS, {"task": "qa", "file": str(folder / "qa.jsonl")}]}
        tree["training"]["zero_stage"] = 1 if processes == 1 else 3
        (folder / "c.yaml").write_text(yaml.safe_dump(tree))
        done = command("train", str(folder / "c.yaml"), processes=processes if processes > 1 else 0)
        assert done.returncode == 0, done.stderr
        runs[processes] = folder / "run"
        (folder / "said.txt").write_text(done.stdout)
    return runs


def test_checkpoints_have_evaluations_at_any_world_size(trained):
    first, second = (pd.read_parquet(run / "evaluations") for run in (trained[1], trained[2]))
    assert len(first) == 3 * (2 * 6 + 1) and set(first["task"]) == {"copying", "sums", "qa"}
    keys = ["step", "task", "metric"]
    first, second = first.sort_values(keys), second.sort_values(keys)
    assert np.allclose(first["value"], second["value"], atol=1e-4) and (first["unigram_loss"] > 3).all()
    last = metrics(trained[1], "validation")[-1]
    rows = first[first["step"] == last["step"]]
    assert np.allclose(rows["loss"], last["loss"]["iid"]) and np.allclose(
        rows["bits_per_byte"], last["bits_per_byte"]["iid"]
    )
    assert last["log_pplu"]["iid"] == pytest.approx(last["loss"]["iid"] - rows["unigram_loss"].iloc[0], abs=1e-5)


def test_cost_of_the_tasks_is_recorded_and_printed(trained):
    """Seconds of tasks so far over those of training steps so far, computed here from the steps' own speeds."""
    run = trained[1]
    scoring = training = 0.0
    for row in (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()):
        if row["kind"] == "train":
            training += 8 * 32 / row["tokens_per_second"]
        if row["kind"] == "evaluation":
            scoring += row["seconds"]
            rounding = 3 * 0.0005 / training  # seconds are written to a thousandth
            assert row["share_of_training"] == pytest.approx(scoring / training, abs=rounding)
    assert tables.Metrics.read(run).cost_of_tasks() == pytest.approx((scoring, training))
    lines = [line for line in (run.parent / "said.txt").read_text().splitlines() if line.startswith("tasks       step")]
    assert len(lines) == 3 and "copying 0." in lines[-1] and "so far " in lines[-1], lines
    assert lines[-1].endswith("% of the time in training steps)")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_saved_checkpoint_scores_as_it_did_in_training(trained, processes):
    run = trained[processes]
    before = pd.read_parquet(run / "evaluations").query("step == 12").set_index(["task", "metric"])["value"]
    result = evaluate(run, tasks=["copying", "unscrambling"], log=lambda line: None)
    for row in result["tasks"]:
        if row["task"] == "copying":
            assert row["value"] == pytest.approx(before["copying", row["metric"]], abs=1e-4)
    after = pd.read_parquet(run / "evaluations").query("step == 12")
    assert (
        set(after["task"]) == {"copying", "sums", "qa", "unscrambling"}
        and not after.duplicated(["task", "metric"]).any()
    )


def test_evaluate_on_the_command_line(trained):
    done = command("evaluate", str(trained[1]), "--split", "ood", "--tasks", "sums", "--json")
    result = json.loads(done.stdout)
    assert list(result["loss"]) == ["ood"] and result["tasks"][0]["task"] == "sums", done.stderr
    for wrong, message in (
        ("--step 7", "has no checkpoint of step 7; it has states of steps 8, 12"),
        ("--tasks coping", "did you mean 'copying'"),
        ("--split nowhere", "no validation split 'nowhere'"),
    ):
        done = command("evaluate", str(trained[1]), *wrong.split())
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_the_analysis_reads_the_run(trained, tmp_path):
    done = command("analyze", "emergence", str(trained[1]), "--out", str(tmp_path), "--json")
    result = json.loads(done.stdout)
    assert {task["verdict"] for task in result["tasks"]} == {"not-identified"} and (tmp_path / "result.json").is_file()
    assert result["tasks"][0]["size_effect"]["reason"].startswith("one size only")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    row = json.dumps({"context": "\u3042", "choices": [" \u00e9", " \u00df"], "answer": 1}, ensure_ascii=False)
    (tmp_path / "own.jsonl").write_text(f"{row}\r\n", encoding="utf-8-sig")
    (item,) = items.from_file("own", tmp_path / "own.jsonl").items
    assert (item.context, list(item.choices), item.answer) == ("\u3042", [" \u00e9", " \u00df"], 1)
