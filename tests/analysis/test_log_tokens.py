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
