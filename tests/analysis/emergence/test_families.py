"""Which runs are pooled: by columns, by run directories, by names; the ladders are public ones' and made-up variants of them."""

import json

import pandas as pd
import pytest

from emergence_train.analysis.emergence import analyze_emergence
from emergence_train.analysis.emergence.families import families, with_data
from emergence_train.analysis.emergence.output import format_table

M = 10**6
OLMO = [f"{size}M-{times}xC" for size in (190, 370, 760) for times in ("0.5", "1", "2", "5", "10")]


def frame(runs: dict[str, int], **columns) -> pd.DataFrame:
    return pd.DataFrame({"run": list(runs), "params": list(runs.values())}).assign(**columns)


def grouped(table: pd.DataFrame) -> set[frozenset[str]]:
    names = families(table).names
    return {frozenset(rows["run"]) for _, rows in table.groupby(names)}


@pytest.mark.parametrize(
    "runs",
    [
        {name: int(name.split("M")[0]) * M for name in OLMO} | {"190M-1xC-rerun": 190 * M, "1B-1xC-seed2": 1000 * M},
        {f"rerun-{times}xC-{size}m-lr3e-4": size * M for size in (70, 160) for times in (1, 20)},
        {f"adamw/d={d}_l=8/0.5xC": d * M for d in (96, 512, 1024)} | {"muon/d=96_l=8/2xC_v2": 96 * M},
        {f"gpt2-{name}": number * M for number, name in enumerate(("small", "medium", "large", "xl"), 1)},
        {"c4-d=96_l=8-0.25": 6 * M, "c4-d=512_l=8-16.0": 53 * M, "c4-open_lm_1b-1.0": 1300 * M, "c4-open_lm_7b-1.0": 6700 * M},
        {f"alpha-{size}m": size * M for size in (70, 160, 410)} | {"alpha-160m-fast": 160 * M},
    ],
    ids=["multiplier", "front", "shapes", "words", "continued", "variant"],
)  # fmt: skip
def test_one_ladder_is_one_family_by_any_names(runs):
    assert grouped(frame(runs)) == {frozenset(runs)}


def test_two_ladders_are_two_families_by_names():
    pythia = {f"pythia-{size}m-{times}xC": size * M for size in (70, 160) for times in (1, 2)}
    deduped = {name.replace("pythia", "pythia-deduped"): size for name, size in pythia.items()}
    olmo = {"OLMo-1B": 1000 * M, "OLMo-7B-rerun": 7000 * M}
    table = frame(pythia | deduped | olmo)
    assert grouped(table) == {frozenset(pythia), frozenset(deduped), frozenset(olmo)}
    decided = families(table)
    assert decided.decided_by == "names" and "3 families" in decided.notes[0]
    assert [part.sizes for part in decided.results(table)] == [2, 2, 2]


def test_versions_of_a_model_are_families_by_names():
    llamas = {"llama-2-7b": 7000 * M, "llama-2-13b": 13000 * M, "llama-3-8b": 8000 * M, "llama-3-70b": 70000 * M}
    assert len(grouped(frame(llamas))) == 2
    seeds = {"olmo-1b-2": 1000 * M, "olmo-1b-3": 1000 * M, "olmo-7b-2": 7000 * M}
    assert len(grouped(frame(seeds))) == 1


def test_columns_decide_before_names():
    runs = {"pythia-70m": 70 * M, "pythia-160m": 160 * M, "olmo-1b": 1000 * M, "olmo-7b": 7000 * M}
    pooled = families(frame(runs, vocabulary="neox"))
    assert set(pooled.names) == {"neox"} and pooled.decided_by == "vocabulary" and not pooled.notes
    assert len(grouped(frame(runs, vocabulary=["a", "b", "a", "b"]))) == 2
    both = families(frame(runs, vocabulary="neox", family=["x", "y", "x", "y"]))
    assert set(both.names) == {"x", "y"} and both.decided_by == "family"
    four = families(frame(runs, vocabulary=["a", "a", "b", "b"], family=["x", "y", "x", "y"]))
    assert set(four.names) == {"a:x", "a:y", "b:x", "b:y"} and four.decided_by == "vocabulary, family"


def test_run_directories_of_other_data_are_not_pooled(tmp_path):
    """One tokenizer, two prepared data sets: each run's losses are of its own validation text."""
    runs = {name: 10 * M for name in ("a", "b", "c")}
    for name, data in (("a", "1111"), ("b", "2222")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.json").write_text(json.dumps({"data": data, "vocabulary": "v"}))
    shown = {tmp_path / name: name for name in runs}
    table = with_data(frame(runs, vocabulary="v"), list(shown), shown)
    assert grouped(table) == {frozenset(name) for name in runs}
    same = with_data(frame({"a": 10 * M, "c": 10 * M}, vocabulary="v"), list(shown), shown)
    assert grouped(same) == {frozenset("ac")}  # an older run has no digest: nothing says that it is of other data
    assert set(families(same).names) == {"v"}


def test_families_of_one_row_are_one_line_with_the_remedy(tmp_path):
    """A run of one checkpoint each, called by its data: 20 families without a ladder among them were 20 sections."""
    runs = {f"{word}-recipe-{size}m": size * M for word in ("web", "code") for size in (70, 160, 410)}
    runs |= {f"mix{letter}-{letter * 3}-70m": 70 * M for letter in "abcdefghijklmnopqr"}
    table = frame(runs, step=1, tokens=10**9, task="t", metric="acc", value=0.3, items=500, chance=0.25)
    table = table.assign(loss=[3 - 0.01 * k for k in range(len(table))])
    table.to_csv(tmp_path / "t.csv", index=False)
    result = analyze_emergence(tmp_path / "t.csv")
    text = format_table(result)
    assert len(result.families) == 20 and "20 families are not-identified, with at most 3 rows a task" in text
    assert "a column vocabulary or family with one value pools them" in text and "mixa-aaa:" not in text
    table.assign(family="one").to_csv(tmp_path / "t.csv", index=False)
    assert len(analyze_emergence(tmp_path / "t.csv").families) == 1


def test_families_of_rows_enough_say_their_own_reason(tmp_path):
    """One of rows enough without a loss below the unigram model's was said to have too few, with a remedy that pools it."""
    step = [1, 2, 3, 4, 5, 6] * 2
    own = {"run": ["a"] * 6 + ["b"] * 6, "family": ["a"] * 6 + ["b"] * 6, "step": step}
    table = pd.DataFrame(own).assign(params=M, tokens=lambda t: t["step"] * M, loss=lambda t: 5 - t["step"] / 4)
    table = table.assign(task="t", metric="acc", value=0.3, items=500, chance=0.25, unigram_loss=7.0)
    table.loc[6:, "loss"] += 5
    table.to_csv(tmp_path / "t.csv", index=False)
    text = format_table(analyze_emergence(tmp_path / "t.csv"))
    assert "b:\n" in text and "no loss is below the unigram model's" in text and "pools them" not in text
