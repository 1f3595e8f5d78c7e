"""Logs as people have them that say their loss, steps or numbers otherwise: the curve is the one that was written down."""

import math

import numpy as np
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions, format_of
from emergence_train.analysis.logs.units import unit_of
from emergence_train.errors import InputError

STEPS = np.arange(10, 210, 10)
LOSSES = 2 + 3 * STEPS**-0.3


def csv(folder, names, *columns):
    """A CSV of columns, numbers to ten places."""
    rows = [",".join(f"{value:.10g}" for value in row) for row in zip(*columns, strict=True)]
    (folder / "log.csv").write_text("\n".join([names, *rows]) + "\n")
    return folder / "log.csv"


def read(path, **options):
    (curve,) = logs.read(path, LogOptions(**options))
    return curve.frame, " ".join(curve.notes)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("loss_bits", [loss / math.log(2) for loss in LOSSES]),
        ("train/perplexity", [math.exp(loss) for loss in LOSSES]),
        ("val_ppl", [math.exp(loss) for loss in LOSSES]),
    ],
)
def test_bits_and_perplexity_become_nats(name, values, tmp_path):
    frame, notes = read(csv(tmp_path, f"step,{name}", STEPS, values))
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert "is taken as" in notes and "--loss-unit nats" in notes


def test_a_unit_that_is_named_counts(tmp_path):
    path = csv(tmp_path, "step,loss", STEPS, LOSSES / math.log(2))
    np.testing.assert_allclose(read(path, loss_unit="bits")[0]["loss"], LOSSES, rtol=1e-8)
    path = csv(tmp_path, "step,log_ppl", STEPS, LOSSES)
    np.testing.assert_allclose(read(path, columns={"loss": "log_ppl"})[0]["loss"], LOSSES, rtol=1e-8)
    with pytest.raises(InputError, match="loss unit 'bytes': unknown; choose nats, bits or perplexity"):
        read(path, columns={"loss": "log_ppl"}, loss_unit="bytes")


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        *(
            (name, "bits")
            for name in (
                "loss (log2)",
                "loss [log2]",
                "loss (base 2)",
                "loss (base-2)",
                "Loss [bits/token]",
                "train/loss (bpt)",
            )
        ),
        *((name, "perplexity") for name in ("loss (exp)", "loss [ppl]", "train_loss (perplexity)")),
        *(
            (name, "nats")
            for name in ("loss (nats)", "Loss [nats per token]", "loss (train, avg)", "train/loss (smoothed)")
        ),
    ],
)
def test_a_unit_in_brackets_is_read(name, scale, tmp_path):
    written = {"bits": LOSSES / math.log(2), "perplexity": np.exp(LOSSES), "nats": LOSSES}[scale]
    frame, notes = read(csv(tmp_path, f'step,"{name}"', STEPS, written))
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert ("is taken as" in notes) == (scale != "nats") and "no unit" not in notes


@pytest.mark.parametrize("name", ["loss_base2", "loss_log2", "log2(ppl)", "log2_train_loss", "loss_exp", "exp(loss)"])
def test_a_unit_in_a_named_column_is_read(name, tmp_path):
    written = np.exp(LOSSES) if "exp" in name else LOSSES / math.log(2)
    frame, notes = read(csv(tmp_path, f"step,{name}", STEPS, written), columns={"loss": name})
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert "is taken as" in notes
    frame, notes = read(csv(tmp_path, f"step,{name}", STEPS, LOSSES), columns={"loss": name}, loss_unit="nats")
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert "is taken as" not in notes


@pytest.mark.parametrize("unit", ["gpt-70m", "sum", "dB", "run 3"])
def test_an_unknown_unit_of_a_loss_is_noted(unit, tmp_path):
    path = csv(tmp_path, f"step,loss ({unit})", STEPS, LOSSES)
    frame, notes = read(path)
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert f"{unit!r} is no unit that is known; its losses are taken as nats; --loss-unit" in notes
    assert "no unit" not in read(path, loss_unit="nats")[1]


@pytest.mark.parametrize(
    "name",
    [
        "loss x1000",
        "loss*1e3",
        "loss (1e-3)",
        "loss (%)",
        "loss (log10)",
        "loss [x1000]",
        "loss (scaled)",
        "loss (millinats)",
        "1000*loss",
        "loss (10^-3)",
    ],
)
def test_a_scale_of_a_loss_is_refused(name, tmp_path):
    path = csv(tmp_path, f"step,{name}", STEPS, LOSSES)
    with pytest.raises(
        InputError, match="log.csv: '.*': by its name its losses are no nats; write .* give --loss-unit nats"
    ):
        read(path)
    np.testing.assert_allclose(read(path, loss_unit="nats")[0]["loss"], LOSSES, rtol=1e-8)


RUNS = (
    "loss_b lr1e-4/loss lr/1e-4/loss seed10/train_loss base10/loss exp/loss exp_loss mix100 max1000 eval/100 loss_ctx1000 base_2 "
    "log2/loss log10/loss base_2/loss base2-lr1e-3/train_loss gpt-lr-x1e-4 gpt-lr-3e-4"
)


@pytest.mark.parametrize("name", RUNS.split())
def test_names_of_runs_are_no_units(name, tmp_path):
    path = csv(tmp_path, f"step,{name}", STEPS, LOSSES)
    for columns in ({"loss": name}, {"loss": "*"}):
        frame, notes = read(path, columns=columns)
        np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
        assert "is taken as" not in notes


@pytest.mark.parametrize(
    "name", ["base_2 - train/loss", "mix (x100) - loss", "run (log2) - train/loss", "a (exp)/loss"]
)
def test_runs_before_a_quantity_are_no_units(name):
    assert unit_of(name) == "nats"


COUNTERS = (
    "Step (optimizer)|step (updates)|Step (iters)|step (1-based)|Step (from 0)|Updates (optimizer steps)|iteration [#]"
)


@pytest.mark.parametrize("name", COUNTERS.split("|"))
@pytest.mark.parametrize("beside", ["tokens", "_step"])
def test_words_in_brackets_leave_steps_steps(name, beside, tmp_path):
    frame, notes = read(csv(tmp_path, f"{name},{beside},loss", STEPS, STEPS * 3, LOSSES))
    assert frame["step"].tolist() == STEPS.tolist() and "no steps" not in notes


def test_steps_in_an_unknown_scale_are_noted(tmp_path):
    frame, notes = read(csv(tmp_path, "step (x16),tokens,loss", STEPS, STEPS * 1024, LOSSES))
    assert frame["step"].tolist() == (STEPS // 10).tolist()
    assert "left out: 'step (x16)', whose unit is not known; --column step='step (x16)' takes" in notes


@pytest.mark.parametrize("unit", ["per GPU", "B/GPU", "per rank, M", "delta", "Gi", "x 2^20"])
@pytest.mark.parametrize("group", ["tokens", "throughput/total_tokens"])
def test_tokens_of_an_unknown_unit_are_left_out(group, unit, tmp_path):
    """As tokens_per_gpu are: a share of all tokens bends no clock."""
    column = f"{group} ({unit})"
    path = csv(tmp_path, f'step,"{column}",loss', STEPS, STEPS * 1000, LOSSES)
    frame, notes = read(path)
    assert (frame["tokens"] == 0).all()
    assert f"left out: {column!r}, whose unit is not known; --column tokens={column!r} takes" in notes
    frame, notes = read(path, columns={"tokens": column})
    assert frame["tokens"].tolist() == (STEPS * 1000).tolist() and "left out" not in notes


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *((f"tokens ({words})", 1) for words in ("total", "seen so far", "approx", "all GPUs", "all ranks", "cum.")),
        ("tokens (incl. padding)", 1),
        ("Tokens (B)", 1e9),
        ("tokens [in M]", 1e6),
    ],
)
def test_known_words_of_counts_stay(name, factor, tmp_path):
    frame, notes = read(csv(tmp_path, f"step,{name},loss", STEPS, STEPS, LOSSES))
    assert frame["tokens"].tolist() == (STEPS * factor).tolist() and "left out" not in notes


def test_a_scaled_learning_rate_is_left_out(tmp_path):
    frame, notes = read(csv(tmp_path, "step,lr (x1e-4),loss", STEPS, STEPS, LOSSES))
    assert frame["lr"].isna().all() and "left out: 'lr (x1e-4)', whose unit is not known" in notes
    assert read(csv(tmp_path, "step,lr (group 0),loss", STEPS, STEPS, LOSSES))[0]["lr"].notna().all()


def test_bits_per_byte_are_said_to_be_of_bytes(tmp_path):
    frame, notes = read(csv(tmp_path, "step,val_bpb", STEPS, LOSSES / 4.3 / math.log(2)))
    np.testing.assert_allclose(frame["loss"], LOSSES / 4.3, rtol=1e-8)
    assert "in nats a byte" in notes


def test_a_perplexity_of_nothing_is_left_out(tmp_path):
    values = [math.exp(loss) for loss in LOSSES]
    frame, notes = read(csv(tmp_path, "step,ppl", STEPS, [0, *values[1:]]))
    assert frame["step"].tolist() == STEPS[1:].tolist()
    assert "1 of 20 rows have no finite step and loss" in notes


def test_validation_losses_count_where_there_are_no_others(tmp_path):
    frame, notes = read(csv(tmp_path, "step,lr,val/loss", STEPS, STEPS, LOSSES))
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert "no training loss: 'val/loss' counts as the curve" in notes
    frame, notes = read(csv(tmp_path, "step,val_loss,loss", STEPS, LOSSES + 1, LOSSES))
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-8)
    assert "no training loss" not in notes


def test_trainer_with_evaluations_alone_is_read(tmp_path):
    rows = ", ".join(f'{{"step": {step}, "eval_loss": {loss}}}' for step, loss in zip(STEPS, LOSSES))
    (tmp_path / "trainer_state.json").write_text(f'{{"log_history": [{rows}], "max_steps": 400}}')
    np.testing.assert_allclose(read(tmp_path / "trainer_state.json")[0]["loss"], LOSSES)


def test_a_chart_by_tokens_needs_no_steps(tmp_path):
    """As W&B exports a chart whose x axis is tokens: what lies between its rows is a step, and one that comes again is one."""
    tokens = np.r_[STEPS, STEPS[-1]] * 2048
    path = csv(tmp_path, "tokens,a - train/loss,a - train/loss__MIN", tokens, [*LOSSES, 1.5], [0] * 21)
    assert format_of(path) == "wandb"
    frame, notes = read(path)
    assert frame["step"].tolist() == list(range(1, 21))
    assert frame["tokens"].tolist() == (STEPS * 2048).tolist()
    assert frame["loss"].iloc[-1] == 1.5 and "no steps: 20,480 tokens" in notes
    assert read(path, tokens_per_step=2048)[0]["step"].tolist() == STEPS.tolist()


SPARSER = np.r_[np.arange(20, 2001, 20), np.arange(2500, 8001, 500)]  # an interval of logging that changes


@pytest.mark.parametrize("tokens", [SPARSER * 524288, SPARSER * 524288 + 12345, np.r_[SPARSER, 8000.001] * 524288])
def test_steps_without_a_column_follow_the_tokens(tmp_path, tokens):
    tokens = tokens.astype(int)
    path = csv(tmp_path, "tokens,loss", tokens, 2 + 1 / np.arange(1, len(tokens) + 1))
    frame, notes = read(path)
    of_one = frame["tokens"] / frame["step"]
    assert of_one.min() == pytest.approx(of_one.max(), rel=0.03) and "no steps" in notes
    assert 1 <= frame["step"].iloc[0] <= 10
    assert frame["tokens"].tolist() == tokens.tolist()  # no row is taken for another that was logged again


@pytest.mark.parametrize("counts", [True, False])
def test_a_logger_s_own_counter_is_no_step(tmp_path, counts):
    """W&B's _step is the trainer's step where it is given, else the number of calls: then tokens are not even a step."""
    steps = np.arange(len(SPARSER)) if counts else SPARSER
    path = csv(tmp_path, "_step,train/tokens,train/loss", steps, SPARSER * 1024, 2 + 1 / SPARSER)
    frame, notes = read(path)
    assert ("'_step' counts the logger's calls" in notes) == counts
    assert frame["step"].tolist() == (SPARSER / 20 if counts else SPARSER).tolist()
    assert read(path, tokens_per_step=1024)[0]["step"].tolist() == SPARSER.tolist()


@pytest.mark.parametrize("apart, every", [(True, 1), (False, 20), (False, 1)])
@pytest.mark.parametrize("first", ["loss", "tokens"])
def test_losses_between_calls_with_tokens_are_all_read(tmp_path, apart, every, first):
    """W&B's calls: tokens in calls of their own or in every 20th, calls of evaluations in the first half of the run."""
    rows, call = [], 0
    for step in range(1, 401):
        tokens = f"{step * 1_000_000}" if step % every == 0 else ""
        cells = [(f"{1 + 5 / step}", ""), ("", tokens)] if apart else [(f"{1 + 5 / step}", tokens)]
        for loss, known in cells if first == "loss" else cells[::-1]:
            rows.append(f"{call},{known},{loss}")
            call += 1
        call += 20 * (step % 20 == 0 and step < 200)
    (tmp_path / "log.csv").write_text("\n".join(["_step,tokens,loss", *rows]) + "\n")
    frame, notes = read(tmp_path / "log.csv")
    assert frame["loss"].tolist() == pytest.approx([1 + 5 / step for step in range(1, 401)])
    off = np.abs(frame["tokens"] / 1e6 - np.arange(1, 401))
    assert off.max() <= (1 if every == 1 else 20) and "'_step' counts" in notes and "logged again" not in notes


def test_the_tokens_of_a_batch_are_no_clock(tmp_path):
    tokens = np.random.default_rng(0).integers(4000, 8000, 20)
    frame, _ = read(csv(tmp_path, "_step,tokens,loss", STEPS, tokens, LOSSES))
    assert frame["step"].tolist() == STEPS.tolist() and frame["loss"].tolist() == pytest.approx(LOSSES)


def test_steps_of_llama_factory_are_known(tmp_path):
    rows = [f'{{"current_steps": {step}, "total_steps": 400, "loss": 2.5, "lr": 1e-4}}' for step in STEPS]
    (tmp_path / "trainer_log.jsonl").write_text("\n".join(rows))
    assert read(tmp_path / "trainer_log.jsonl")[0]["step"].tolist() == STEPS.tolist()


def test_semicolons_and_decimal_commas_are_read(tmp_path):
    """As a spreadsheet writes it in half of Europe."""
    rows = [f"{step},0;{loss:.8f}".replace(".", ",") for step, loss in zip(STEPS, LOSSES)]
    (tmp_path / "x.csv").write_text("\n".join(["Step;Train loss", *rows]))
    frame, _ = read(tmp_path / "x.csv")
    assert frame["step"].tolist() == STEPS.tolist()
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-7)


def test_semicolons_with_thousands_separators_are_read(tmp_path):
    rows = [f"{step * 100:,}.0;{loss:.8f};{step * 1_000_000:,}" for step, loss in zip(STEPS, LOSSES)]
    (tmp_path / "x.csv").write_text("\n".join(["Training Step;Cross entropy, train;Tokens seen", *rows]))
    frame, _ = read(tmp_path / "x.csv", columns={"loss": "Cross entropy, train"})
    assert frame["step"].tolist() == (STEPS * 100).tolist()
    assert frame["tokens"].tolist() == (STEPS * 1_000_000).tolist()
    np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-7)


@pytest.mark.parametrize("separator", [";", "\t"])
def test_points_part_thousands_where_commas_are_decimal(separator, tmp_path):
    """Steps and tokens as 1.000, losses with three decimals or fewer, as a spreadsheet rounds them."""
    name = "x.csv" if separator == ";" else "x.tsv"
    rows = [
        separator.join(
            (
                f"{step * 100:,}".replace(",", "."),
                f"{step * 10**6:,}".replace(",", "."),
                f"{loss:.3f}".replace(".", ","),
            )
        )
        for step, loss in zip(STEPS, LOSSES)
    ]
    (tmp_path / name).write_text("\n".join([separator.join(("Step", "Tokens", "Train loss")), *rows]))
    frame, _ = read(tmp_path / name)
    assert frame["step"].tolist() == (STEPS * 100).tolist() and frame["tokens"].tolist() == (STEPS * 10**6).tolist()
    np.testing.assert_allclose(frame["loss"], LOSSES, atol=6e-4)


def test_a_tab_in_a_csv_is_a_separator(tmp_path):
    (tmp_path / "x.csv").write_text("step\tloss\n" + "".join(f"{s}\t{x}\n" for s, x in zip(STEPS, LOSSES)))
    np.testing.assert_allclose(read(tmp_path / "x.csv")[0]["loss"], LOSSES)


def test_llm_c_main_log_is_read(tmp_path):
    """The file main.log of llm.c's logger; a validation line has no training loss."""
    lines = [f"s:{step} trl:{loss:.4f} lr:0.000600 norm:0.91" for step, loss in zip(STEPS, LOSSES)]
    (tmp_path / "main.log").write_text("\n".join(["s:0 tel:10.9", *lines, "s:250 tel:1.0", "s:250 eval:0.3"]))
    assert format_of(tmp_path / "main.log") == "nanogpt"
    frame, _ = read(tmp_path / "main.log")
    assert frame["step"].tolist() == STEPS.tolist()
    np.testing.assert_allclose(frame["loss"], LOSSES, atol=5e-5)
    np.testing.assert_allclose(frame["lr"], 6e-4)


def test_llm_c_prints_its_tokens_a_step(tmp_path):
    head = f"| {'sequence length T':21} | {1024:<50} |\n| {'total batch size':21} | {524288:<50} |\n"
    lines = [
        f"step {s:4d}/19560 | loss {x:.6f} (+nanz)| norm 1.0 (+nanz)| lr 6.00e-04 | 3.1 ms"
        for s, x in zip(STEPS, LOSSES)
    ]
    (tmp_path / "x.log").write_text(head + "\n".join(lines))
    assert read(tmp_path / "x.log")[0]["tokens"].tolist() == (STEPS * 524288).tolist()


def test_tokens_of_a_batch_are_no_lost_unit(tmp_path):
    (tmp_path / "x.csv").write_text(
        "step,loss,tokens\n" + "".join(f"{1000 * k},{6 / k:.3f},4096\n" for k in range(1, 31))
    )
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["step"].tolist() == list(range(1000, 30_001, 1000))


BEHIND = {
    "BPC": "nats a character",
    "bpb": "nats a byte",
    "bits": "taken as bits",
    "bits/char": "nats a character",
    "bits per byte": "nats a byte",
    "(bits/dim)": "taken as bits",
    "nats": "",
    "ppl": "taken as perplexity",
    "(perplexity)": "taken as perplexity",
}
FORMS = {
    "nanogpt": "iter {s}: loss {x:.9f} {u}, time 25.1ms, mfu 6.0%",
    "text": "step: {s} | train/loss: {x:.9f} {u} | lr: 0.001 | tokens: {s}K",
    "blank": "step {s} train loss {x:.9f} {u} lr 0.001",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", BEHIND)
def test_a_unit_behind_the_number_counts(unit, form, tmp_path):
    """As that of a column so called; an estimate of a validation beside it is none of the steps' own."""
    values = np.exp(LOSSES) if "pp" in unit or "perp" in unit else LOSSES / (1 if unit == "nats" else math.log(2))
    rows = [FORMS[form].format(s=s, x=x, u=unit) for s, x in zip(STEPS, values)]
    (tmp_path / "x.log").write_text(
        "\n".join(["step 0: train loss 6.1 " + unit + ", val loss 6.2 " + unit, *rows]) + "\n"
    )
    frame, notes = read(tmp_path / "x.log")
    np.testing.assert_allclose(frame["loss"].to_numpy()[-20:], LOSSES, rtol=1e-7)
    assert BEHIND[unit] in notes and ("ln" in notes) == (unit != "nats")


NO_UNIT = [
    *("ppl 24.5", "bits: 4.6", "bpb=0.9", "| bpb 0.9", "(ppl 24.5)", "val_loss 4.6 bits", ""),
    *(", ppl≈24.5", "(perplexity of 24.5)", "perplexity is 24.5", "ppl -> 24.5", "ppl (exp): 24.5", ", ppl train 24.5"),
    *(
        "ppl: N/A",
        "[ppl~24.5]",
        ", bpb (est) 1.17",
        "bits/param 4",
        "ppl val 24.5",
        "ppl was 24.5, bpb 0.9",
        ", ppl, 24.5",
    ),
    *(
        "ppl about 24.5",
        "(ppl) 24.5",
        "[ppl]: 24.5",
        "ppl\t24.5",
        "ppl/24.5",
        "perplexity<24.5>",
        "bits_per_weight 4.5",
    ),
    *("ppl of the step 24.5", "bits in fp16", "bits per parameter", ", ppl | lr 0.001", "ppl of validation"),
]


@pytest.mark.parametrize("behind", NO_UNIT)
def test_another_field_behind_the_number_is_no_unit(behind, tmp_path):
    behind = behind if behind.startswith(",") else f" {behind}"
    for form in ("step: {s} loss: {x:.9f}{u}", "iter {s}: loss {x:.9f}{u}", "step {s} train loss {x:.9f}{u}"):
        rows = [form.format(s=s, x=x, u=behind) for s, x in zip(STEPS, LOSSES)]
        (tmp_path / "x.log").write_text("\n".join(rows) + "\n")
        frame, notes = read(tmp_path / "x.log")
        np.testing.assert_allclose(frame["loss"], LOSSES, rtol=1e-7)
        assert "ln" not in notes


@pytest.mark.parametrize(
    "behind",
    [
        *(
            ", 25.1 ms",
            "; lr 0.1",
            " | 25.1 ms",
            ")",
            "]",
            ".",
            "\tnorm: 0.9",
            " grad_norm=0.9",
            " - lr: 0.1",
            " lr .1",
        ),
        *(", val loss 9.1 bits", " val_loss 9.1 bits", ""),
    ],
)
def test_a_unit_that_ends_its_field_counts(behind, tmp_path):
    rows = [f"step {s} loss {x / math.log(2):.9f} bits{behind}" for s, x in zip(STEPS, LOSSES)]
    (tmp_path / "x.log").write_text("\n".join(rows) + "\n")
    np.testing.assert_allclose(read(tmp_path / "x.log")[0]["loss"], LOSSES, rtol=1e-7)
