"""Lines of other programs that hold more than one loss, rank, spelling or half a line: the known curve is read, or none."""

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.errors import InputError

STEPS = list(range(10, 1000, 10))
KNOWN = [(step, round(2.6 + 7.9 / (1 + step / 40) ** 0.55, 4)) for step in STEPS]


def read(tmp_path, text, name="x.log", **options):
    (tmp_path / name).write_text(text)
    (curve,) = logs.read(tmp_path / name, LogOptions(**options))
    return curve


def rows_of(curve):
    return [*zip(curve.frame["step"], curve.frame["loss"])]


def lines(form, rows=KNOWN):
    return "".join(form.format(s=s, x=x, y=x + 0.3, t=s * 524288) + "\n" for s, x in rows)


OTHERS = (
    "aux,z,z-,mtp,best,router,load balancing,kl,prev,min,avg,EMA,smoothed,running,moe aux,EMA model,distill,c4,wikitext"
)


@pytest.mark.parametrize("other", OTHERS.split(","))
@pytest.mark.parametrize(
    "form", ["step {{s}}/1000 | {} loss: 0.01 | loss: {{x}}", "step {{s}} {} loss 0.01 loss {{x}}"]
)
def test_a_loss_of_other_words_stands_for_none(other, form, tmp_path):
    curve = read(tmp_path, lines(form.format(other)))
    assert rows_of(curve) == KNOWN and not any("again" in note for note in curve.notes)


@pytest.mark.parametrize("name", ["lm loss", "LM loss", "training loss", "train_loss"])
def test_a_total_loss_stands_for_no_known_one(name, tmp_path):
    assert rows_of(read(tmp_path, lines("step {s} | total loss 9.5 | " + name + " {x}"))) == KNOWN
    assert rows_of(read(tmp_path, lines("step: {s} | Total loss: 9.5 | " + name + ": {x}"))) == KNOWN


@pytest.mark.parametrize("absent", ["nan", "inf", "None", "n/a"])
@pytest.mark.parametrize("some", [[10], range(100, 1000, 100)])
def test_a_number_that_is_none_is_no_word_of_a_loss(absent, some, tmp_path):
    text = "".join(f"step {s} norm {absent if s in some else 0.31} loss {x}\n" for s, x in KNOWN)
    assert rows_of(read(tmp_path, text)) == KNOWN


def test_a_cross_entropy_counts_before_a_total(tmp_path):
    assert rows_of(read(tmp_path, lines("step {s} | total loss {y} | ce loss {x}"))) == KNOWN
    assert rows_of(read(tmp_path, "step,total_loss,moe_loss\n" + lines("{s},{x},0.01"), "x.csv")) == KNOWN
    assert rows_of(read(tmp_path, "step,total_loss,val_loss\n" + lines("{s},{y},{x}"), "x.csv")) == KNOWN


def test_parts_of_a_model_are_no_writers(tmp_path):
    assert rows_of(read(tmp_path, lines("step {s}: head1: loss {y}\nstep {s}: head2: loss {x}"))) == KNOWN


@pytest.mark.parametrize("name", ["running_loss", "train/moving_avg_loss", "train_max_loss"])
def test_a_loss_that_is_none_by_name_is_said_to_be(name, tmp_path):
    text = f"step,{name}\n" + lines("{s},{x}")
    with pytest.raises(InputError, match=f"give --column loss=NAME; {name} is no step's own loss by name"):
        read(tmp_path, text, "x.csv")
    assert rows_of(read(tmp_path, text, "x.csv", columns={"loss": name})) == KNOWN


def test_losses_of_which_each_step_has_one_are_read(tmp_path):
    text = "".join(f"step {s} {'saved' if s % 100 == 0 else 'ok'} loss {x}\n" for s, x in KNOWN)
    assert rows_of(read(tmp_path, text)) == KNOWN
    text = "".join(f"step {s} {name} loss {x}\n" for s, x in KNOWN for name in ("wiki", "code"))
    with pytest.raises(
        InputError, match=r"no column was recognised as loss .* or --column loss='\*' where each is a run"
    ):
        read(tmp_path, text)
    runs = logs.read(tmp_path / "x.log", LogOptions(columns={"loss": "*"}))
    assert {run.run: rows_of(run) for run in runs} == {"wiki loss": KNOWN, "code loss": KNOWN}


@pytest.mark.parametrize("of", ["aux", "z", "router", "best", "mtp"])
@pytest.mark.parametrize("name, form", [("x.log", "step {{s}} | {} loss {{x}}"), ("x.csv", "{{s}},{{x}}")])
def test_a_lone_other_loss_is_refused(of, name, form, tmp_path):
    text = ("" if name == "x.log" else f"step,{of} loss\n") + lines(form.format(of))
    with pytest.raises(InputError, match=f"no column was recognised as loss .*{of} loss.*; give --column loss=NAME"):
        read(tmp_path, text, name)
    assert rows_of(read(tmp_path, text, name, columns={"loss": f"{of} loss"})) == KNOWN


BESIDE = [
    "step {s} | c4 loss {y}",
    "step {s} | test/loss {y}",
    "step {s} wikitext loss {y} lambada loss {y}",
    "step {s} | val loss {y} | train loss {y}",
    "New best! step {s}, loss {y}",
    "saved checkpoint at step {s} with loss {y}",
    "Sanity check: step {s} loss {y}",
    "step {s} spike detected: loss {y} > threshold 3.0, skipping",
    "Loaded checkpoint step {s} loss {y}",
]


@pytest.mark.parametrize("beside", BESIDE)
@pytest.mark.parametrize("sign", [" ", ": "])
def test_a_line_beside_the_trainings_replaces_none(beside, sign, tmp_path):
    own = "step {s} | loss {x} | 12 ms".replace(" {", sign + "{")
    text = "".join(
        lines(own, [row]) + (lines(beside.replace(" {", sign + "{"), [row]) if row[0] % 100 == 0 else "")
        for row in KNOWN
    )
    curve = read(tmp_path, text)
    assert rows_of(curve) == KNOWN and not any("again" in note for note in curve.notes)


def test_lines_of_a_resumed_run_in_other_words_count(tmp_path):
    first = lines("step {s} | loss {y}", KNOWN[:50])
    assert rows_of(read(tmp_path, first + lines("Train step {s} | train loss {x}", KNOWN[40:])))[40:] == KNOWN[40:]


RANKS = [
    "{r}: step={s} loss={x}",
    "{r}:  iteration {s:8d}/    1000 | consumed samples: 5 | lm loss: {x:.6E} | loss scale: 1.0 |",
    "[1,{r}]<stdout>:step: {s} loss: {x}",
    "node{r:03d}: step {s} | loss {x}",
    "[gpu{r}] step: {s} loss: {x}",
    "worker {r} | step {s} | loss {x}",
    "[rank{r}]: step {s} loss {x}",
]


@pytest.mark.parametrize("form", RANKS)
def test_the_lowest_rank_counts(form, tmp_path):
    text = "".join(form.format(r=r, s=s, x=x + 0.3 * r) + "\n" for s, x in KNOWN for r in (2, 0, 3, 1))
    curve = read(tmp_path, text)
    np.testing.assert_allclose(rows_of(curve), KNOWN, rtol=1e-6)
    assert "lines of several ranks: those of rank 0 count" in curve.notes
    text = "".join(form.format(r=0, s=s, x=x) + "\n" for s, x in KNOWN)
    np.testing.assert_allclose(rows_of(read(tmp_path, text)), KNOWN, rtol=1e-6)


@pytest.mark.parametrize("placeholder", ["0.0000", "-1.0", "nan", "0.0"])
def test_a_placeholder_is_no_loss_of_a_rank(placeholder, tmp_path):
    form = f"[rank0]: step: {{s}} loss: {placeholder} lr: 1e-3\n[rank7]: step: {{s}} loss: {{x}} lr: 1e-3"
    assert rows_of(read(tmp_path, lines(form))) == KNOWN
    rows = "".join(f"0,{s},{placeholder}\n7,{s},{x}\n" for s, x in KNOWN)
    assert rows_of(read(tmp_path, "rank,step,loss\n" + rows, "x.csv")) == KNOWN


@pytest.mark.parametrize("column", ["rank", "dp_rank", "worker", "local_rank"])
@pytest.mark.parametrize("blocks", [False, True])
def test_the_lowest_rank_of_a_column_counts(column, blocks, tmp_path):
    rows = [(r, s, x + 0.3 * r) for s, x in KNOWN for r in (1, 0, 2)]
    rows = sorted(rows) if blocks else rows
    text = f"{column},step,loss\n" + "".join(f"{r},{s},{x:.4f}\n" for r, s, x in rows)
    assert rows_of(read(tmp_path, text, "x.csv")) == KNOWN
    text = "".join(f'{{"{column}": {r}, "step": {s}, "loss": {x:.4f}}}\n' for r, s, x in rows)
    assert rows_of(read(tmp_path, text, "x.jsonl")) == KNOWN
    (tmp_path / "x.jsonl").write_text(text)
    assert len(logs.read(tmp_path / "x.jsonl", LogOptions(columns={"run": column}))) == 3


def test_a_worker_of_a_resumed_run_is_no_rank(tmp_path):
    text = "worker,step,loss\n" + "".join(f"{3 if s > 500 else 5},{s},{x}\n" for s, x in KNOWN)
    assert rows_of(read(tmp_path, text, "x.csv")) == KNOWN


def test_tags_that_number_no_rank_are_refused(tmp_path):
    rows = [(pid, s, x) for s, x in KNOWN for pid in (4711, 4712)]
    text = "".join(f"(Worker pid={pid}, ip=10.0.0.1) step: {s} loss: {x}\n" for pid, s, x in rows)
    with pytest.raises(InputError, match="several writers, as 'pid=4711,', and number no ranks; keep the lines of one"):
        read(tmp_path, text)
    own = "".join(line for line in text.splitlines(keepends=True) if "pid=4711" in line)
    assert rows_of(read(tmp_path, own)) == KNOWN


def test_numbered_lines_are_of_one_writer(tmp_path):
    text = "".join(f"{k}: step {s} loss {x}\n" for k, (s, x) in enumerate(KNOWN))
    assert rows_of(read(tmp_path, text)) == KNOWN


def test_two_ranks_on_one_line_are_two_lines(tmp_path):
    form = "[rank{}]:step: {{s}} loss: {{{}}}"
    text = lines(form.format(1, "y") + form.format(0, "x") + "\n")
    assert rows_of(read(tmp_path, text)) == KNOWN


GROUPED = {
    "_": lambda s: f"{s:_}",
    "'": lambda s: f"{s:,}".replace(",", "'"),
    "space": lambda s: f"{s:,}".replace(",", " "),
    "no-break space": lambda s: f"{s:,}".replace(",", "\u00a0"),
    "thin": lambda s: f"{s:,}".replace(",", "\u202f"),
    "power": lambda s: f"{s:.3e}",
    "point": lambda s: f"{s:,}".replace(",", "."),
}


@pytest.mark.parametrize("form", ["step {} | loss {}\n", "step={} loss={}\n", "iter {}: loss {}, time 2.10ms\n"])
@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("first", [100, 1100])
def test_thousands_of_steps_are_parted_by_any_sign(kind, form, first, tmp_path):
    known = [(first + 100 * k, x) for k, (_, x) in enumerate(KNOWN)]
    curve = read(tmp_path, "".join(form.format(GROUPED[kind](s), x) for s, x in known))
    assert rows_of(curve) == known


@pytest.mark.parametrize("form", ["step {}.000 | loss {}\n", "step={}.000 loss={}\n"])
def test_steps_that_may_be_thousands_are_refused(form, tmp_path):
    with pytest.raises(InputError, match="steps as '10.000' may be whole or thousands; write them without points"):
        read(tmp_path, "".join(form.format(s, x) for s, x in KNOWN))


@pytest.mark.parametrize("form", ["step {}.000 loss {}\n", "step: {}.000 | loss: {}\n"])
@pytest.mark.parametrize("first, apart", [(0, 100), (100, 100), (0, 10)])
def test_steps_with_decimals_are_read(form, first, apart, tmp_path):
    """Thousands have neither 0 nor more than three digits before a point."""
    known = [(first + apart * 2 * k, x) for k, (_, x) in enumerate(KNOWN)]
    assert rows_of(read(tmp_path, "".join(form.format(s, x) for s, x in known))) == known


FRACTIONS = [
    "iter {f:.3f} step {s} loss {x}",
    "{f:.3f} s/it | s/iter {f:.3f} | step {s} loss {x}",
    "[avg iter {g:.3f}] step {s} loss {x}",
    "update {f:.3f} | step {s} | loss {x}",
]


@pytest.mark.parametrize("form", FRACTIONS)
def test_a_fraction_before_the_step_is_none(form, tmp_path):
    text = "".join(form.format(s=s, x=x, f=1 + s / 1000, g=110 + s / 100) + "\n" for s, x in KNOWN)
    assert rows_of(read(tmp_path, text)) == KNOWN


def test_parts_of_an_epoch_are_no_steps(tmp_path):
    with pytest.raises(InputError):
        read(tmp_path, "".join(f'{{"update": {s / 400:.3f}, "loss": "{x}"}} x\n' for s, x in KNOWN))


@pytest.mark.parametrize(
    "form", ["step {} 512 | loss {}\n", "micro 1/2: step {0} loss 9\nmicro 2/2: step {0} loss {1}\n"]
)
def test_numbers_beside_a_step_are_none_of_it(form, tmp_path):
    assert rows_of(read(tmp_path, "".join(form.format(s, x) for s, x in KNOWN))) == KNOWN


def test_a_time_of_a_step_is_no_step(tmp_path):
    text = "".join(f"iter: {1 + s / 7919:.3f} | step: {s} loss: {x}\n" for s, x in reversed(KNOWN))
    assert rows_of(read(tmp_path, text)) == KNOWN


CUT = {
    "step: {s} loss: {x:.4f}\n": [
        "step: 1000 loss: 3",
        "step: 1000 loss: 3.9",
        "step: 1000 loss: 3.916",
        "step: 1000 l",
    ],
    "iter {s}: loss {x:.4f}, time 2.10ms\n": ["iter 1000: loss 3.9", "iter 1000: loss 3."],
    "step {s}/1000 | loss {x:.6f} (+nanz)| lr 6.00e-04 |\n": ["step 1000/1000 | loss 3."],
    " iteration {s:8d}/    1000 | lm loss: {x:.6E} | loss scale: 1.0 |\n": [
        " iteration     1000/    1000 | lm loss: 3.92",
        " iteration     1000/    1000 | lm loss: 3.92E",
    ],
    "step: {s} loss: {x:.3e}\n": ["step: 1000 loss: 3.916", "step: 1000 loss: 3.9"],
}


@pytest.mark.parametrize("form, last", [(form, last) for form, cuts in CUT.items() for last in cuts])
def test_a_last_line_that_is_cut_counts_not(form, last, tmp_path):
    curve = read(tmp_path, lines(form) + last)
    assert curve.frame["step"].tolist() == STEPS
    assert f"left out: a last line without an end that seems to be cut off, {last.strip()!r}" in curve.notes
    np.testing.assert_allclose(curve.frame["loss"], [x for _, x in KNOWN], atol=6e-4)


@pytest.mark.parametrize("form", CUT)
def test_a_last_line_without_an_end_that_is_whole_counts(form, tmp_path):
    assert read(tmp_path, lines(form)[:-1]).frame["step"].tolist() == STEPS


@pytest.mark.parametrize("name", ["x.csv", "x.log"])
@pytest.mark.parametrize(
    "form, last",
    [
        ("step,loss,lr={s},{x},{r}", "1000,3.9157,0.0"),  # a rate that falls to 0
        ("step,loss,dt={s},{x:.4f},{d}", "1000,3.9157,99"),
        ("step,loss={s},{x}", "1000,3.9"),
    ],
)
def test_a_last_number_that_is_shorter_counts(form, last, name, tmp_path):
    header, _, form = form.partition("=")
    rows = [form.format(s=s, x=x, r=6e-4 * (1 - s / 1000), d=100 + s // 10 % 7) for s, x in KNOWN]
    if name == "x.log":
        header, *rows = [
            "",
            *(" ".join(f"{n}: {c}" for n, c in zip(header.split(","), row.split(","))) for row in rows),
        ]
        last = " ".join(f"{n}: {c}" for n, c in zip(("step", "loss", "lr"), last.split(",")))
    curve = read(tmp_path, "\n".join([header, *rows, last]), name)
    assert curve.frame["step"].tolist() == [*STEPS, 1000] and not any("left out" in note for note in curve.notes)


def test_a_last_row_whose_last_cell_is_empty_counts(tmp_path):
    text = "step,loss,lr\n" + lines("{s},{x:.4f},0.001") + "1000,3.9157,"
    assert rows_of(read(tmp_path, text, "x.csv")) == [*KNOWN, (1000, 3.9157)]


@pytest.mark.parametrize("header, form", [("step,loss", "{s},{x:.4f}"), ("loss,step", "{x:.4f},{s}")])
def test_a_last_row_that_is_cut_counts_not(header, form, tmp_path):
    text = f"{header}\n" + lines(form)
    for length in range(1, len(form.format(s=990, x=3.9157)) - 1):
        last = form.format(s=1000, x=3.9157)[:length]
        curve = read(tmp_path, text + last, "x.csv")
        assert rows_of(curve) == KNOWN, last
        assert length < 6 or last.endswith(",") or any(f"cut off, {last!r}" in note for note in curve.notes)
    assert rows_of(read(tmp_path, text[:-1], "x.csv")) == KNOWN


@pytest.mark.parametrize("again", ["step,gn,loss", "loss,step,gn", "step,lr,loss"])
def test_a_header_of_another_order_is_refused(again, tmp_path):
    rows = [f"{s},{x},1.0\n" for s, x in KNOWN]
    text = "step,loss,gn\n" + "".join(rows[:50])
    with pytest.raises(InputError, match="row 51 is a header of other columns, .*: write what follows as a file"):
        read(tmp_path, text + again + "\n" + "".join(rows[50:]), "x.csv")
    assert rows_of(read(tmp_path, text + "step,loss,gn\n" + "".join(rows[50:]), "x.csv")) == KNOWN


@pytest.mark.parametrize(
    "rate",
    ["lr=6e-4", "lr 6e-4", "learning_rate: 6e-4", "LR: 6e-4", "lr=(6e-4)", "lr=[6e-4, 3e-4]", "learning rate = 6e-4"],
)
@pytest.mark.parametrize("form", ["step {{s}} | loss {{x}} | {}", "step: {{s}} loss: {{x}} {}"])
def test_a_rate_in_any_spelling_is_read(rate, form, tmp_path):
    rate = rate.replace("lr 6", "lr: 6") if ":" in form else rate
    assert set(read(tmp_path, lines(form.format(rate))).frame["lr"]) == {6e-4}


TOKENS = "Tokens: {t},TOKENS {t},Total Tokens: {t},tokens_seen: {t},n_tokens: {t},Trained Tokens {t},tokens={t},tokens seen {t}"


@pytest.mark.parametrize("tokens", TOKENS.split(","))
def test_tokens_in_any_spelling_are_read(tokens, tmp_path):
    frame = read(tmp_path, lines("step {s} | loss {x} | " + tokens + " | 1200 tokens/s")).frame
    assert frame["tokens"].tolist() == [524288 * s for s in STEPS]


def test_tokens_of_a_plan_are_read(tmp_path):
    text = "".join(f"step {s} | loss {x} | {s / 1000:.2f}B/0.5B tokens | lr 1e-3\n" for s, x in KNOWN)
    assert read(tmp_path, text).frame["tokens"].tolist() == [s * 10**6 for s in STEPS]


@pytest.mark.parametrize("name", ["num_tokens: ", "num_tokens=", "Tokens: "])
@pytest.mark.parametrize("batch", [lambda s: 8000 + s * 7 % 190, lambda s: 524288])
def test_tokens_of_a_batch_are_not_those_so_far(name, batch, tmp_path):
    text = "".join(f"step {s} | loss {x} | {name}{batch(s)} | lr 1e-3\n" for s, x in KNOWN)
    curve = read(tmp_path, text)
    assert rows_of(curve) == KNOWN and set(curve.frame["tokens"]) == {0}
