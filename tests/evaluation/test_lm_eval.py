"""The adapter against lm-eval's Hugging Face backend on the same weights. Skipped where lm-eval is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval")
transformers = pytest.importorskip("transformers")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from emergence_train.data.tokenizer import END_OF_TEXT, load_file  # noqa: E402
from emergence_train.errors import InputError  # noqa: E402
from emergence_train.evaluation import lm_eval_adapter  # noqa: E402
from emergence_train.evaluation.lm_eval_adapter import EmergenceLM, run_tasks  # noqa: E402
from emergence_train.evaluation.lm_eval_results import choice_rows  # noqa: E402
from emergence_train.models.begin_token import WithBeginToken  # noqa: E402
from emergence_train.models.decoder import Decoder  # noqa: E402
from emergence_train.models.decoder_config import DecoderConfig  # noqa: E402
from emergence_train.parallel.ranks import start  # noqa: E402
from support import ROOT, llama_of  # noqa: E402


@pytest.fixture(scope="module")
def both(data_path):
    """(the adapter, lm-eval's) around the same weights, fp32."""
    tokenizer = load_file(data_path / "tokenizer.json")
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, ffn=48, vocab_size=320, max_sequence=64))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(data_path / "tokenizer.json"), eos_token=END_OF_TEXT)
    ours = EmergenceLM(model, tokenizer, tokenizer.token_to_id(END_OF_TEXT), 64, start(1))
    theirs = HFLM(
        pretrained=llama_of(model), tokenizer=fast, max_length=64, batch_size=1, device="cpu", dtype="float32"
    )
    return ours, theirs


def requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, args, number) for number, args in enumerate(arguments)]


def test_log_likelihoods_and_greediness_are_equal(both):
    pairs = [
        ("The cat sat on", " the mat"),
        ("The cat sat on ", "the mat"),
        ("", "Once upon"),
        ("A" * 300, " end of it"),
        ("one two", " three four five"),
        ("x\n", "y"),
        ("the th", "e man"),  # tokens that join at the border
        ("sat on the ma", "t and"),
    ]
    ours, theirs = (lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) for lm in both)
    assert np.allclose([a for a, _ in ours], [a for a, _ in theirs], atol=1e-4)
    assert [g for _, g in ours] == [g for _, g in theirs]


def test_choices_are_equal(both):
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "it", "was", "for", "you", "that", "he", "with", "this"]
    pairs = [(" ".join(rng.choice(words, 8)), " " + " ".join(rng.choice(words, 3))) for _ in range(80)]
    ours, theirs = (
        np.array(lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True))[:, 0].reshape(20, 4)
        for lm in both
    )
    assert (ours.argmax(1) == theirs.argmax(1)).all() and np.abs(ours - theirs).max() < 1e-4


def test_rolling_log_likelihoods_are_equal(both):
    texts = [("A short text.",), ("A long one, longer than the model can look at. " * 20,)]
    ours, theirs = (
        lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts), disable_tqdm=True) for lm in both
    )
    assert np.allclose(ours, theirs, atol=1e-3, rtol=1e-5)


def test_generations_are_equal(both):
    prompts = [
        ("The cat sat on", {"until": ["\n"], "max_gen_toks": 12}),
        ("Once", {"until": ["e"], "max_gen_toks": 12}),
        ("word " * 60, {"until": ["\n\n"], "max_gen_toks": 12}),
        ("Once", {"until": "\n\n\n", "max_new_tokens": 9, "do_sample": False, "temperature": 1.0}),
        ("Once", {"until": [], "max_completion_tokens": 4}),
    ]
    ours, theirs = (lm.generate_until(requests("generate_until", prompts), disable_tqdm=True) for lm in both)
    assert ours == theirs


def sums_in(folder) -> None:
    """A multiple-choice task over a local file, in lm-eval's format."""
    rows = [
        {"q": f"{a} plus {b} is", "choices": [str(c) for c in range(4)], "gold": (a + b) % 4}
        for a in range(5)
        for b in range(5)
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "task.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{gold}}'\nmetric_list: [{metric: acc}, {metric: acc_norm}]\nmetadata: {version: 1}\n"
    )


def test_two_processes_have_what_one_has_and_load_it_once(data_path, tmp_path):
    """Under torchrun lm-eval itself returns results on rank 0 only."""
    sums_in(tmp_path)
    worker = Path(__file__).with_name("lm_eval_worker.py")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    for processes in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += [str(worker), str(data_path / "tokenizer.json"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    alone, first, second = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert first == second and first["loads"] == 1 and first["checkpoints"][0] == first["checkpoints"][1]
    assert [row["metric"] for row in first["checkpoints"][0]] == [row["metric"] for row in alone["checkpoints"][0]]
    for ours, other in zip(first["checkpoints"][0], alone["checkpoints"][0]):
        assert ours["value"] == pytest.approx(other["value"], abs=1e-5)


def test_a_whole_task_of_lm_eval_s_gives_the_same_accuracy(both, tmp_path, monkeypatch):
    """Through lm-eval's own evaluator with both backends."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    sums_in(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = TaskManager(include_path=str(tmp_path))
    random = torch.get_rng_state()
    rows = {row["metric"]: row for row in run_tasks(both[0], "sums", shots=0, include_path=str(tmp_path))}
    assert torch.equal(torch.get_rng_state(), random)  # it is the training run's
    theirs = lm_eval.simple_evaluate(
        both[1], tasks=["sums"], num_fewshot=0, bootstrap_iters=100, task_manager=manager, log_samples=True
    )
    assert rows["acc"]["value"] == theirs["results"]["sums"]["acc,none"] and rows["acc"]["items"] == 25
    assert rows["acc"]["stderr"] == pytest.approx(theirs["results"]["sums"]["acc_stderr,none"])
    same = {row["metric"]: row for row in choice_rows("sums", theirs["samples"]["sums"])}
    assert same["acc"]["value"] == rows["acc"]["value"] and same["acc"]["stderr"] == pytest.approx(
        rows["acc"]["stderr"]
    )
    assert same["acc_norm"]["value"] == rows["acc_norm"]["value"]
    assert same["brier"]["value"] == pytest.approx(rows["brier"]["value"], abs=1e-5) and rows["brier"]["chance"] == 0.75
    with pytest.raises(InputError, match="lm-eval has no task 'sumz'.*'sums'"):
        run_tasks(both[0], "sumz", include_path=str(tmp_path))


def test_groups_and_tags_have_the_scores_of_their_tasks(both, tmp_path, monkeypatch):
    """A group whose tasks count alike, one without aggregates, a tag, and a task that scores several right answers itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    for name, choices, items in (("two", 2, 12), ("five", 5, 6)):
        rows = [
            {"q": f"{n} and {n} is", "choices": [str((n + k) % 7) for k in range(choices)], "gold": str((n + 1) % 7)}
            for n in range(items)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ntag: both\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/{name}.jsonl}}}}\n"
            "output_type: multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_choice: choices\ndoc_to_target: gold\n"
            "metric_list: [{metric: acc}, {metric: brier_score}]\nmetadata: {version: 1}\n"
        )
    group = "task: [two, five]\nmetadata: {version: 1}\n"
    (tmp_path / "plain.yaml").write_text(f"group: plain\n{group}")
    (tmp_path / "alike.yaml").write_text(
        f"group: alike\naggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: false}}]\n{group}"
    )
    (tmp_path / "own.yaml").write_text(
        "include: two.yaml\ntask: own\ntag: nothing\nprocess_results: !function scored.mass\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "scored.py").write_text("def mass(doc, results):\n    return {'acc': 0.7}\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scored = {
        name: {
            (row["task"], row["metric"]): row for row in run_tasks(both[0], name, shots=0, include_path=str(tmp_path))
        }
        for name in ("alike", "plain", "both", "own")
    }
    theirs = lm_eval.simple_evaluate(
        both[1],
        tasks=["alike"],
        num_fewshot=0,
        bootstrap_iters=100,
        task_manager=TaskManager(include_path=str(tmp_path)),
    )
    acc = scored["alike"]["alike", "acc"]
    assert acc["value"] == theirs["results"]["alike"]["acc,none"] and acc["chance"] == pytest.approx(
        (1 / 2 + 1 / 5) / 2
    )
    assert acc["items"] == 18 and acc["stderr"] == pytest.approx(theirs["results"]["alike"]["acc_stderr,none"])
    for name in ("plain", "both"):
        assert {task for task, _ in scored[name]} == {f"{name}/two", f"{name}/five"}
        for task in ("two", "five"):
            brier = scored[name][f"{name}/{task}", "brier_score"]
            assert brier["value"] == pytest.approx(theirs["results"][task]["brier_score,none"], abs=1e-5)
            assert scored[name][f"{name}/{task}", "acc"]["value"] == theirs["results"][task]["acc,none"]
            assert scored[name][f"{name}/{task}", "brier"]["value"] == pytest.approx(brier["value"], abs=1e-6)
    halves = [scored["both"][f"both/{task}", "correct_choice_prob"]["value"] for task in ("two", "five")]
    assert scored["alike"]["alike", "correct_choice_prob"]["value"] == pytest.approx(np.mean(halves))
    assert set(scored["own"]) == {("own", "acc")} and np.isnan(scored["own"]["own", "acc"]["chance"])


def test_texts_after_the_begin_token_follow_nothing_else(both):
    """A model with a begin token: an empty context, a whole text and an empty prompt, by plain logits after that token."""
    ours, _ = both
    begun = EmergenceLM(WithBeginToken(ours.model, 5), ours.tokens, ours.end, 63, ours.mesh)
    ids = ours.tokens.encode("Once upon a time", add_special_tokens=False).ids
    with torch.no_grad():
        logits = ours.model(torch.tensor([[5, *ids]]))[0].double().log_softmax(-1)
    expected = float(logits[range(len(ids)), ids].sum())
    [(value, _)] = begun.loglikelihood(requests("loglikelihood", [("", "Once upon a time")]))
    [rolling] = begun.loglikelihood_rolling(requests("loglikelihood_rolling", [("Once upon a time",)]))
    assert value == pytest.approx(expected, abs=1e-4) and rolling == pytest.approx(expected, abs=1e-4)
    [text] = begun.generate_until(requests("generate_until", [("", {"until": [], "max_gen_toks": 1})]))
    assert text == ours.tokens.decode([int(logits[0].argmax())])


def test_choices_that_differ_in_their_context_have_their_chance(both, tmp_path, monkeypatch):
    """As lm-eval has WinoGrande: doc_to_text is the number of the right context, the target what follows either."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    rows = [
        {
            "beginnings": [f"the {a} was told by the {b}, and the {noun}" for noun in (a, b)],
            "end": "was sorry for it",
            "gold": n % 2,
        }
        for n, (a, b) in enumerate([("cat", "mat"), ("man", "dog"), ("sea", "hat")] * 4)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        f"task: nouns\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{gold}}'\ndoc_to_choice: '{{beginnings}}'\n"
        "doc_to_target: '{{end}}'\nmetric_list: [{metric: acc}]\nmetadata: {version: 1}\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = TaskManager(include_path=str(tmp_path))
    scored = run_tasks(both[0], "nouns", shots=0, include_path=str(tmp_path))
    by_metric = {row["metric"]: row for row in scored}
    theirs = lm_eval.simple_evaluate(both[1], tasks=["nouns"], num_fewshot=0, bootstrap_iters=100, task_manager=manager)
    assert by_metric["acc"]["value"] == theirs["results"]["nouns"]["acc,none"] and by_metric["acc"]["chance"] == 0.5
    pairs = [(row["beginnings"][row["gold"]], " " + row["end"]) for row in rows]
    right = [value for value, _ in both[1].loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)]
    assert 0 < by_metric["acc"]["value"] < 1 and by_metric["answer_loglik"]["value"] == pytest.approx(
        np.mean(right), abs=1e-4
    )


def test_shots_of_a_task_do_not_stay_for_the_next(both, tmp_path, monkeypatch):
    """lm-eval keeps 0 shots in a task that it was given once: each number as lm-eval scores it in a process of its own."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    sums_in(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    seen = {}
    for shots in (0, 3, 0):
        theirs = lm_eval.simple_evaluate(
            both[1],
            tasks=["sums"],
            num_fewshot=shots,
            bootstrap_iters=100,
            task_manager=TaskManager(include_path=str(tmp_path)),
        )
        wanted = {row["metric"]: row["value"] for row in choice_rows("sums", theirs["samples"]["sums"])}
        scored = run_tasks(both[0], "sums", shots=shots, include_path=str(tmp_path))
        seen[shots] = {row["metric"]: row["value"] for row in scored}
        assert seen[shots]["answer_loglik"] == pytest.approx(wanted["answer_loglik"], abs=1e-4)
    assert abs(seen[0]["answer_loglik"] - seen[3]["answer_loglik"]) > 1e-3


def test_tasks_of_lm_eval_are_in_the_suite(data_path, tmp_path, monkeypatch):
    """lm-eval/NAME in a configuration: its name and its data are checked when the suite is made."""
    from emergence_train.config import TaskConfig
    from emergence_train.data.dataset import Dataset
    from emergence_train.data_config import Data
    from emergence_train.evaluation.suite import Suite
    from support import small_config

    dataset = Dataset(Data.model_validate(small_config(data_path, tmp_path)["data"]), 1, verify=False)
    with pytest.raises(InputError, match="did you mean 'hellaswag'"):
        Suite([TaskConfig(task="lm-eval/hellaswagg")], dataset, 32)
    models = []
    monkeypatch.setattr(lm_eval_adapter.Tasks, "load", lambda self, names: models.extend(names))
    suite = Suite([TaskConfig(task="lm-eval/hellaswag", items=2)], dataset, 32)
    assert suite.tasks == [] and suite.of_lm_eval[0].task == "lm-eval/hellaswag" and models == ["hellaswag"]

    def offline(self, names):
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(lm_eval_adapter.Tasks, "load", offline)
    with pytest.raises(
        InputError, match="hellaswag: its data are unavailable .Couldn't reach it on the Hub.; offline, set"
    ):
        Suite([TaskConfig(task="lm-eval/hellaswag")], dataset, 32)
