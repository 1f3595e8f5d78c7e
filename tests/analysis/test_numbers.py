"""Counts of tokens in millions and billions, as names, cells and lines of text say them; and units that are lost."""

import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.analysis.logs.numbers import in_full, scale_of, without_unit
from emergence_train.errors import InputError

ROWS = [(step, round(2 + 5 * step**-0.3, 4)) for step in range(100, 4001, 100)]
BATCH = 524_288


def tokens(path, **options):
    (curve,) = logs.read(path, LogOptions(**options))
    assert curve.frame["step"].tolist() == [step for step, _ in ROWS]
    assert curve.frame["loss"].tolist() == [loss for _, loss in ROWS]
    return curve.frame["tokens"].tolist()


NAMES = {
    "tokens (1e9)": 1e9,
    "tokens (x10^9)": 1e9,
    "tokens (× 10⁹)": 1e9,
    "tokens / 1e6": 1e6,
    "Tokens (Mio.)": 1e6,
    "Tokens [Mrd]": 1e9,
    "tokens (in billions)": 1e9,
    "Tokens (thousand)": 1e3,
    "tokens (1,000)": 1e3,
    "tokens_in_M": 1e6,
    "tokens_b": 1e9,
    "tokens B": 1e9,
    "Tokens/B": 1e9,
    "tokens_1e6": 1e6,
    "billion_tokens": 1e9,
    "train/million_tokens": 1e6,
    "Btokens": 1e9,
    "MTokens": 1e6,
    "ktokens": 1e3,
    "consumed_tokens_billions": 1e9,
    "tokens": 1.0,
    "num_tokens": 1.0,
    "total_tokens": 1.0,
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_what_tokens_are_counted_in(name, tmp_path):
    assert scale_of(name) == NAMES[name]
    rows = [f'{s},{s * BATCH / NAMES[name]:.6f},"{x}"' for s, x in ROWS]
    (tmp_path / "x.csv").write_text("\n".join([f'step,"{name}",loss', *rows]) + "\n")
    assert tokens(tmp_path / "x.csv") == pytest.approx([s * BATCH for s, _ in ROWS], abs=1000)


@pytest.mark.parametrize(
    "name", ["loss", "batch_tokens", "g_step", "step_t", "lr", "params", "tokens_per_batch", "samples"]
)
def test_a_name_without_a_unit_has_none(name):
    assert scale_of(name) == 1.0 and without_unit(name) == name


@pytest.mark.parametrize(
    "cell", ["{:.2f} M", "{:.2f}M", "{:.2f} million", "{:.2f} Mio.", "{:.2f}M tokens", "{:.2f} millions"]
)
def test_a_cell_says_its_own_unit(cell, tmp_path):
    assert in_full(cell.format(52.43)) == pytest.approx(52.43e6)
    for name in ("tokens", "tokens (M)"):
        rows = [f"{s},{cell.format(s * BATCH / 1e6)},{x}" for s, x in ROWS]
        (tmp_path / "x.csv").write_text("\n".join([f"step,{name},loss", *rows]) + "\n")
        assert tokens(tmp_path / "x.csv") == pytest.approx([s * BATCH for s, _ in ROWS], abs=6000)


@pytest.mark.parametrize(
    "line",
    [
        "step: {s} loss: {x} tokens: {m:.2f} M lr: 3e-4",
        "step: {s} loss: {x} tokens: {m:.2f} million lr: 3e-4",
        "step: {s} loss: {x} tokens seen: {m:.2f} Mio. lr: 3e-4",
        "step {s} loss {x} tokens {m:.2f} million lr 3e-4",
        "step {s} | loss {x} | {m:.2f} million tokens | lr 3e-4",
        "step: {s} | {m:.2f} M tokens | loss: {x} | lr: 3e-4",
        "step={s}, loss={x}, tokens={m:.2f}MTok, lr=3e-4",
        "step: {s} loss: {x} tokens(M)={m:.2f} lr: 3e-4",
        "step: {s} loss: {x} Mtokens: {m:.2f} lr: 3e-4",
    ],
)
def test_a_line_says_its_unit_behind_a_blank(line, tmp_path):
    (tmp_path / "x.log").write_text("".join(line.format(s=s, x=x, m=s * BATCH / 1e6) + "\n" for s, x in ROWS))
    assert tokens(tmp_path / "x.log") == pytest.approx([s * BATCH for s, _ in ROWS], abs=6000)
    (curve,) = logs.read(tmp_path / "x.log", LogOptions())
    assert set(curve.frame["lr"]) == {3e-4}


@pytest.mark.parametrize("form", ["{:.2f}", "{:.0f}"])
def test_tokens_whose_unit_is_lost_are_refused(form, tmp_path):
    rows = [f"{s},{form.format(s * BATCH / 1e6)},{x}" for s, x in ROWS]
    (tmp_path / "x.csv").write_text("\n".join(["step,tokens,loss", *rows]) + "\n")
    with pytest.raises(
        InputError, match=r"'tokens' ends at 2097.* no count of the tokens of 4,000 steps; write their unit"
    ):
        tokens(tmp_path / "x.csv")
    assert tokens(tmp_path / "x.csv", tokens_per_step=BATCH) == [s * BATCH for s, _ in ROWS]
    large = [f"{s},{form.format(s * 8.43217)},{x}" for s, x in ROWS]  # of a batch of 8.4 million
    (tmp_path / "x.csv").write_text("\n".join(["step,tokens,loss", *large]) + "\n")
    if form == "{:.2f}":
        with pytest.raises(InputError, match="no count of the tokens"):
            tokens(tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["log10_tokens", "log_tokens", "tokens (log10)"])
def test_logarithms_are_no_tokens(name, tmp_path):
    rows = [f"{s},{5 + s / 1000},{x}" for s, x in ROWS]
    (tmp_path / "x.csv").write_text("\n".join([f"step,{name},loss", *rows]) + "\n")
    assert tokens(tmp_path / "x.csv") == [0] * len(ROWS)
