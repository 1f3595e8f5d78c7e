"""Which column counts a log's tokens, and how many lie ahead of its last row."""

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.outlook import Ahead
from emergence_train.analysis.runs import load

STEP = np.arange(10, 1001, 10)
LOSS = np.round(2.5 + 6 * (1 + STEP / 40) ** -0.5, 4)
EXACT = STEP * 49_152


def table(tmp_path, **columns):
    pd.DataFrame({"step": STEP, "loss": LOSS} | columns).to_csv(tmp_path / "log.csv", index=False)
    return tmp_path / "log.csv"


@pytest.mark.parametrize("name", ["tokens", "total_tokens", "tokens_total", "train/tokens_total"])
@pytest.mark.parametrize(
    "beside",
    [
        {"tokens_billions": np.round(EXACT / 1e9, 4)},
        {"tokens_billions": np.round(EXACT / 1e9, 0)},
        {"Tokens (M)": np.round(EXACT / 1e6)},
        {"consumed_tokens": [f"{count / 1e6:.0f}M" for count in EXACT]},
        {"num_tokens": 49_152},
        {},
    ],
    ids=lambda beside: "-".join(beside),
)
def test_tokens_are_those_of_the_exact_column(name, beside, tmp_path):
    """Neither rounded ones nor those of a step, whichever column is first."""
    for columns in ({name: EXACT} | beside, beside | {name: EXACT}):
        (curve,) = logs.read(table(tmp_path, **columns), LogOptions())
        assert curve.frame["tokens"].tolist() == EXACT.tolist()
        assert f"tokens from '{name}'" in curve.notes[0]


def test_a_count_of_any_group_is_before_a_constant(tmp_path):
    (curve,) = logs.read(table(tmp_path, num_tokens=49_152, **{"stats/input_tokens_total": EXACT}), LogOptions())
    assert curve.frame["tokens"].tolist() == EXACT.tolist()


def test_scaled_tokens_count_where_no_exact_ones_grow(tmp_path):
    rounded = np.round(EXACT / 1e6, 1)
    (curve,) = logs.read(table(tmp_path, total_tokens=49_152, **{"tokens (M)": rounded}), LogOptions())
    assert curve.frame["tokens"].tolist() == np.round(rounded * 1e6).tolist()


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("form", ["csv", "log"])
def test_tokens_before_the_first_step_have_an_end(form, every, tmp_path):
    """Composer prints the tokens before the batch, 0 in the first row."""
    step = np.arange(1, 41) * every
    tokens = (step - every) * 65_536
    if form == "csv":
        path = tmp_path / "log.csv"
        pd.DataFrame({"step": step, "loss": LOSS[:40], "tokens": tokens}).to_csv(path, index=False)
    else:
        path = tmp_path / "log.log"
        lines = (f"step {s}/{100 * every} loss {x} tokens {n}\n" for s, x, n in zip(step, LOSS, tokens))
        path.write_text("".join(lines))
    (series,) = load([path], ahead=Ahead(10**8 if form == "csv" else None))
    tokens, step = (10**8, 10**8 // 65_536) if form == "csv" else (100 * every * 65_536, 100 * every)
    assert series.end_step == pytest.approx(step, rel=1.1 / len(series.step))
    assert series.end_tokens == pytest.approx(tokens, rel=1.1 / len(series.step))


LENGTH, BATCH, RAMP = 2048, 512, (128, 96, 150_000)


def megatron_samples(total):
    """Samples after each iteration, as Megatron's calculator of micro-batches counts them one by one."""
    first, by, until = RAMP
    consumed = [0]
    while consumed[-1] < total:
        grown = consumed[-1] > until
        consumed.append(
            consumed[-1] + (BATCH if grown else first + int(consumed[-1] / (until / ((BATCH - first) / by))) * by)
        )
    return np.array(consumed[:-1])


def megatron(tmp_path, last, total=400_000, **changed):
    """A log until the row `last`, after its dump; of lines that srun labels."""
    samples = megatron_samples(total)
    arguments = {
        "global_batch_size": BATCH,
        "micro_batch_size": 16,
        "rampup_batch_size": [f"{number:_}" for number in RAMP],
        "seq_length": LENGTH,
        "train_samples": total,
    } | changed
    lines = [f"0:   {name} {'.' * (48 - len(name))} {value}" for name, value in arguments.items()]
    for step in range(20, last + 1, 20):
        lines.append(
            f"0:  iteration {step:8d}/{len(samples) - 1:8d} | consumed samples: {samples[step]:12d} | elapsed time per iteration "
            f"(s): 3.45 | learning rate: 3.000E-04 | lm-loss: {2.4 + 6 * (1 + step / 80) ** -0.45:.6E} | mtp_1 loss: 9.1 |"
        )
    (tmp_path / "run.out").write_text("\n".join([*lines, ""]))
    return tmp_path / "run.out", samples


@pytest.mark.parametrize("last", [100, 400, 500])
def test_a_batch_that_is_planned_to_grow_is_followed(last, tmp_path):
    path, samples = megatron(tmp_path, last)
    (series,) = load([path])
    assert series.end_step == len(samples) - 1
    assert series.end_tokens == pytest.approx(samples[-1] * LENGTH, rel=2e-3)
    steps = np.arange(last, len(samples))
    np.testing.assert_allclose(series.tokens_at(steps), samples[steps] * LENGTH, rtol=2e-3)
    assert any("tokens beyond the last row by the rampup_batch_size (128 to 512 samples" in n for n in series.notes)
    assert any("what a larger batch brings is not in the forecast" in n for n in series.notes) is (last == 100)
    half = int(samples[last] + samples[-1]) // 2
    (series,) = load([path], ahead=Ahead(half * LENGTH))
    assert series.end_step == pytest.approx(np.searchsorted(samples, half), abs=2)


def test_a_ramp_that_is_over_is_no_more_said(tmp_path):
    path, samples = megatron(tmp_path, 700)
    (series,) = load([path])
    assert samples[700] > RAMP[2] and not any("rampup" in note for note in series.notes)
    assert series.end_tokens == pytest.approx(samples[-1] * LENGTH, rel=0.01)


@pytest.mark.parametrize("changed", [{"train_samples": 900_000}, {"rampup_batch_size": ["64", "64", "150_000"]}])
def test_a_dump_of_other_samples_is_not_used(changed, tmp_path):
    path, samples = megatron(tmp_path, 400, **changed)
    (series,) = load([path])
    batch = samples[400] - samples[340]
    assert series.end_tokens == pytest.approx((samples[400] + batch / 60 * (len(samples) - 401)) * LENGTH, rel=0.01)
    assert any("samples are not those of the rampup_batch_size" in note for note in series.notes)


def test_tokens_a_step_that_are_given_outdo_a_ramp(tmp_path):
    path, samples = megatron(tmp_path, 400)
    (series,) = load([path], options=LogOptions(tokens_per_step=1000))
    assert series.end_tokens == 1000 * (len(samples) - 1)


def test_losses_of_an_iteration_are_named_whole(tmp_path):
    path, _ = megatron(tmp_path, 100)
    for columns in ({}, {"loss": "lm-loss"}):
        (curve,) = logs.read(path, LogOptions(columns=columns))
        assert "loss from 'lm-loss'" in curve.notes[0] and curve.frame["loss"].iloc[0] < 9
    (curve,) = logs.read(path, LogOptions(columns={"loss": "mtp 1 loss"}))
    assert {*curve.frame["loss"]} == {9.1}


@pytest.mark.parametrize("name", ["num_tokens_per_step", "tokens_per_step"])
def test_a_column_of_a_step_s_tokens_counts_by_its_mean(name, tmp_path):
    """NeMo Automodel's; but where there is a count of all, where it is given, or where the batch grows."""
    of_a_step = np.random.default_rng(0).integers(12_000, 15_000, len(STEP))
    (curve,) = logs.read(table(tmp_path, **{name: of_a_step}), LogOptions())
    assert curve.frame["tokens"].iloc[-1] == pytest.approx(10 * of_a_step.sum(), rel=1e-4)
    assert f"tokens {round(of_a_step.mean()):,} a step" in curve.notes[0]
    (curve,) = logs.read(table(tmp_path, **{name: of_a_step}), LogOptions(tokens_per_step=7))
    assert curve.frame["tokens"].tolist() == (7 * STEP).tolist()
    (curve,) = logs.read(table(tmp_path, tokens=EXACT, **{name: of_a_step}), LogOptions())
    assert curve.frame["tokens"].tolist() == EXACT.tolist()
    (curve,) = logs.read(table(tmp_path, **{name: np.where(STEP < 500, 1, 2) * 8192}), LogOptions())
    assert not curve.frame["tokens"].any()


@pytest.mark.parametrize("name", ["batch_size_in_tokens", "global_batch_size_tokens", "train/tokens_per_update"])
def test_tokens_are_steps_of_a_batch_that_is_said(name, tmp_path):
    """Rows lie ten steps apart, the last one step behind; a batch beyond what lies between two rows is no step's."""
    steps = np.r_[STEP, STEP[-1] + 1]
    rows = {"loss": np.r_[LOSS, 2.6], "tokens": steps * 524_288, name: 524_288}
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)
    (curve,) = logs.read(tmp_path / "log.csv", LogOptions())
    assert curve.frame["step"].tolist() == steps.tolist() and any(
        "524,288 tokens, of a batch," in n for n in curve.notes
    )
    pd.DataFrame(rows | {name: 10 * 524_288})[:-1].to_csv(tmp_path / "log.csv", index=False)
    assert logs.read(tmp_path / "log.csv", LogOptions())[0].frame["step"].tolist() == (STEP // 10).tolist()
    pd.DataFrame(rows | {name: 10**9}).to_csv(tmp_path / "log.csv", index=False)
    assert logs.read(tmp_path / "log.csv", LogOptions())[0].frame["step"].tolist() == steps.tolist()
    (curve,) = logs.read(table(tmp_path, **{name: 4096}), LogOptions())
    assert curve.frame["tokens"].tolist() == (STEP * 4096).tolist()


def test_tokens_of_an_iteration_are_none_of_a_step(tmp_path):
    """An iteration may be a micro-batch; a setting that one row has is none of the run's."""
    path = table(
        tmp_path,
        tokens_per_iter=512,
        **{"config/tokens_per_step": [7, *[None] * (len(STEP) - 1)]},
        tokens_per_step=4096,
    )
    assert logs.read(path, LogOptions())[0].frame["tokens"].tolist() == (STEP * 4096).tolist()


def test_steps_that_may_be_tokens_are_noted(tmp_path):
    """NeMo's MLPerf logs: the remedy of the note reads them."""
    path = table(tmp_path, step=STEP * 1_207_959)
    (curve,) = logs.read(path, LogOptions())
    assert "'step' ends at 1,207,959,000: if it counts tokens, give --tokens-per-step 1" in curve.notes
    (curve,) = logs.read(path, LogOptions(tokens_per_step=1))
    assert curve.frame["tokens"].iloc[-1] == 1_207_959_000 and not any("counts tokens" in n for n in curve.notes)
