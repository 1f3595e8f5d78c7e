"""Text logs of named numbers, compressed and foreign-coded files, several runs in one file. The losses written are known."""

import gzip
import json
import re
import time

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions, format_of
from emergence_train.analysis.logs.fields import FIELD, NAME, NUMBER, fields_of, read_fields
from emergence_train.analysis.logs.text import read_nanogpt
from emergence_train.errors import InputError

STEPS = np.arange(10, 210, 10)
LOSSES = np.round(2 + 3 * STEPS**-0.3, 4)
RATES = np.round(np.linspace(1e-3, 1e-4, len(STEPS)), 6)
ROWS = list(zip(STEPS.tolist(), LOSSES.tolist(), RATES.tolist()))


def torchtitan(step, loss, rate):
    return (
        f"[rank0]:[titan] 2026-01-02 03:04:05,123 - root - INFO - \x1b[31mstep: {step:2}  \x1b[32mloss: {loss:7.4f}  "
        f"\x1b[38;2;180;60;0mgrad_norm:  0.9123  \x1b[33mmemory: 47.22GiB(59.61%)  \x1b[34mtps: 5,812  \x1b[35mmfu: 30.4%\x1b[39m"
    )


def modded(step, loss, rate):
    return f"step:{step}/400 train_loss:{loss:.4f} train_time:{step * 500}ms step_avg:500.12ms"


def litgpt(step, loss, rate):
    return f"Epoch 1 | iter {step * 4} step {step} | loss train: {loss:.4f}, val: n/a | iter time: 512.23 ms (step)"


def nemo(step, loss, rate):
    return (
        f"Training epoch 0, iteration {step}/400 | lr: {rate:.6f} | global_batch_size: 32 | global_step: {step} | "
        f"reduced_train_loss: {loss:.4f} | train_step_timing in s: 0.52 | consumed_samples: {step * 32}"
    )


def olmo(step, loss, rate):
    return (
        f"2026-01-02T03:04:05.123Z\thost:0\tolmo.train:966\tINFO\t[step={step}/400,epoch=0]\n"
        f"    optim/total_grad_norm=0.5123\n    train/CrossEntropyLoss={loss:.4f}\n    train/Perplexity={np.exp(loss):.3f}\n"
        f"    throughput/total_tokens={step * 4096:,}\n    optim/learning_rate_group0={rate:.6f}"
    )


def olmo_core(step, loss, rate):
    return (
        f"2026-01-02T03:04:05.123Z\thost:0\tconsole_logger:81\tINFO\t[step={step}/400,epoch=1/1,eta=1:02:03]\n"
        f"    optim/LR (group 0)={rate:.6f}\n    train/CE loss={loss:.4f}\n    throughput/total tokens={step * 4096:,}"
    )


# sample: (planned last step, tokens a step, whether the learning rate is in it)
SAMPLES = {
    torchtitan: (None, 0, False),
    modded: (400, 0, False),
    litgpt: (None, 0, False),
    nemo: (400, 0, True),
    olmo: (400, 4096, True),
    olmo_core: (400, 4096, True),
}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
def test_text_with_fields_is_read(sample, tmp_path):
    path = tmp_path / "run.log"
    lines = ["starting, 8 steps of warm-up", *(sample(*row) for row in ROWS), "done"]
    path.write_text("\n".join(lines))
    end, per_step, rated = SAMPLES[sample]
    assert format_of(path) == "text"
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist()
    assert curve.frame["loss"].tolist() == LOSSES.tolist()
    assert curve.frame["tokens"].tolist() == (STEPS * per_step).tolist()
    np.testing.assert_allclose(curve.frame["lr"], RATES if rated else np.nan, rtol=1e-12)
    assert (curve.run, curve.log.end_step) == ("run", end)


@pytest.mark.parametrize(
    ("short", "tokens"), [("1.25B", 1_250_000_000), ("12B", 12_000_000_000), ("3G", 3_000_000_000)]
)
def test_a_field_in_short_is_read_whole(short, tokens, tmp_path):
    (tmp_path / "run.log").write_text(f"step: 10 train_loss: 5.9 tokens: {short} lr: 3e-4 memory: 47.22GiB wd: 0.1\n")
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame["tokens"].tolist() == [tokens]
    assert curve.frame["lr"].tolist() == [3e-4]
    assert "memory" not in curve.log.rows and curve.log.rows["wd"].tolist() == ["0.1"]


@pytest.mark.parametrize(
    "line", ["step: 10 loss: 5.9 tokens: 1.25B lr: 3e-4", "step 10 | loss: 5.9 | tokens: 1.25B | lr: 3e-4"]
)
def test_a_plain_loss_beside_tokens_keeps_them(line, tmp_path):
    (tmp_path / "run.log").write_text(line + "\n")
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame[["step", "tokens", "lr", "loss"]].to_numpy().tolist() == [[10, 1_250_000_000, 3e-4, 5.9]]


def test_torchtitan_without_colours_goes_to_its_reader(tmp_path):
    (tmp_path / "run.log").write_text("step: 10  loss:  7.1234  grad_norm:  0.9123  tps: 5,812\n")
    assert format_of(tmp_path / "run.log") == "text"


def test_nanochat_says_the_tokens_of_a_step(tmp_path):
    path = tmp_path / "speedrun.log"
    lines = ["Total batch size 524,288 => gradient accumulation steps: 1", "Step 00000 | Validation bpb: 3.2000"]
    lines += [
        f"step {s:05d}/00400 (9.00%) | loss: {x:.6f} | lrm: 1.00 | dt: 9.1ms | tok/sec: 9,432" for s, x, _ in ROWS
    ]
    path.write_text("\n".join(lines))
    (curve,) = logs.read(path, LogOptions())
    assert curve.frame["tokens"].tolist() == (STEPS * 524288).tolist()


@pytest.mark.parametrize("form", [" | lrm: {rate:.2f}", " | lrm: {rate:.2f} | lr(adamw:3e-2, muon:1e-2)"])
def test_nanochat_s_multiplier_is_the_rate(form, tmp_path):
    """Beside a rate it is none; a table of the same name has it too."""
    path, falls = tmp_path / "run.log", [1 - s / 1000 for s, *_ in ROWS]
    lines = [f"step {s:05d}/00400 | loss: {x:.6f}{form.format(rate=1 - s / 1000)} | dt: 9.1ms" for s, x, _ in ROWS]
    path.write_text("\n".join(lines))
    (curve,) = logs.read(path, LogOptions())
    assert np.allclose(curve.frame["lr"], falls, atol=0.006) and "lr from 'lrm'" in curve.notes[0]
    path.write_text("\n".join(f"{line} | lr 3e-4" for line in lines))
    assert {*logs.read(path, LogOptions())[0].frame["lr"]} == {3e-4}
    table = pd.DataFrame({"step": STEPS, "train/loss": [x for _, x, _ in ROWS], "train/lrm": falls})
    table.to_csv(tmp_path / "run.csv", index=False)
    assert logs.read(tmp_path / "run.csv", LogOptions())[0].frame["lr"].tolist() == pytest.approx(falls)


@pytest.mark.parametrize(
    "line",
    [
        "step {s}/400 | loss: {x} | norm: 0.3 | w/decay: {v} | dt: 9.1ms",
        "iter {s}: loss {x}, time 251.13ms, w/decay {v}",
        " iteration {s}/ 400 | consumed samples: {s} | lm loss: {x} | norm: 0.3 | w/decay: {v} |",
    ],
)
def test_every_field_of_a_line_may_be_named(line, tmp_path):
    path = tmp_path / "run.log"
    path.write_text("\n".join(line.format(s=s, x=round(x, 4), v=round(s / 1000, 3)) for s, x, _ in ROWS) + "\n")
    assert format_of(path) in ("nanogpt", "megatron") and logs.read(path, LogOptions())[0].frame["lr"].isna().all()
    (curve,) = logs.read(path, LogOptions(columns={"lr": "w/decay"}))
    assert curve.frame["lr"].tolist() == [round(s / 1000, 3) for s, *_ in ROWS]
    with pytest.raises(InputError, match=r"has no column 'decay' \(it has .*w/decay"):
        logs.read(path, LogOptions(columns={"lr": "decay"}))


def test_what_the_trainer_prints_names_its_state_file(tmp_path):
    path = tmp_path / "train.out"
    path.write_text("\n".join(str({"loss": loss, "learning_rate": rate, "epoch": 0.1}) for _, loss, rate in ROWS))
    with pytest.raises(InputError, match="output directory, whose trainer_state.json has them"):
        logs.read(path, LogOptions())


def table(rows=ROWS):
    return "step,loss\n" + "".join(f"{step},{loss}\n" for step, loss, _ in rows)


@pytest.mark.parametrize("name", ["x.csv.gz", "x.jsonl.gz", "x.log.gz"])
def test_compressed_logs_are_read(name, tmp_path):
    texts = {
        "x.csv.gz": table(),
        "x.jsonl.gz": "".join(json.dumps({"step": step, "metrics": {"loss": loss}}) + "\n" for step, loss, _ in ROWS),
        "x.log.gz": "\n".join(modded(*row) for row in ROWS),
    }
    with gzip.open(tmp_path / name, "wt") as file:
        file.write(texts[name])
    (curve,) = logs.read(tmp_path / name, LogOptions())
    assert curve.run == "x" and curve.frame["loss"].tolist() == LOSSES.tolist()


def test_a_damaged_archive_is_one_line(tmp_path):
    data = gzip.compress(table().encode())
    (tmp_path / "x.csv.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"x\.csv\.gz: cannot be read as a table"):
        logs.read(tmp_path / "x.csv.gz", LogOptions())


def test_utf16_with_tabs_and_decimal_commas_is_read(tmp_path):
    """What a German spreadsheet saves as "Unicode text": the steps part thousands by points, the losses have decimal commas."""
    lines = [f"{1000 * step:,}".replace(",", ".") + f"\t{str(loss).replace('.', ',')}" for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\r\n".join(["Step\tLoss", *lines]), encoding="utf-16", newline="")
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES.tolist()
    assert curve.frame["step"].tolist() == (1000 * STEPS).tolist()


def test_lightning_csv_logger_is_a_run_a_version(tmp_path):
    for version, shift in (("version_0", 0.0), ("version_1", 1.0)):
        (tmp_path / "logs" / version).mkdir(parents=True)
        rows = [f"{rate},{step},\n,{step},{loss + shift}" for step, loss, rate in ROWS]
        (tmp_path / "logs" / version / "metrics.csv").write_text("\n".join(["lr-AdamW,step,train_loss_step", *rows]))
    curves = logs.read(tmp_path / "logs", LogOptions())
    assert [curve.run for curve in curves] == ["version_0", "version_1"]
    assert curves[1].frame["loss"].tolist() == (LOSSES + 1.0).tolist()
    assert curves[0].frame["lr"].tolist() == RATES.tolist()


@pytest.mark.parametrize("column", ["run", "experiment", "Model Name"])
def test_runs_of_a_long_table_are_told_apart(column, tmp_path):
    """Two runs of equal steps: read as one, the second would pass for a resumption of the first."""
    rows = [f"{run},{step},{loss + shift}" for run, shift in (("a", 0.0), ("b", 1.0)) for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\n".join([f"{column},step,loss", *rows]))
    a, b = logs.read(tmp_path / "x.csv", LogOptions())
    assert (a.run, b.run) == ("a", "b")
    assert b.frame["loss"].tolist() == (LOSSES + 1.0).tolist()


@pytest.mark.parametrize("column", ["job", "run_id", "seed"])
def test_a_resumed_run_is_one(column, tmp_path):
    rows = [f"{100 + (step > 100)},{step},{loss}" for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\n".join([f"{column},step,loss", *rows]))
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES.tolist()
    assert any(f"{column!r} changes" in note for note in curve.notes) or column == "job"
    assert len(logs.read(tmp_path / "x.csv", LogOptions(columns={"run": column}))) == 2


def test_a_column_that_may_name_the_runs_is_suggested(tmp_path):
    rows = [f"{run},{step},{loss}" for run in ("first", "second") for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\n".join(["variant,step,loss", *rows]))
    with pytest.raises(InputError, match="differ by 'variant' .first, second., .*; give --column run=variant, or"):
        logs.read(tmp_path / "x.csv", LogOptions())
    assert len(logs.read(tmp_path / "x.csv", LogOptions(columns={"run": "variant"}))) == 2
    assert len(logs.read(tmp_path / "x.csv", LogOptions(columns={"run": "-"}))) == 1


def test_a_pattern_takes_a_run_a_column(tmp_path):
    frame = pd.DataFrame({"step": STEPS, "lr": RATES, "a/loss": LOSSES, "b/loss": LOSSES + 1, "note": ""})
    frame.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(InputError, match=r"give --column loss=NAME, or --column loss='\*' where each is a run"):
        logs.read(tmp_path / "x.csv", LogOptions())
    a, b = logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "*/loss"}))
    assert (a.run, b.run) == ("a", "b")
    assert b.frame["loss"].tolist() == (LOSSES + 1).tolist() and b.frame["lr"].tolist() == RATES.tolist()
    with pytest.raises(InputError, match="no column is like 'c/"):
        logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "c/*"}))


def test_a_pattern_keeps_the_runs_of_a_chart_apart(tmp_path):
    rows = [f"{step},{loss},{loss + 1}" for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\n".join(["Step,a - foo,b - foo", *rows]))
    curves = logs.read(tmp_path / "x.csv", LogOptions(columns={"loss": "f*"}))
    assert [curve.run for curve in curves] == ["a-oo", "b-oo"]


def test_steps_that_begin_anew_are_counted_on(tmp_path):
    """A resumed run whose counter of steps started from 0 again, while its tokens went on."""
    rows = [{"step": s if s <= 120 else s - 120, "tokens": 512 * s, "loss": loss} for s, loss, _ in ROWS]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (curve,) = logs.read(tmp_path / "x.jsonl", LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist() and curve.frame["loss"].tolist() == LOSSES.tolist()
    assert any("begin anew at row 13 " in note for note in curve.notes)


def test_tokens_in_short_are_numbers(tmp_path):
    lines = [f"{step},{step / 1000:.3f}B,{loss}" for step, loss, _ in ROWS]
    (tmp_path / "x.csv").write_text("\n".join(["step,tokens,loss", *lines]))
    (curve,) = logs.read(tmp_path / "x.csv", LogOptions())
    assert curve.frame["tokens"].tolist() == (STEPS * 1_000_000).tolist()


@pytest.mark.parametrize(
    "line, fields",
    [
        ("step: 5 device: cuda lr: 3e-4 loss: 2.5", {"step": "5", "lr": "3e-4", "loss": "2.5"}),
        ("phase=fit lm loss=2.5", {"lm loss": "2.5"}),
        ("INFO: lm loss: 2.5 | aux loss: 0.1", {"lm loss": "2.5", "aux loss": "0.1"}),
        ("{'mode': 'fit', 'loss': '2.5'}", {"loss": "2.5"}),
    ],
)
def test_a_word_that_is_a_value_is_no_name(line, fields):
    assert fields_of(line) == fields


def test_the_step_of_a_line_counts_not_its_bar(tmp_path):
    """A progress bar may count batches, or begin anew in a resumed run."""
    bar = "12%|# | {}/1000 [00:10<01:15, 9.1it/s, step={}, loss={}]\n"
    (tmp_path / "run.log").write_text("".join(bar.format(k, 5000 + s, x) for k, (s, x, _) in enumerate(ROWS)))
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame["step"].tolist() == (5000 + STEPS).tolist() and curve.frame["loss"].tolist() == LOSSES.tolist()
    assert curve.log.end_step is None
    (tmp_path / "run.log").write_text("".join(bar.format(s, s, x) for s, x, _ in ROWS))
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame["step"].tolist() == STEPS.tolist() and curve.log.end_step == 1000


def test_a_rounded_step_is_the_count_of_its_bar(tmp_path):
    """NeMo's bar from 100,000 steps on, of which three digits are left; it counts from 1 and the step from 0."""
    steps = (100_000 + STEPS).tolist()
    bar = "Epoch 0: :  95%|# | {}/200000 [06:19<07:13, v_num=8-06, reduced_train_loss={}, global_step={}]\r"
    (tmp_path / "run.log").write_text("".join(bar.format(s, x, f"{s - 1:.2e}") for s, x in zip(steps, LOSSES)))
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame["step"].tolist() == steps and curve.frame["loss"].tolist() == LOSSES.tolist()


@pytest.mark.parametrize("time_of_a_step", ["time/step: 100.43ms", "sec per step: 12.40", "time/step: 100ms"])
def test_the_time_of_a_step_is_no_step(time_of_a_step, tmp_path):
    for form in (
        f"iter {{}} | train_loss: {{}} | {time_of_a_step}\n",
        f"{time_of_a_step} | iter {{}} | train_loss: {{}}\n",
    ):
        (tmp_path / "run.log").write_text("".join(form.format(s, x) for s, x, _ in ROWS))
        (curve,) = logs.read(tmp_path / "run.log", LogOptions())
        assert curve.frame["step"].tolist() == STEPS.tolist() and curve.frame["loss"].tolist() == LOSSES.tolist()


def test_a_decimal_comma_in_a_text_is_one(tmp_path):
    (tmp_path / "run.log").write_text("".join(f"step: {s} loss: {str(x).replace('.', ',')}\n" for s, x, _ in ROWS))
    (curve,) = logs.read(tmp_path / "run.log", LogOptions())
    assert curve.frame["loss"].tolist() == LOSSES.tolist()


def test_a_long_line_of_words_takes_no_time():
    """A sample of a model's text in the log."""
    begin = time.process_time()
    assert fields_of("step 5 sample " + "word (and) other/things " * 3000 + "| loss: 2.5") == {"loss": "2.5"}
    assert fields_of("sample: " + "word (and) other/things " * 3000 + "loss: 2.5") == {"loss": "2.5"}
    assert time.process_time() - begin < 0.5


def test_fields_are_those_of_a_search_that_goes_back():
    """Names that never give back a letter, and words passed over, leave what names that do find."""
    name = NAME.replace("*+", "*")
    loose = re.compile(rf"['\"]?{name}['\"]?\s*[:=]\s*['\"]?{NUMBER}")
    texts = [sample(*row) for sample in SAMPLES for row in ROWS]
    texts += [
        "a b c: d e: 3 f",
        "a.b (c)/d-e: .5",
        "a  b c= 'nan' x:=3",
        "{'a b': '1,0', \"c\": 2}",
        "47.22GiB a: 3GiB b 4: 5",
    ]
    for text in texts:
        assert [field for field in FIELD.findall(text) if field[1]] == loose.findall(text)


@pytest.mark.parametrize(
    "line",
    [
        "iter {s:,}: loss {x:.3f}, time 251ms",
        "step {s:,}/19,560 | loss {x:.3f} | time 251ms",
        "step {s}, loss {x:.3f}",
        "step: {s:,}/19,560 loss: {x:.3f}",
        "tokens per step: 524288 | step: {s} | loss: {x:.3f}",
        "tokens/step: 524288 | step: {s} | loss: {x:.3f}",
        "train/step: {s} | loss: {x:.3f}",
        "step: {s}.0 loss: {x:.3f}",
        "step {s}.0 loss {x:.3f}",
    ],
)
def test_a_step_is_whole_in_any_hand(line, tmp_path):
    rows = [(500 * k, 6 - k / 8) for k in range(1, 9)]
    (tmp_path / "x.log").write_text("".join(line.format(s=s, x=x) + "\n" for s, x in rows))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert list(zip(curve.frame["step"], curve.frame["loss"])) == rows


def test_the_planned_last_step_may_have_commas(tmp_path):
    for reader, line in ((read_nanogpt, "step {:,}/19,560 | loss 5.5"), (read_fields, "step: {:,}/19,560 loss: 5.5")):
        (tmp_path / "x.log").write_text("".join(line.format(500 * k) + "\n" for k in range(1, 9)))
        (log,) = reader(tmp_path / "x.log")
        assert log.end_step == 19560


def test_an_update_with_a_point_is_a_part_of_an_epoch(tmp_path):
    """fairseq's "update" is 0.0, 0.5, 1.0 of an epoch; its num_updates are steps."""
    rows = [f'{{"epoch": 1, "update": {k / 2:.1f}, "loss": "{5 - k / 10:.3f}"}}' for k in range(6)]
    (tmp_path / "x.log").write_text("\n".join(f"INFO | train | {row}" for row in rows))
    with pytest.raises(InputError, match="not a log that is known"):
        logs.read(tmp_path / "x.log", LogOptions())
    rows = [row.replace("}", f', "num_updates": "{10 * k}"}}') for k, row in enumerate(rows)]
    (tmp_path / "x.log").write_text("\n".join(f"INFO | train | {row}" for row in rows))
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert curve.frame["step"].tolist() == [0, 10, 20, 30, 40, 50]
