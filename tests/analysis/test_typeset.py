"""Tables that are made to be read, as other programs write them: cells known, as a log and as results."""

import pandas as pd
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.scores import ScoreOptions, holds_scores, with_scores
from emergence_train.errors import InputError
from emergence_train.recorder import tables

STEPS, LOSSES = [100, 200, 1500], [5.5, 5.25, 4.125]
ROWS = [*zip(STEPS, LOSSES)]
FRAME = pd.DataFrame({"step": STEPS, "loss": LOSSES})


def rows(form: str, join: str = "\n") -> str:
    return join.join(form.format(step, loss) for step, loss in ROWS)


def boxed(left: str, bar: str, rules: tuple[str, str, str]) -> str:
    cells = [f"{left} step {bar} loss {left}", *(f"{left} {step} {bar} {loss} {left}" for step, loss in ROWS)]
    return "\n".join([rules[0], cells[0], rules[1], *cells[1:], rules[2]])


TYPESET = {
    "readme.md": f"# A run\n\nText | with a bar.\n\n| step | **loss** |\n|-----:|:---|\n{rows('| {} | {} |')}\n\n| more text",
    "bold.md": f"|step|loss|\n|---|---|\n{rows('|{:,}|**{}**|')}\n",
    "no_outer_bars.md": f"step | loss\n--- | ---\n{rows('{} | {}')}\n",
    "index.md": "|  | step | loss |\n|--:|--:|--:|\n"
    + "\n".join(f"| {k} | {s} | {x} |" for k, (s, x) in enumerate(ROWS)),
    "grid.txt": boxed("|", "|", ("+---+---+", "+===+===+", "+---+---+")),
    "rich.txt": boxed("│", "┃", ("┏━━┳━━┓", "┡━━╇━━┩", "└──┴──┘")),
    "r.txt": '"step" "loss"\n' + "\n".join(f'"{k}" {s} {x}' for k, (s, x) in enumerate(ROWS, 1)),
    "r_by_name.txt": '"step" "loss"\n' + "\n".join(f'"run {k}" {s} {x}' for k, (s, x) in enumerate(ROWS)),
    "quoted.txt": f'"step" "train loss"\n{rows("{} {}")}',
    "gnuplot.dat": f"# made by hand\n# step loss\n{rows('{} {}')}\n",
    "numpy.txt": f"# step loss\n{rows('{:.18e} {:.18e}')}\n",
    "printed.txt": FRAME.to_string(),
    "unlabelled.txt": FRAME.to_string(index=False),
    "simple.txt": f"  step    train loss\n------  ------------\n{rows('   {}           {}')}\n",
    "blanks.csv": f"step loss\n{rows('{}   {}')}\n",
    "commas.dat": f"step loss\n{rows('{} {}').replace('.', ',')}\n",
    "tabular.tex": "\\begin{tabular}{l@{\\,}r}\n\\toprule\nstep & loss \\\\\n\\cmidrule(lr){1-2}\n"
    + rows("{:,} & \\textbf{{{}}} \\\\ % a comment & more").replace(",", "{,}")
    + "\n\\bottomrule\n\\end{tabular}\n",
}


@pytest.mark.parametrize("name", TYPESET)
def test_a_table_to_be_read_is_a_log(name, tmp_path):
    (tmp_path / name).write_text(TYPESET[name])
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.frame["step"].tolist() == STEPS and curve.frame["loss"].tolist() == LOSSES


SCORES = {
    "x.md": "| Model | Step | PIQA | ARC-e |\n|---|---|---|---|\n"
    "| m-70m | 1,000 | 52.5 ± 0.3 | 27.0 |\n| m-70m | 2,000 | 53.5 | 28.0 |",
    "x.txt": '"model" "step" "PIQA" "ARC-e"\n"1" "m-70m" 1000 52.5 27\n"2" "m-70m" 2000 53.5 28\n',
    "x.tex": "\\begin{tabular}{lrrr}\nModel & Step & PIQA & ARC-e \\\\ \\hline\nm-70m & 1{,}000 & 52.5 $\\pm$ 0.3 & 27.0 \\\\\n"
    "m-70m & 2{,}000 & \\textbf{53.5} & 28.0\n\\end{tabular}",
}


@pytest.mark.parametrize("name", SCORES)
def test_a_table_to_be_read_has_scores(name, tmp_path):
    (tmp_path / name).write_text(SCORES[name])
    (tmp_path / "loss.csv").write_text("step,loss\n500,3.5\n2500,2.5\n")
    assert holds_scores(tmp_path / name)
    options = ScoreOptions(tokens_per_step=10, loss=str(tmp_path / "loss.csv"))
    known, _ = with_scores([tmp_path / name], options)
    frame = tables.read(tables.EVALUATIONS, known).set_index(["step", "task"])["value"]
    assert frame.to_dict() == {(1000, "piqa"): 52.5, (2000, "piqa"): 53.5, (1000, "arc_e"): 27, (2000, "arc_e"): 28}


def test_what_lm_eval_prints_is_read(tmp_path):
    """EleutherAI/lm-evaluation-harness, lm_eval/utils.py: a task is named in the first row of its metrics alone."""
    (tmp_path / "x.md").write_text(
        "hf (pretrained=m), gen_kwargs: (None)\n| Tasks |Version|Filter|n-shot|Metric|   |Value |   |Stderr|\n"
        "|-------|------:|------|-----:|------|---|-----:|---|-----:|\n"
        "|arc_easy|     1|none  |     0|acc   |↑  |0.3100|±  |0.0095|\n|        |       |none|0|acc_norm|↑|0.3200|±|0.0096|\n"
        "|piqa   |      1|none  |     0|acc   |↑  |0.5100|±  |0.0117|\n"
    )
    options = ScoreOptions(run="m", params={"": 5}, columns={"step": "n-shot"}, tokens_per_step=1, loss=None)
    with pytest.raises(InputError, match="loss is not said"):
        with_scores([tmp_path / "x.md"], options)
    (tmp_path / "loss.csv").write_text("step,loss\n0,3.5\n1,3.4\n")
    options = ScoreOptions("auto", "m", {"": 5}, 1, {"step": "n-shot"}, str(tmp_path / "loss.csv"))
    (known,), _ = with_scores([tmp_path / "x.md"], options)
    rows = known.frame.set_index(["task", "metric"])
    assert rows["value"].to_dict() == {("arc_easy", "acc"): 0.31, ("arc_easy", "acc_norm"): 0.32, ("piqa", "acc"): 0.51}
    assert rows["stderr"].tolist() == [0.0095, 0.0096, 0.0117]


NONE = {
    "no_header.dat": rows("{} {}"),
    "prose.txt": "Starting training\nLoading 5\nLoading 6\n",
    "ragged.txt": "step loss\n100 5.5\n200\n",
    "thousands.txt": "step loss\n1 000 5.5\n2 000 5.25\n100 6.0\n",
    "labels_twice.txt": "step loss\na 100 5.5\na 200 5.25\n",
}


@pytest.mark.parametrize("name", NONE)
def test_what_may_be_otherwise_is_no_table(name, tmp_path):
    (tmp_path / name).write_text(NONE[name])
    with pytest.raises(InputError, match="not a log that is known; give --format .*, or a table a header"):
        logs.read(tmp_path / name, LogOptions())


def test_several_tables_are_refused(tmp_path):
    """Those of one header are one, parted by text."""
    path = tmp_path / "x.md"
    first = f"| step | loss |\n|--|--|\n{rows('| {} | {} |')}\n\ntext\n\n"
    path.write_text(first + "| step | acc |\n|--|--|\n| 1 | 2 |\n")
    with pytest.raises(InputError, match="x.md: holds 2 tables of other columns; keep one$"):
        logs.read(path, LogOptions())
    path.write_text(first + "| step | loss |\n|--|--|\n| 2000 | 4 |\n")
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["step"].tolist() == [*STEPS, 2000]
