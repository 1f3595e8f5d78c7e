"""Task results of other programs: what a file says is what is analysed, and all that it leaves out is named at once."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from emergence_train import cli
from emergence_train.analysis.emergence import investigate
from emergence_train.analysis.scores import FORMATS, ScoreOptions, options_of, with_scores
from emergence_train.analysis.scores.complete import fill_chance
from emergence_train.errors import InputError
from emergence_train.recorder import tables

STEPS = [1000, 2000, 4000, 8000]


def read(paths, **options) -> tuple[pd.DataFrame, list[str]]:
    """The table of evaluations, as the analysis reads it, by step, task and metric."""
    known, notes = with_scores([str(path) for path in paths], ScoreOptions(**options))
    frame = tables.read(tables.EVALUATIONS, known, mixed_vocabularies=True)
    return frame.set_index(["run", "step", "task", "metric"]).sort_index(), notes


def harness_results(folder, step: int, accuracy: float, bits: float):
    """As lm-eval writes them (0.4.13; the real one is run below), shortened."""
    content = {
        "results": {
            "arc_easy": {"alias": "arc_easy", "acc,none": accuracy, "acc_stderr,none": 0.01, "acc_norm,none": 0.5},
            "wikitext": {"alias": "wikitext", "bits_per_byte,none": bits, "bits_per_byte_stderr,none": "N/A"},
            "gsm8k": {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.02},
        },
        "n-samples": {"arc_easy": {"original": 2376, "effective": 2000}},
        "higher_is_better": {"arc_easy": {"acc": True}, "wikitext": {"bits_per_byte": False}},
        "config": {
            "model": "hf",
            "model_args": f"pretrained=EleutherAI/pythia-70m,revision=step{step},dtype=float32",
            "model_num_parameters": 70426624,
        },
        "model_name": "EleutherAI/pythia-70m",
    }
    path = folder / f"EleutherAI__pythia-70m_{step}" / f"results_2026-11-0{step // 1000}T00-00-00.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content, indent=2))
    return path


def test_groups_of_lm_eval_have_their_items(tmp_path):
    """lm-eval counts the items of tasks apart (n-samples), those of a group beside its scores alone."""
    path = harness_results(tmp_path, 1000, accuracy=0.3, bits=1.0)
    content = json.loads(path.read_text())
    content["results"]["arc"] = {
        "alias": "arc",
        "sample_len": 3500,
        "acc,none": 0.25,
        "sample_count": {"acc,none": 3500},
    }
    content["results"]["arc_easy"]["sample_len"] = 2000
    path.write_text(json.dumps(content))
    frame, _ = read([path], tokens_per_step=8, loss="wikitext/bits_per_byte")
    items = frame.loc[("pythia-70m", 1000)]["items"]
    assert items["arc", "acc"] == 3500 and items["arc_easy", "acc"] == 2000
    assert math.isnan(items["gsm8k", "exact_match_strict-match"])


def test_results_of_lm_eval_are_evaluations(tmp_path):
    """A directory of results, the loss from one of them; steps from revisions, errors and items as they are."""
    for step in STEPS:
        harness_results(tmp_path / "results", step, accuracy=step / 10_000, bits=2 - step / 10_000)
    frame, notes = read([tmp_path / "results"], tokens_per_step=2_097_152, loss="wikitext/bits_per_byte")
    row = frame.loc["pythia-70m", 4000, "arc_easy", "acc"]
    assert (row["value"], row["stderr"], row["items"], row["chance"]) == (0.4, 0.01, 2000, 0.25)
    assert (row["loss"], row["tokens"], row["params"]) == (1.6 * math.log(2), 4000 * 2_097_152, 70426624)
    assert any("the loss is in nats a byte" in note for note in notes)
    assert set(frame.index.get_level_values("task")) == {"arc_easy", "gsm8k"} and len(frame) == 4 * 3
    assert frame.loc["pythia-70m", 1000, "gsm8k", "exact_match_strict-match"]["stderr"] == 0.02
    assert notes[0].startswith("4 files: pythia-70m (4 steps); the first is ") and "lm-eval, 3 tasks" in notes[0]
    assert not any("step 8000" in note for note in notes)  # a line a file would bury the result
    assert "loss from wikitext/bits_per_byte" in notes and any("arc_easy 0.25" in note for note in notes)


def test_a_log_gives_the_loss_of_each_step(tmp_path):
    """Straight between logged steps, nothing beyond them; the log is any that analyze temporal reads."""
    path = harness_results(tmp_path, 1500, 0.3, 1.0)
    log = tmp_path / "eval.csv"
    log.write_text("step,loss\n1000,3.0\n2000,2.0\n")
    frame, notes = read([path], tokens_per_step=1000, loss=str(log), run="mine")
    assert set(frame["loss"]) == {2.5} and set(frame.index.get_level_values("run")) == {"mine"}
    assert any(
        "is of steps 1000 to 2000" in str(error)
        for error in [refusal([harness_results(tmp_path, 3000, 0.3, 1.0)], tokens_per_step=1000, loss=str(log))]
    )


def refusal(paths, **options) -> InputError:
    with pytest.raises(InputError) as caught:
        read(paths, **options)
    assert "\n" not in str(caught.value)
    return caught.value


def test_all_that_is_missing_is_one_message(tmp_path):
    """And what it says to give completes the results."""
    path = tmp_path / "scores.csv"
    path.write_text("benchmark,accuracy\nhellaswag,0.3\n")
    says = str(refusal([path]))
    assert "run, params, step, tokens, loss are not said" in says
    for flag in ("--run NAME", "--params N", "--tokens-per-step N", "--loss FILE", "--column step=NAME"):
        assert flag in says
    full = tmp_path / "full.csv"
    full.write_text("subject,share right,at,ce\nhellaswag,0.3,10,2.5\npiqa,0.6,10,2.5\n")
    columns = {"task": "subject", "value": "share right", "step": "at", "loss": "ce"}
    frame, _ = read([full], columns=columns, params={"": 5}, run="r", tokens_per_step=7)
    row = frame.loc["r", 10, "piqa", "score"]
    assert (row["params"], row["tokens"], row["loss"], row["value"]) == (5, 70, 2.5, 0.6) and len(frame) == 2


def test_records_of_olmes_are_evaluations(tmp_path):
    """metrics-all.jsonl, a task a line, and metrics.json with the list of them."""
    lines = [
        {
            "task_name": task,
            "model_config": {"model": "OLMo-1B", "revision": "step1000-tokens4B"},
            "num_instances": 500,
            "metrics": {"primary_score": value, "acc_raw": value / 2, "predicted": "text"},
        }
        for task, value in (("arc_challenge", 0.3), ("piqa", 0.6))
    ]
    path = tmp_path / "metrics-all.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = tmp_path / "metrics.json"
    whole.write_text(json.dumps({"tasks": lines, "all_primary_scores": ["arc_challenge: 0.3"]}))
    log = tmp_path / "l.csv"
    log.write_text("run,step,loss\nOLMo-1B,500,3\nOLMo-1B,1500,2\n")
    for source in (path, whole):
        frame, notes = read([source], loss=str(log))
        row = frame.loc["OLMo-1B", 1000, "piqa", "acc_raw"]
        assert (row["value"], row["items"], row["params"], row["tokens"], row["loss"]) == (
            0.3,
            500,
            10**9,
            4 * 10**9,
            2.5,
        )
        assert len(frame) == 4 and "OLMES, 4 metrics of OLMo-1B, step 1000" in notes[0]


def test_the_primary_score_of_olmes_is_no_metric_of_its_own(tmp_path):
    """It repeats one of the others: beside it, it would count twice, and as continuous."""
    metrics = {"primary_score": 0.3, "acc_raw": 0.2, "acc_per_char": 0.3}
    record = {"task_name": "piqa", "model_config": {"model": "OLMo-1B", "revision": "step10"}, "metrics": metrics}
    (tmp_path / "metrics-all.jsonl").write_text(json.dumps(record) + "\n")
    log = tmp_path / "l.csv"
    log.write_text("step,loss\n5,3\n15,2\n")
    frame, _ = read([tmp_path / "metrics-all.jsonl"], loss=str(log), tokens_per_step=100)
    assert set(frame.index.get_level_values("metric")) == {"acc_raw", "acc_per_char"}


def test_a_spreadsheet_of_percents_by_task_is_read(tmp_path):
    """A column a task without a metric, semicolons, a sign of percent; lambada is no choice."""
    path = tmp_path / "x.csv"
    path.write_text("model;step;params;loss;arc_challenge;LAMBADA\n" + "m;10;5;3;31.5%;0.5\nm;20;5;2;42%;0.6\n")
    frame, notes = read([path], tokens_per_step=7)
    assert frame.loc["m", 20, "arc_challenge", "accuracy"][["value", "chance", "tokens"]].tolist() == [0.42, 0.25, 140]
    assert frame.loc["m", 10, "lambada", "score"]["value"] == 0.5 and len(frame) == 4
    assert "a column a task, 2 of them" in notes[0]


def test_columns_of_tasks_are_read_and_others_named(tmp_path):
    """As OLMo logs them, a column a task; percent stays percent."""
    path = tmp_path / "olmo.csv"
    path.write_text(
        "model,params,step,tokens,val_loss,eval/downstream/arc_easy_acc,piqa/acc_norm,throughput\n"
        "olmo,190M,100,1000,3.5,25.5,51,9\nolmo,190M,200,2000,3.1,31,,9\n"
    )
    frame, [note, chance] = read([path])
    assert frame["value"].to_dict() == {
        ("olmo", 100, "arc_easy", "acc"): 25.5,
        ("olmo", 200, "arc_easy", "acc"): 31.0,
        ("olmo", 100, "piqa", "acc_norm"): 51.0,
    }
    assert set(frame["params"]) == {190_000_000} and frame.loc["olmo", 200, "arc_easy", "acc"]["loss"] == 3.1
    assert "left out: throughput" in note and "a column a task, 2 of them" in note
    assert chance == "chance by the number of choices: arc_easy 25, piqa 50"


def test_names_of_harnesses_give_chance_by_their_choices():
    """Names of lm-eval, also from before 0.4: MMLU was hendrycksTest. A name that only begins like a known one is unknown."""
    known = {"hendrycksTest-astronomy": 0.25, "mmlu_astronomy": 0.25, "swag": 0.25, "mathqa": 0.2, "xnli_fr": 1 / 3}
    known |= dict.fromkeys(
        ("wsc273", "wsc", "blimp_adjunct", "xcopa_id", "xstory_cloze_en", "xwinograd_en", "qqp"), 0.5
    )
    known |= {
        "openbook_qa": 0.25,
        "logi_qa": 0.25,
        "math_qa": 0.2,
        "winograd": 0.5,
        "gpqa_diamond": 0.25,
        "pubmedqa": 1 / 3,
    }
    known |= {"pubmed_qa_labeled": 1 / 3, "commonsenseqa": 0.2}  # as DCLM's evaluations call them
    unknown = ["hendrycks_ethics", "mathqa2", "swagger", "wsc27", "blimpish", "lambada_openai", "math", "winograde"]
    frame = pd.DataFrame({"run": "m", "task": [*known, *unknown], "metric": "acc", "value": 0.4, "chance": np.nan})
    fill_chance(frame, [])
    assert frame["chance"].fillna(-1).tolist() == [*known.values(), *[-1] * len(unknown)]


def test_a_leaderboard_of_helm_is_evaluations(tmp_path):
    path = tmp_path / "core_scenarios.csv"
    path.write_text(
        "Model/adapter,Mean win rate,MMLU - EM,BoolQ - EM,NarrativeQA - F1,step,tokens,loss\n"
        "m-70m,0.2,0.25,0.5,0.1,10,100,3.0\nm-1.4b,0.4,0.35,0.7,0.3,10,100,2.5\n"
    )
    frame, notes = read([path])
    assert frame.loc["m-1.4b", 10, "BoolQ", "exact_match"]["value"] == 0.7
    assert frame.loc["m-1.4b", 10, "BoolQ", "exact_match"]["chance"] == 0.5
    assert set(frame["params"]) == {70_000_000, 1_400_000_000} and len(frame) == 6
    assert "HELM, a column a scenario, 3 of them" in notes[0] and "left out: Mean win rate" in notes[0]


def helm_run(suite, task: str, revision: str, stats: list[tuple]) -> None:
    """As the classes of HELM 0.5.16 serialise a run; a statistic is (name, split, mean, more of its name)."""
    model = f"EleutherAI/pythia-70m@{revision}"
    folder = suite / f"{task},model={model.replace('/', '_')}"
    folder.mkdir(parents=True)
    adapter = {"method": "multiple_choice_joint", "num_train_trials": 1, "model_deployment": model, "model": model}
    spec = {"name": folder.name, "scenario_spec": {"class_name": "x"}, "adapter_spec": adapter, "groups": ["mmlu"]}
    (folder / "run_spec.json").write_text(json.dumps(spec, indent=2))
    rows = [
        {"name": {"name": name, "split": split, **more}, "count": 1, "sum": mean, "sum_squared": mean**2, "mean": mean}
        | {"min": mean, "max": mean, "variance": 0.0, "stddev": 0.0}
        for name, split, mean, more in stats
    ]
    rows.append({"name": {"name": "inference_runtime", "split": "test"}, "count": 0, "sum": 0, "sum_squared": 0})
    (folder / "stats.json").write_text(json.dumps(rows, indent=2))
    (folder / "per_instance_stats.json").write_text("[]")


def test_a_suite_of_helm_runs_is_evaluations(tmp_path):
    """Steps from the model's revision; what counts, times or perturbs is left out, and test goes before valid."""
    worst = {"perturbation": {"name": "robustness", "robustness": True, "fairness": False, "computed_on": "worst"}}
    for step, right in ((1000, 0.3), (2000, 0.5)):
        helm_run(
            tmp_path / "suite",
            "mmlu:subject=anatomy",
            f"step{step}",
            [
                ("num_instances", "test", 135.0, {}),
                ("exact_match", "valid", 0.9, {}),
                ("exact_match", "test", right, {}),
                ("exact_match", "test", 0.1, worst),
                ("exact_match", "test", 0.2, {"sub_split": "part"}),
                ("num_prompt_tokens", "test", 500.0, {}),
                ("quasi_exact_match", "valid", 0.4, {}),
            ],
        )
    given = {"params": {"": 18_915_328}, "tokens_per_step": 2_097_152, "loss": str(losses_of(tmp_path))}
    frame, notes = read([tmp_path / "suite"], **given)
    row = frame.loc["pythia-70m", 2000, "mmlu:subject=anatomy", "exact_match"]
    assert (row["value"], row["items"], row["params"], row["tokens"]) == (0.5, 135, 18_915_328, 2000 * 2_097_152)
    assert frame.loc["pythia-70m", 1000, "mmlu:subject=anatomy", "quasi_exact_match"]["value"] == 0.4
    assert len(frame) == 4 and "left out: num_prompt_tokens" in notes[0] and "split test, valid" in notes[0]


def losses_of(folder):
    """A log of losses by step, for --loss."""
    path = folder / "loss.csv"
    pd.DataFrame({"step": [1000, 2000], "loss": [3.2, 3.0], "tokens": [2 * 10**9, 4 * 10**9]}).to_csv(path, index=False)
    return path


def test_the_analysis_of_results_is_that_of_the_same_table(tmp_path, capsys):
    """lm-eval's files and our own table with the same numbers: the same verdict, threshold and rows."""
    rng = np.random.default_rng(0)
    rows = []
    for k, step in enumerate(range(1000, 9000, 400)):
        loss = 4 - 0.1 * k
        value = float(rng.binomial(2000, 0.25 + 0.5 * max(0, (3 - loss) / 2)) / 2000)
        path = harness_results(tmp_path / "theirs" / str(step), step, value, 1.0)
        content = json.loads(path.read_text())
        content["results"] = {"arc_easy": {"acc,none": value, "acc_stderr,none": 0.01}}
        path.write_text(json.dumps(content))
        rows.append((step, loss, value))
    frame = pd.DataFrame(rows, columns=["step", "loss", "value"]).assign(run="pythia-70m", params=70426624)
    frame = frame.assign(
        tokens=frame["step"] * 1000, task="arc_easy", metric="acc", items=2000, chance=0.25, stderr=0.01
    )
    own, log = tmp_path / "own.csv", tmp_path / "losses.csv"
    frame.assign(higher_is_better=True).to_csv(own, index=False)
    frame[["step", "loss"]].to_csv(log, index=False)
    wanted = investigate([own]).result.tasks[0]
    words = [
        "analyze",
        "emergence",
        str(tmp_path / "theirs"),
        "--loss",
        str(log),
        "--tokens-per-step",
        "1000",
        "--json",
    ]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out)
    [task] = result["tasks"]
    assert (task["verdict"], task["rows"], task["task"]) == (wanted.verdict, wanted.rows, "arc_easy")
    assert task["eta"] is None if wanted.eta is None else task["eta"]["value"] == pytest.approx(wanted.eta.value)
    assert any("lm-eval, 1 tasks of pythia-70m, step 1000" in note for note in result["notes"])


def test_finished_runs_need_no_steps(tmp_path):
    """A row a run: its tokens tell its checkpoint from none. Of several rows a run somebody must say the steps."""
    rows = [f"r{k},{10**8 * (k + 1)},{10**10 + k},{3.5 - k / 10},{0.2 + k / 20}" for k in range(8)]
    table = tmp_path / "results.csv"
    table.write_text("\n".join(["run,params,tokens,loss,piqa/acc", *rows]))
    frame, notes = read([table])
    assert list(frame.index.get_level_values("step")) == list(frame["tokens"]) == [10**10 + k for k in range(8)]
    assert any("whose tokens stand for it" in note for note in notes)
    table.write_text(table.read_text() + "\n" + rows[0].replace(str(10**10), str(10**9)))
    assert "step is not said" in str(refusal([table]))


def test_an_empty_cell_is_named_by_its_run(tmp_path):
    """The remedy that was given already is not said again; without that row the scores are read."""
    path, columns = tmp_path / "x.csv", {"tokens": "Data", "step": "at", "params": "size", "loss": "ce"}
    rows = [
        "Model,size,Data,at,ce,MMLU",
        "a,7000,2000,100,2.1,0.43",
        "b,6700,1000,100,2.2,0.35",
        "c,8000,,100,2.0,0.66",
    ]
    path.write_text("\n".join(rows) + "\n")
    says = str(refusal([path], columns=columns))
    assert (
        "x.csv: tokens of 'c' is not said by the results; give tokens: numbers in its empty cells, or the table" in says
    )
    assert "--column" not in says
    path.write_text("\n".join(rows[:3]) + "\n")
    assert len(read([path], columns=columns)) == 2


def test_wrong_options_of_results_are_one_line(tmp_path):
    with pytest.raises(InputError, match="--format x: unknown; choose auto, evaluations, lm-eval"):
        options_of("x", None, [], None, [], None)
    with pytest.raises(InputError, match="--column a=b: write it as OURS=NAME with one of run"):
        options_of("auto", None, [], None, ["a=b"], None)
    with pytest.raises(InputError, match="--params a=b: write it as N or RUN=N"):
        options_of("auto", None, ["a=b"], None, [], None)
    path = harness_results(tmp_path, 1000, 0.3, 1.0)
    assert "no such run; the results are of pythia-70m" in str(refusal([path], params={"x": 5}))
    says = refusal([path], tokens_per_step=5, loss="wikitext/nothing")
    assert "the results have no such metric (of losses they have wikitext/bits_per_byte); give a log, or" in str(says)
    log = tmp_path / "l.csv"
    log.write_text("run,step,loss\na,1,2\na,3000,2\nb,1,2\nb,3000,2\n")
    assert "has no run 'pythia-70m' (it has a, b); name the runs alike" in str(refusal([path], loss=str(log)))
    text = tmp_path / "x.csv"
    text.write_text("a,b\n1,2\n")
    assert "no column was recognised as task or value" in str(refusal([text], format="csv"))
    assert "has no column 'z' (it has a, b); correct --column value=z" in str(
        refusal([text], columns={"value": "z"}, format="csv")
    )
    assert "not task results that are known; give --format" in str(refusal([text], run="r"))
    own = tmp_path / "runs" / "r"
    (own / "evaluations").mkdir(parents=True)
    assert "is a table of evaluations, which says all of that itself" in str(refusal([own], run="r"))
    assert set(FORMATS) == {"lm-eval", "lighteval", "olmes", "helm", "csv"}


@pytest.mark.slow
def test_results_that_the_real_lm_eval_writes_are_read(tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    rows = [{"q": f"{k} plus {k} is", "choices": [f"{2 * k}", f"{2 * k + 1}"], "gold": 0} for k in range(20)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{gold}}'\nmetric_list: [{metric: acc}]\nmetadata: {version: 1}\n"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    tracker = EvaluationTracker(output_path=str(tmp_path / "out"))
    results = lm_eval.simple_evaluate(
        "dummy", model_args="pretrained=me/model-5m,revision=step300", tasks=["sums"], bootstrap_iters=10, task_manager=manager,
        evaluation_tracker=tracker,
    )  # fmt: skip
    wanted = results["results"]["sums"]
    tracker.save_results_aggregated(results=results)
    log = tmp_path / "l.csv"
    log.write_text("step,loss\n100,3\n300,2.5\n")
    frame, notes = read([tmp_path / "out"], tokens_per_step=10, loss=str(log))
    row = frame.loc["model-5m", 300, "sums", "acc"]
    assert (row["value"], row["stderr"], row["items"]) == (wanted["acc,none"], wanted["acc_stderr,none"], 20)
    assert (row["params"], row["loss"], row["tokens"]) == (5_000_000, 2.5, 3000) and "lm-eval, 1 tasks" in notes[0]


def test_our_table_beside_a_log_keeps_its_own_columns(tmp_path):
    """That a page has logs too says nothing of the scores: a table of ours is read as ours, with its unigram_loss."""
    row = {"run": "a", "params": 9, "step": 1, "tokens": 5, "loss": 3.0, "task": "t", "metric": "acc", "value": 0.5}
    file = tmp_path / "scores.csv"
    pd.DataFrame([row | {"unigram_loss": 5.5}]).to_csv(file, index=False)
    frame, notes = read([file], elsewhere=frozenset({"curve"}))
    assert frame["unigram_loss"].tolist() == [5.5] and not notes
