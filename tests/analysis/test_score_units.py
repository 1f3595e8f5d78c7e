"""Percents, shares, bits and perplexities in tables of results: the same scores are the same however they are written."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import investigate
from emergence_train.analysis.scores import ScoreOptions, with_scores
from emergence_train.analysis.scores.percents import numbers
from emergence_train.errors import InputError
from emergence_train.recorder import tables

STEPS = [1000, 2000, 4000, 8000]
SHARES = [0.28, 0.31, 0.34, 0.37]


def read(path, **options):
    known, notes = with_scores([path], ScoreOptions(**options))
    frame = tables.read(tables.EVALUATIONS, known, mixed_vocabularies=True)
    return frame.sort_values(["run", "task", "metric", "step"]), " ".join(notes)


def table(folder, header: str, rows: list[str], name: str = "x.csv"):
    """Rows of a run of 70M parameters, a step each."""
    lines = [f"m,70M,{step},{step * 1000},{row}" for step, row in zip(STEPS, rows)]
    (folder / name).write_text(f"model,params,step,tokens,{header}\n" + "\n".join(lines) + "\n")
    return folder / name


LAYOUTS = {
    "a row a score": "loss,task,metric,value,stderr|3,hellaswag,acc,{value},{error}",
    "a column a task": "loss,hellaswag_acc,hellaswag_acc_stderr|3,{value},{error}",
    "a column a metric": "loss,task,acc,acc_stderr|3,hellaswag,{value},{error}",
}
ERRORS = {  # of a value and its error as written: what they are
    ("{:.2f}%", "0.44"): (0.01, 0.0044),
    ("{:.2f} %", "0.44"): (0.01, 0.0044),
    ("{:.2f}%", "0.44%"): (0.01, 0.0044),
    ("{:.2f}%", "0.0044"): (0.01, 0.0044),
    ("{:.2f}", "0.44"): (1, 0.44),
    ("{:.2f}", "0.44%"): (1, 0.44),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("written", ERRORS)
def test_an_error_is_in_the_unit_of_its_value(layout, written, tmp_path):
    header, row = LAYOUTS[layout].split("|")
    value, error = written
    rows = [row.format(value=value.format(100 * share), error=error) for share in SHARES]
    frame, notes = read(table(tmp_path, header, rows))
    scale, stderr = ERRORS[written]
    np.testing.assert_allclose(frame["value"], 100 * scale * np.array(SHARES))
    np.testing.assert_allclose(frame["stderr"], stderr)
    assert ("stderr without a sign of percent" in notes) == ("%" in value and "%" not in error)


def test_a_share_keeps_the_percent_of_its_error(tmp_path):
    rows = [f"3,hellaswag,acc,{share},0.44%" for share in SHARES]
    frame, _ = read(table(tmp_path, "loss,task,metric,value,stderr", rows))
    assert frame["value"].tolist() == SHARES and set(frame["stderr"]) == {0.0044}


@pytest.mark.parametrize("value, chance, known", [("28%", "25", 0.25), ("28%", "0.25", 0.25), ("28", "25%", 25)])
def test_chance_is_in_the_unit_of_its_value(value, chance, known, tmp_path):
    frame, _ = read(table(tmp_path, "loss,task,metric,value,chance", [f"3,q,acc,{value},{chance}"] * 4))
    assert set(frame["chance"]) == {known}


def test_other_metrics_of_a_table_of_percents_stay(tmp_path):
    """Beside accuracies with a sign a perplexity and its error have none."""
    rows = [
        f"3,hellaswag,acc,{share:.0%},0.44\nm,70M,{s},{s * 1000},3,w,ppl,30.5,0.2" for s, share in zip(STEPS, SHARES)
    ]
    frame, _ = read(table(tmp_path, "loss,task,metric,value,stderr", rows))
    both = frame.groupby("task")[["value", "stderr"]].max()
    assert both.loc["w"].tolist() == [30.5, 0.2] and both.loc["hellaswag"].tolist() == [0.37, 0.0044]


CELLS = {  # of 28%: what the value is
    "{:.1f}% ± 0.4": 0.01,
    "{:.1f}% ± 0.4%": 0.01,
    "{:.1f} ± 0.4%": 0.01,
    "{:.1f} % +/- 0.4": 0.01,
    "({:.1f} ± 0.4)%": 0.01,
    "{:.1f}%+-0.4": 0.01,
    "{:.1f} ± 0.4": 1,
    "{:.1f}%": 0.01,
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_percent_is_read_before_its_error(cell, tmp_path):
    rows = [f"3,{cell.format(100 * share)},0.5" for share in SHARES]
    frame, notes = read(table(tmp_path, "loss,hellaswag,lambada", rows))
    values = frame.loc[frame["task"] == "hellaswag", "value"]
    np.testing.assert_allclose(values, 100 * CELLS[cell] * np.array(SHARES))
    assert "no numbers" not in notes


@pytest.mark.parametrize("header, row", [("loss,hellaswag", "3,{}"), ("loss,task,metric,value", "3,hellaswag,acc,{}")])
@pytest.mark.parametrize("cells", [["28.0", "31.0%", "34.0", "37.0%"], ["28.0%", "0.31", "34%", "37%"]])
def test_signs_in_some_cells_of_a_task_are_refused(cells, header, row, tmp_path):
    path = table(tmp_path, header, [row.format(cell) for cell in cells])
    with pytest.raises(
        InputError, match=r"x.csv: hellaswag .* has values with a sign of percent and without \(.*\); write"
    ):
        read(path)
    frame, _ = read(table(tmp_path, header, [row.format(cell.rstrip("%") + "%") for cell in cells]))
    assert frame["value"].max() == 0.37
    zero = [row.format(cell) for cell in ("0", "31%", "34%", "37%")]
    assert read(table(tmp_path, header, zero))[0]["value"].tolist() == [0, 0.31, 0.34, 0.37]


BITS = np.array([3.5, 3.361, 3.223, 3.084])
LOSSES = {
    "loss": BITS,
    "loss (nats)": BITS,
    "loss (bits)": BITS / math.log(2),
    "Loss [bits/token]": BITS / math.log(2),
    "val_loss (ppl)": np.exp(BITS),
    "loss (log2)": BITS / math.log(2),
    "loss [base 2]": BITS / math.log(2),
    "loss (exp)": np.exp(BITS),
    "bits_per_token": BITS / math.log(2),
    "val_ppl": np.exp(BITS),
    "Perplexity": np.exp(BITS),
    "log_ppl": BITS,
}


@pytest.mark.parametrize(
    "column, layout",
    [*((column, "a row a score") for column in LOSSES), *(("loss (bits)", layout) for layout in LAYOUTS)],
)
def test_losses_of_a_table_are_in_nats(column, layout, tmp_path):
    header, row = LAYOUTS[layout].split("|")
    rows = [
        row.replace("3,", f"{loss:.5f},", 1).format(value=share, error=0.004)
        for loss, share in zip(LOSSES[column], SHARES)
    ]
    path = table(tmp_path, header.replace("loss", column, 1), rows)
    if not column.lower().startswith(("loss", "val_loss")):
        with pytest.raises(InputError, match=r"loss is not said .*or --column loss=NAME"):
            read(path)
    frame, notes = read(path, columns={"loss": column})
    np.testing.assert_allclose(frame["loss"], BITS, atol=1e-4)
    assert ("its losses in nats" in notes) == (column not in ("loss", "loss (nats)", "log_ppl"))


def test_unknown_units_of_a_table_are_noted_or_left_out(tmp_path):
    rows = [f"3,hellaswag,acc,{share}" for share in SHARES]
    path = table(tmp_path, "loss (dB),task,metric,value", rows)
    assert "'dB' is no unit that is known; its losses are taken as nats" in read(path)[1]
    path.write_text(path.read_text().replace("tokens", "tokens (per GPU)"))
    with pytest.raises(InputError, match=r"tokens is not said by the results; give tokens: --tokens-per-step N"):
        read(path)
    path.write_text(path.read_text().replace("loss (dB)", "loss (x1000)"))
    with pytest.raises(
        InputError, match=r"x.csv: 'loss \(x1000\)': by its name its losses are no nats; write them in nats"
    ):
        read(path)


@pytest.mark.parametrize("words", ["approx", "all GPUs", "incl. padding"])
def test_words_in_brackets_of_a_table_leave_counts(words, tmp_path):
    path = table(tmp_path, "loss,task,metric,value", [f"3,hellaswag,acc,{share}" for share in SHARES])
    path.write_text(path.read_text().replace("step,tokens", f"step (optimizer),tokens ({words})"))
    frame = read(path)[0]
    assert frame["step"].tolist() == STEPS and frame["tokens"].tolist() == [1000 * step for step in STEPS]


def test_a_share_rounded_above_one_is_no_percent(tmp_path):
    """Of float32; chance was 25 then, and the run's other values percents."""
    frame, _ = read(table(tmp_path, "loss,hellaswag_acc", [f"3,{value}" for value in (*SHARES[1:], "1.0000001")]))
    assert set(frame["chance"]) == {0.25}


def mixed(folder, unit: str):
    """Two models of one ability, the larger one's scores in percent or as shares."""
    rng, lines = np.random.default_rng(0), ["model,params,step,tokens,loss,hellaswag_acc,hellaswag_acc_stderr"]
    for run, params, gain in (("a", 7e7, 1), ("b", 1.6e8, 100 if unit == "percent" else 1)):
        for k in range(24):
            value = 0.25 + 0.25 * k / 24 + 0.002 * rng.standard_normal()
            lines.append(
                f"{run},{params},{1000 + k},{10**6 * (k + 1)},{4 - k / 16},{gain * value:.5f},{gain * 0.004:.5f}"
            )
    (folder / f"{unit}.csv").write_text("\n".join(lines) + "\n")
    return folder / f"{unit}.csv"


def test_a_run_in_percent_has_its_own_chance(tmp_path):
    """Chance was 25 for both, and a clear rise at chance."""
    frame, notes = read(mixed(tmp_path, "percent"))
    assert frame.groupby("run")["chance"].unique().map(list).to_dict() == {"a": [0.25], "b": [25]}
    assert "hellaswag 0.25 or 25 (percent)" in notes
    tasks = [investigate([mixed(tmp_path, unit)]).result.tasks[0] for unit in ("percent", "shares")]
    assert tasks[0].verdict == tasks[1].verdict == "gradual"
    assert tasks[0].size_effect.value == pytest.approx(tasks[1].size_effect.value, abs=1e-4)


def test_shares_and_percents_in_one_run_are_refused(tmp_path):
    """A percent below 1 is no accuracy of four choices; generated answers may be as rare."""
    path = table(tmp_path, "loss,hellaswag_acc,mmlu_em", ["3,0.28,0.4", "3,31,4", "3,34,5", "3,37,6"])
    with pytest.raises(InputError, match=r"'m' holds shares and percents of hellaswag, acc \(0.28 and 37\); write"):
        read(path)
    frame, _ = read(table(tmp_path, "loss,hellaswag_acc,mmlu_em", ["3,28,0.4", "3,31,4", "3,34,5", "3,37,6"]))
    assert set(frame["chance"]) == {25}


def test_percents_in_json_are_read(tmp_path):
    rows = [
        {
            "run": "m",
            "params": 5,
            "step": s,
            "tokens": s,
            "loss": 3,
            "task": "q",
            "metric": "acc",
            "value": v,
            "stderr": 0.4,
        }
        for s, v in ((1, "28%"), (2, "31%"))
    ]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    frame, _ = read(tmp_path / "x.json")
    assert frame["value"].tolist() == [0.28, 0.31] and set(frame["stderr"]) == {0.004}


def test_counts_in_words_and_letters_are_read():
    cells = pd.Series(["70 million", "2G", "70M", "1,000", "35.2% ± 0.4", "soon"])
    np.testing.assert_allclose(numbers(cells, "count"), [70e6, 2e9, 70e6, 1000, 0.352, np.nan])


OF_PERPLEXITY = {
    "lambada/ppl": ("lambada", "ppl"),
    "eval/downstream/c4_en_ppl": ("c4_en", "ppl"),
    "wikitext/word_perplexity": ("wikitext", "word_perplexity"),
    "wikitext_byte_perplexity": ("wikitext", "byte_perplexity"),
    "pile/token_perplexity": ("pile", "token_perplexity"),
    "xsum perplexity": ("xsum", "perplexity"),
}
PPL = [1500.5, 900.25, 60.5, 20.0]


@pytest.mark.parametrize("column", OF_PERPLEXITY)
@pytest.mark.parametrize("bare", ["piqa", "piqa_acc"])
def test_a_perplexity_of_a_task_is_the_loss(column, bare, tmp_path):
    """Beside a task that is named without a metric, too; its error is no metric."""
    path = table(tmp_path, f"{column},{column}_stderr,{bare}", [f"{p},1,{s}" for p, s in zip(PPL, SHARES)])
    task, metric = OF_PERPLEXITY[column]
    frame, notes = read(path, loss=f"{task}/{metric}")
    assert {*frame["task"]} == {"piqa"} and f"{metric!r} is taken as perplexity" in notes
    np.testing.assert_allclose(frame["loss"], np.log(PPL))
    np.testing.assert_allclose(frame["value"], SHARES)


def test_perplexities_of_lists_by_checkpoint_are_the_loss(tmp_path):
    """bigscience's *_agg.json."""
    content = {"piqa": {"acc": SHARES}, "lambada": {"ppl": PPL, "ppl_stderr": [1] * 4, "acc": SHARES}}
    (tmp_path / "x_agg.json").write_text(json.dumps({"checkpoints": STEPS, "results": content}))
    frame, _ = read(tmp_path / "x_agg.json", loss="lambada/ppl", run="r", params={"": 10**9}, tokens_per_step=1000)
    assert {*zip(frame["task"], frame["metric"])} == {("piqa", "acc"), ("lambada", "acc")}
    np.testing.assert_allclose(frame["loss"], np.log(PPL * 2))


@pytest.mark.parametrize("shots", [(0,), (0, 5)])
def test_a_loss_needs_no_shots_where_one_number_has_it(shots, tmp_path):
    rows = [
        f"m,70M,{step},{step * 1000},{task},{metric},{shot},{value}"
        for k, step in enumerate(STEPS)
        for shot in (0, 5)
        for task, metric, value in [("piqa", "acc", SHARES[k] + shot / 100), ("lambada", "ppl", PPL[k] + shot)]
        if task == "piqa" or shot in shots
    ]
    path = tmp_path / "x.csv"
    path.write_text("model,params,step,tokens,task,metric,num_fewshot,value\n" + "\n".join(rows) + "\n")
    if len(shots) == 1:
        frame, _ = read(path, loss="lambada/ppl")
        assert {*frame["task"]} == {"piqa:0shot", "piqa:5shot"} and {*frame["loss"]} == {*np.log(PPL)}
    else:
        with pytest.raises(InputError, match=r"of losses they have lambada:0shot/ppl, lambada:5shot/ppl\); give a log"):
            read(path, loss="lambada/ppl")
        frame, _ = read(path, loss="lambada:5shot/ppl")
        assert {*frame["loss"]} == {*np.log(np.array(PPL) + 5)}


def test_a_column_of_a_perplexity_stays_the_named_loss(tmp_path):
    path = table(tmp_path, "task,acc,perplexity", [f"piqa,{s},{p}" for p, s in zip(PPL, SHARES)])
    frame, _ = read(path, columns={"loss": "perplexity"})
    assert {*frame["metric"]} == {"acc"}
    np.testing.assert_allclose(frame["loss"], np.log(PPL))


def test_metrics_of_several_words_are_of_their_task(tmp_path):
    path = table(tmp_path, "loss,xsum/quasi_exact_match", [f"{p / 300},{s}" for p, s in zip(PPL, SHARES)])
    frame, _ = read(path)
    assert {*zip(frame["task"], frame["metric"])} == {("xsum", "quasi_exact_match")}
