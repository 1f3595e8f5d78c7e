"""Untrained checkpoints in tables without unigram_loss: which rows go, and that no verdict and no threshold follows them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emergence_train.analysis.emergence import simulate
from emergence_train.analysis.emergence import table as emergence_table
from emergence_train.analysis.emergence.analyze import find
from emergence_train.analysis.emergence.untrained import trained
from emergence_train.errors import InputError
from support import study


def curve(losses, tokens=None, run="a") -> pd.DataFrame:
    tokens = 10.0 ** np.arange(len(losses)) if tokens is None else np.asarray(tokens, float)
    return pd.DataFrame({"run": run, "params": 1, "step": tokens, "tokens": tokens, "loss": losses})


def kept(frame: pd.DataFrame, unigram: float | None = None) -> list[float]:
    return trained(frame, unigram, [])["loss"].tolist()


TRAINED = [3.6, 3.3, 3.1, 2.9, 2.8, 2.7, 2.6, 2.5]


def test_untrained_rows_by_hand():
    for untrained in (10.8, 7.6, 6.0, 5.0):  # above every unigram model, and far above the others
        assert kept(curve([untrained, *TRAINED])) == TRAINED
    assert kept(curve([10.9, 10.8, *TRAINED])) == TRAINED
    assert (
        kept(curve([3.9, *TRAINED], tokens=[0, *range(1, 9)])) == TRAINED
    )  # before the first token, whatever its loss
    assert kept(curve([8.0, 7.0, 5.0, 4.0]), unigram=6.5) == [5.0, 4.0]


def test_rows_that_are_trained_are_kept():
    assert kept(curve([4.0, *TRAINED])) == [4.0, *TRAINED]  # no further from the next than that from its own
    ratios = [5.0, 4.2, 3.7, 3.4, 3.2, 3.05, 2.95, 2.9]  # checkpoints at even ratios of tokens
    assert kept(curve(ratios)) == ratios
    small = pd.concat(
        [curve([5.5, 5.4, 5.3], [1e9, 2e9, 4e9], "small"), curve(TRAINED, np.arange(1, 9) * 1e9, "large")]
    )
    assert len(kept(small)) == 11  # a small model far above the others, and well trained
    assert kept(curve([9.0, 8.5, 8.0])) == [9.0, 8.5, 8.0]  # too few would remain


def with_untrained(frame: pd.DataFrame, loss: float, step: int) -> pd.DataFrame:
    """The table with one untrained checkpoint of its smallest run, at chance."""
    first = frame.sort_values(["params", "step"]).iloc[[0]]
    share = float(first["chance"].iloc[0])
    tokens = int(step * first["tokens"].iloc[0] / first["step"].iloc[0])
    return pd.concat([frame, first.assign(step=step, tokens=tokens, loss=loss, value=share)], ignore_index=True)


def judged(frame: pd.DataFrame, tmp_path: Path):
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    finding = find(emergence_table.load(path)[0][0])
    onset = finding.verdict.onset
    return finding.verdict.name, None if onset is None else [finding.task.loss_at(share) for share in onset]


@pytest.mark.parametrize("kind", simulate.KINDS)
def test_an_untrained_checkpoint_turns_no_verdict(kind, tmp_path):
    """Ten simulated tables a kind, losses of 5.6 to 11.5 nats at step 0 or a few steps later."""
    for seed in range(10):
        rng = np.random.default_rng([seed, 3])
        frame, _ = simulate.table(kind, rng)
        loss, step = rng.uniform(7.6, 11.5), int(rng.choice([0, 1, 20]))
        if seed % 2:
            loss, step = rng.uniform(5.6, 11.5), 0
        name, eta = judged(frame, tmp_path)
        same, moved = judged(with_untrained(frame, loss, step), tmp_path)
        assert same == name, (seed, loss, step)
        assert eta is None or abs(moved[0] - eta[0]) < 1e-9


def test_untrained_checkpoints_of_every_run_turn_no_verdict(tmp_path):
    script = study("emergence_items")
    for seed in range(6):
        rng = np.random.default_rng([seed, 4])
        frame, _ = script.table(rng, items=1000, rows="sparse")
        first = frame.sort_values("step").groupby("run").head(1)
        chance = frame["chance"].iloc[0]
        untrained = first.assign(step=0, tokens=0, loss=rng.uniform(9, 11, len(first)), value=chance)
        assert judged(frame, tmp_path)[0] == judged(pd.concat([frame, untrained]), tmp_path)[0]


def ladder(decay: np.ndarray, lows: tuple[float, ...], unigram: float | None = None) -> pd.DataFrame:
    """Runs of 12 checkpoints whose losses fall to `lows` as `decay` (12,) falls to 0; the task rises with the lowest half."""
    tokens = np.geomspace(1e7, 1e9, 12).round()
    runs = []
    for k, low in enumerate(lows):
        own = {
            "run": f"r{k}",
            "params": 10 ** (6 + k),
            "step": np.rint(tokens / 1e5),
            "tokens": tokens,
            "loss": low + decay,
        }
        runs.append(pd.DataFrame(own))
    frame = pd.concat(runs, ignore_index=True)
    x = (frame["loss"].max() - frame["loss"]) / np.ptp(frame["loss"])
    frame = frame.assign(task="t", metric="acc", value=0.25 + 0.6 * np.clip(x - 0.5, 0, 1), items=2000, stderr=0.01)
    frame = frame.assign(chance=0.25, higher_is_better=True)
    return frame if unigram is None else frame.assign(unigram_loss=unigram)


DECAY = np.geomspace(3, 0.3, 12)
LOWS = (2.4, 2.0, 1.7)


def load(frame: pd.DataFrame, tmp_path: Path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    tasks, _, notes = emergence_table.load(tmp_path / "t.csv")
    return [note for task in tasks for note in task.notes] + notes


@pytest.mark.parametrize("unit", [np.exp, lambda nats: 8 + nats])
def test_no_loss_below_the_unigram_models_is_refused(unit, tmp_path):
    frame = ladder(DECAY, LOWS)
    wrong = frame.assign(loss=unit(frame["loss"]), unigram_loss=7.2 if unit is not np.exp else 5.0)
    with pytest.raises(
        InputError, match=r"t.csv: every loss \(.* to .*\) is at or above unigram_loss [57].* loss \(ppl\)"
    ):
        load(wrong, tmp_path)
    load(frame.assign(unigram_loss=7.2), tmp_path)


def test_runs_that_learnt_nothing_have_no_threshold():
    frame = ladder(DECAY, (8.0, 7.8, 7.6), unigram=7.2)
    verdict = find(emergence_table.task_metric("", "t", "acc", frame)).verdict
    assert verdict.name == "not-identified" and verdict.reason.startswith(
        "no loss is below the unigram model's, 7.2 nats"
    )


@pytest.mark.parametrize("losses", [ladder(DECAY, (8.0, 7.8, 7.6), unigram=7.2), ladder(5 * DECAY, (20.0, 19.0))])
def test_tables_of_run_directories_are_never_refused(losses, tmp_path):
    """Their units are known: they have learnt nothing, or diverged; given as the directory or as a table in it."""
    folder = tmp_path / "r" / "evaluations"
    folder.mkdir(parents=True)
    (tmp_path / "r" / "metrics.jsonl").touch()
    losses.to_csv(tmp_path / "t.csv", index=False)
    losses.to_csv(folder / "t.csv", index=False)
    for path in (folder, folder / "t.csv"):
        assert len(emergence_table.load(path)[0]) == 1
    with pytest.raises(InputError, match="call the column loss"):
        emergence_table.load(tmp_path / "t.csv")


def test_one_bad_family_or_task_refuses_no_others(tmp_path):
    """A family that has not learnt, and a task with another unigram_loss: theirs alone are not-identified."""
    good, bad = ladder(DECAY, LOWS, 7.2), ladder(DECAY, (8.0, 7.8), 7.2)
    bad["run"] = "bad-" + bad["run"]
    load(pd.concat([good.assign(family="a"), bad.assign(family="b")]), tmp_path)
    load(pd.concat([good.assign(task="z"), good.assign(unigram_loss=1.0)]), tmp_path)
    with pytest.raises(InputError, match="t.csv, family b: every loss"):
        load(pd.concat([bad.assign(family="b"), bad.assign(family="c", run="c-" + bad["run"])]), tmp_path)


@pytest.mark.parametrize("loss", [40 - np.arange(12.0), 8.6 - np.arange(12) / 100], ids=["diverged", "unlearnt"])
def test_one_bad_run_is_left_out_and_refuses_no_others(loss, tmp_path):
    """Above all subwords' unigram models from its first row to its last: no unit, as the other runs are below."""
    bad = ladder(DECAY, (2.4,)).assign(run="bad", loss=loss)
    notes = load(pd.concat([ladder(DECAY, LOWS), bad]), tmp_path)
    assert any("12 rows above 7.5 nats" in note for note in notes) and not any("late in" in note for note in notes)


@pytest.mark.parametrize("times", [1.0, 1.6])
def test_perplexities_called_loss_are_refused(times, tmp_path):
    """From 6 to 200 and from 18 to 4,700; called by their name they are read."""
    frame = ladder(DECAY, LOWS)
    wrong = frame.assign(loss=np.exp(times * frame["loss"]))
    with pytest.raises(InputError, match=r"run 'r\d' has a loss of .*guessing leaves; call the column loss \(ppl\)"):
        load(wrong, tmp_path)
    wrong.rename(columns={"loss": "loss (ppl)"}).to_csv(tmp_path / "named.csv", index=False)
    (task,), _, _ = emergence_table.load(tmp_path / "named.csv")
    assert task.loss_to == pytest.approx(times * frame["loss"].min())


@pytest.mark.parametrize("lowest", [4.0, 3.0])
def test_low_perplexities_called_loss_have_a_hint(lowest, tmp_path):
    """From 7.4 or 6.4 on; kept where the late ones of most runs are above 7.5, as these are of trained models."""
    frame = ladder(DECAY, LOWS)
    notes = load(frame.assign(loss=lowest + 1.7 * frame["loss"]), tmp_path)
    (note,) = (note for note in notes if "above 7.5 nats" in note)
    assert "if they are no nats, call the column loss (ppl)" in note
    assert ("late in their runs" in note) == ("left out" not in note) == (lowest == 4.0)


@pytest.mark.parametrize(
    "losses",
    [
        ladder(DECAY, LOWS)["loss"] / np.log(2),  # bits of a token
        ladder(DECAY / 3, (0.9, 0.75, 0.6))["loss"],  # bytes, or code
        ladder(DECAY / 2, (0.3, 0.2, 0.1))["loss"],  # a vocabulary of a few words
        np.tile([10.9, 10.4, 9.8, 8.4, 7.6, 6.2, 5.1, 4.4, 3.9, 3.5, 3.2, 3.0], 3) - np.repeat([0, 0.1, 0.2], 12),
    ],
    ids=["bits", "bytes", "tiny", "early"],
)
def test_true_losses_are_neither_refused_nor_hinted_at(losses, tmp_path):
    notes = load(ladder(DECAY, LOWS).assign(loss=losses), tmp_path)
    assert not any("late in their runs" in note for note in notes)


def test_a_run_that_diverged_is_no_perplexity(tmp_path):
    frame = ladder(DECAY, LOWS)
    frame.loc[frame.index[18:24], "loss"] = [9.0, 60.0, 14.0, 13.0, 12.9, 12.8]
    notes = load(frame, tmp_path)
    assert any("6 rows above 7.5 nats" in note for note in notes) and not any("late in" in note for note in notes)


def test_a_threshold_no_subword_model_allows_says_so(tmp_path):
    """In bits, where a plateau ends at 9: no unigram model of subwords leaves 8 nats."""
    frame = ladder(2 * DECAY, (7.0, 6.5, 6.0))
    reason = find(emergence_table.load(_written(frame, tmp_path))[0][0]).verdict.reason
    assert "more than any of subwords has (7.5): call the column loss (ppl) or loss (bits)" in reason


def _written(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_csv(folder / "w.csv", index=False)
    return folder / "w.csv"


@pytest.mark.parametrize("hinted", [True, False])
def test_losses_called_perplexity_are_hinted_at(hinted, tmp_path):
    """As of open_lm, whose `perplexity` is the loss: 2.0 to 5.4 would be 0.7 to 1.7 nats."""
    frame = ladder(DECAY, LOWS)
    own = frame["loss"] if hinted else np.exp(frame["loss"])
    frame.assign(loss=own).rename(columns={"loss": "loss (ppl)"}).to_csv(tmp_path / "t.csv", index=False)
    notes = emergence_table.load(tmp_path / "t.csv")[2]
    assert any("few for a token of text that is no code" in note for note in notes) == hinted
