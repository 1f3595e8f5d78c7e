"""Recorder: sums of any loop's token losses, checked against sums by hand, and run directories that the commands read."""

import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from emergence_train import cli
from emergence_train.errors import InputError, RunError
from emergence_train.recorder import Recorder, tables, token_losses
from support import metrics, run_python

SEQUENCE, VOCABULARY = 6, 11


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, tokens_BT):
        assert not torch.is_grad_enabled() or self.training
        return self.table(tokens_BT)


def by_hand(batches):
    """(count, sum, sum of squares, correct) by position, in Python's own numbers; batches of (losses, correct, mask)."""
    sums = np.zeros((4, SEQUENCE))
    for losses, correct, mask in batches:
        for row, column in np.argwhere(mask.numpy()):
            loss = losses[row, column].item()
            sums[:, column] += 1, loss, loss**2, bool(correct[row, column])
    return sums


def written(run, step, split):
    frame = tables.read(tables.POSITIONS, run)
    return frame[(frame["step"] == step) & (frame["split"] == split)]


def test_sums_are_those_by_hand(tmp_path):
    generator = torch.Generator().manual_seed(3)
    batches = []
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        for width in (6, 6, 4):  # a shorter sequence counts at its own positions
            losses = torch.rand(3, width, generator=generator)
            correct = torch.rand(3, width, generator=generator) < 0.5
            mask = torch.rand(3, width, generator=generator) < 0.8
            recorder.add(losses.masked_fill(~mask, torch.nan), correct_BT=correct, mask_BT=mask)
            batches.append((losses, correct, mask))
        recorder.add(torch.full((1, 6), torch.inf))  # its step is no step
        recorder.checkpoint(5, 500, 0.1)
    rows, expected = written(tmp_path / "mine", 5, "train"), by_hand(batches)
    assert rows["position"].tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(rows[["count", "loss_sum", "loss_sq_sum", "correct"]].to_numpy().T, expected, rtol=1e-12)
    assert rows["run"].unique() == ["mine"] and rows["tokens"].unique() == [500]


def test_losses_of_tokens_are_log_softmax(tmp_path):
    logits = torch.randn(2, 5, VOCABULARY, dtype=torch.float64)
    targets = torch.randint(0, VOCABULARY, (2, 5))
    targets[0, 3] = -100
    losses, correct = token_losses(logits, targets)
    for row, column in np.ndindex(2, 5):
        scores, target = logits[row, column].tolist(), targets[row, column].item()
        if target < 0:
            assert losses[row, column] == 0 and not correct[row, column]
            continue
        expected = math.log(sum(math.exp(score) for score in scores)) - scores[target]
        assert losses[row, column].item() == pytest.approx(expected, rel=1e-5)
        assert bool(correct[row, column]) == (max(scores) == scores[target])


def test_validation_puts_the_model_back(tmp_path):
    model, sequences = Model(), torch.randint(0, VOCABULARY, (4, SEQUENCE + 1))
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        recorder.validate(model, sequences.split(2))
        assert model.training
        means = recorder.checkpoint(1, 10)
        with pytest.raises(InputError, match="returned dict, not logits"):
            recorder.validate(lambda tokens: {}, [sequences])
    with torch.no_grad():
        logits = model(sequences[:, :-1])
    correct = logits.argmax(-1) == sequences[:, 1:]
    losses = -logits.double().log_softmax(-1).gather(-1, sequences[:, 1:, None])[..., 0]
    expected = by_hand([(losses, correct, torch.ones_like(correct))])
    rows = written(tmp_path / "mine", 1, "iid")
    np.testing.assert_allclose(rows["loss_sum"], expected[1], rtol=1e-6)
    np.testing.assert_array_equal(rows["correct"], expected[3])
    assert means == {"iid": pytest.approx(losses.mean().item(), rel=1e-6)}


def test_a_run_is_reported_and_analysed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    run = tmp_path / "mine"
    with Recorder(run, params=1000, sequence=SEQUENCE, vocabulary="v", total_tokens=60_000) as recorder:
        for step in range(1, 61):
            curve = 2 + 3 * step**-0.5
            losses = curve + np.exp(-np.arange(SEQUENCE)) + rng.normal(0, 0.01, (16, SEQUENCE))
            recorder.add(torch.tensor(losses))
            recorder.log(step, step * 1000, curve + rng.normal(0, 0.005), 1e-3)
            if step % 5 == 0:
                recorder.add(torch.tensor(losses), split="iid")
                recorder.evaluation("skill", "accuracy", step / 60, items=100, chance=0.25)
                recorder.checkpoint(step, step * 1000, 1e-3)
    assert len(metrics(run)) == 60 and len(metrics(run, "validation")) == 12
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report")]) == 0
    assert "mine" in (tmp_path / "report" / "report.html").read_text()
    assert cli.main(["analyze", "temporal", str(run), "--fit-fraction", "0.5", "--out", str(tmp_path / "t")]) == 0
    splits = {of["split"] for of in json.loads((tmp_path / "t" / "result.json").read_text())["runs"]}
    assert splits == {None, "iid", "train"}
    evaluations = tables.read(tables.EVALUATIONS, run)
    assert evaluations["value"].tolist() == pytest.approx([step / 60 for step in range(5, 61, 5)])
    assert evaluations["loss"].tolist() == pytest.approx([row["loss"]["iid"] for row in metrics(run, "validation")])


def test_checkpoints_alone_make_a_curve(tmp_path):
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        for step in (10, 20):
            recorder.add(torch.full((1, SEQUENCE), float(step)))
            recorder.checkpoint(step, step, 0.5)
    assert [(row["step"], row["loss"], row["lr"]) for row in metrics(tmp_path / "mine")] == [
        (10, 10, 0.5),
        (20, 20, 0.5),
    ]
    means = tables.mean_loss(tables.read(tables.POSITIONS, tmp_path / "mine"))
    assert means["loss"].tolist() == [10, 20] and means["accuracy"].isna().all()  # nobody said what was correct


def recorded(path, steps, **options):
    with Recorder(path, params=10, sequence=SEQUENCE, **options) as recorder:
        for step in steps:
            recorder.add(torch.full((1, SEQUENCE), float(step)))
            recorder.log(step, step * 6, float(step), 0.1)
            recorder.checkpoint(step, step * 6)
    return recorder


def test_a_run_continues_where_it_is_resumed(tmp_path):
    run = tmp_path / "mine"
    recorded(run, range(1, 6))
    with pytest.raises(InputError, match=r"holds a run up to step 5; Recorder\(step=5\) continues it"):
        Recorder(run, params=10, sequence=SEQUENCE)
    with pytest.raises(InputError, match="rows end at step 5, so step 9 cannot be resumed"):
        Recorder(run, params=10, sequence=SEQUENCE, step=9)
    recorder = recorded(run, range(4, 8), step=3)
    assert recorder.tokens == 42
    assert [row["step"] for row in metrics(run)] == list(range(1, 8))
    assert tables.read(tables.POSITIONS, run)["step"].unique().tolist() == list(range(1, 8))
    recorded(run, [1], step=0)
    assert [row["step"] for row in metrics(run)] == [1] and len(metrics(run / "begun-anew-1")) == 7


def test_misuse_is_named_and_its_remedy_works(tmp_path):
    run, shape = tmp_path / "mine", {"params": 10, "sequence": SEQUENCE}
    with pytest.raises(InputError, match=r"Recorder\(params=0\): give a whole number"):
        Recorder(run, params=0, sequence=SEQUENCE)
    with Recorder(run, **shape) as recorder:
        with pytest.raises(InputError, match="another Recorder or run writes here"):
            Recorder(run, **shape)
        Recorder(tmp_path / "other", **shape).close()
        with pytest.raises(InputError, match="shape 2x7: Recorder takes"):
            recorder.add(torch.ones(2, 7))
        with pytest.raises(InputError, match="mask_BT has shape"):
            recorder.add(torch.ones(2, 6), mask_BT=torch.ones(2, 5))
        with pytest.raises(InputError, match="checkpoint 1 has no losses"):
            recorder.checkpoint(1, 10)
        recorder.add(torch.ones(2, 6))
        with pytest.raises(InputError, match=r"of skill, accuracy\(value=nan\): give a finite number"):
            recorder.evaluation("skill", "accuracy", float("nan"))
        recorder.evaluation("skill", "accuracy", 0.5)
        with pytest.raises(InputError, match="need the loss on held-out text"):
            recorder.checkpoint(1, 10)
        recorder.add(torch.ones(2, 6), split="iid")
        assert recorder.checkpoint(1, 10) == {"train": 1.0, "iid": 1.0}  # nothing was lost by the refusal
        recorder.add(torch.ones(2, 6))
        with pytest.raises(InputError, match="checkpoint 1 follows checkpoint 1"):
            recorder.checkpoint(1, 10)
        recorder.checkpoint(2, 20)
    with pytest.raises(InputError, match="is closed; make another with step="):
        recorder.log(3, 30, 1.0)
    recorded(run, [3], step=2)
    with pytest.raises(InputError, match="is a run of params 10, not 12"):
        Recorder(run, params=12, sequence=SEQUENCE, step=3)
    Recorder(run, params=12, sequence=SEQUENCE, step=0).close()


@pytest.mark.parametrize("step", [-1, 2.5, True, math.nan, "3"])
def test_a_step_that_is_none_removes_nothing(tmp_path, step):
    run = tmp_path / "mine"
    recorded(run, range(1, 6))
    with pytest.raises(InputError, match=r"Recorder\(step=.*\): give a whole number from 0 on"):
        recorded(run, [], step=step)
    assert len(metrics(run)) == 5 and len(list((run / "positions").iterdir())) == 5


def test_a_run_is_resumed_where_there_is_one(tmp_path):
    with pytest.raises(InputError, match="typo: holds no run, so step 4000 cannot be resumed"):
        recorded(tmp_path / "typo", [], step=4000)
    recorded(tmp_path / "typo", [4001])  # what it says to do
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        recorder.log(4, 40, 1.0)
        recorder.add(torch.ones(1, SEQUENCE))
        recorder.checkpoint(6, 60)
        recorder.log(8, 80, 1.0)
    for step, tokens in ((8, 80), (6, 60), (4, 40)):  # of the last row or table up to there
        assert recorded(tmp_path / "mine", [], step=step).tokens == tokens


def test_steps_increase_across_a_resumption(tmp_path):
    run = tmp_path / "mine"
    recorded(run, range(1, 8))
    with Recorder(run, params=10, sequence=SEQUENCE, step=5) as recorder:
        recorder.add(torch.full((1, SEQUENCE), 99.0))
        for call, named in (
            (lambda: recorder.checkpoint(2, 12), "checkpoint 2 follows checkpoint 5"),
            (lambda: recorder.checkpoint(5, 12), "checkpoint 5 follows checkpoint 5"),
            (lambda: recorder.log(3, 18, 1.0), "row 3 follows row 5"),
            (lambda: recorder.log(5, 30, 1.0), "row 5 follows row 5"),
        ):
            with pytest.raises(InputError, match=f"{named}; steps must increase"):
                call()
        recorder.log(7, 42, 1.0)
        with pytest.raises(InputError, match="row 7 follows row 7"):  # one for each micro-batch
            recorder.log(7, 42, 1.0)
        with pytest.raises(InputError, match="checkpoint 6 follows step 7"):
            recorder.checkpoint(6, 36)
        recorder.checkpoint(9, 54)
        with pytest.raises(InputError, match="row 8 follows step 9"):
            recorder.log(8, 48, 1.0)
    assert written(run, 2, "train")["loss_sum"].tolist() == [2.0] * SEQUENCE
    assert tables.read(tables.CURVES, run)["step"].tolist() == [1, 2, 3, 4, 5, 7]


def test_a_moved_run_continues_under_its_name(tmp_path):
    recorded(tmp_path / "mine", [1])
    (tmp_path / "mine").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="is a run of run 'mine', not 'moved'; give run='mine', choose another path"):
        recorded(tmp_path / "moved", [2], step=1)
    recorded(tmp_path / "moved", [2], step=1, run="mine")
    assert tables.read(tables.POSITIONS, tmp_path / "moved")["run"].unique() == ["mine"]


@pytest.mark.parametrize("rated", [(), range(2, 25)], ids=["no lr", "all but the first lr"])
def test_a_run_without_rates_is_analysed(tmp_path, rated):
    run = tmp_path / "mine"
    with Recorder(run, params=10, sequence=4) as recorder:
        for step in range(1, 25):
            recorder.add(torch.full((1, 4), 2 + 3 * step**-0.5))
            recorder.checkpoint(step, step * 80, 0.1 if step in rated else None)
    assert tables.read(tables.CURVES, run)["lr"].notna().sum() == len(rated)
    assert cli.main(["analyze", "temporal", str(run), "--out", str(tmp_path / "t")]) == 0


def test_validation_keeps_each_modules_mode(tmp_path):
    model = nn.Sequential(Model(), nn.Dropout(0.5))
    model[1].eval()  # frozen
    modes = [module.training for module in model.modules()]
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        recorder.validate(model, [torch.zeros(1, SEQUENCE + 1, dtype=torch.long)])
    assert [module.training for module in model.modules()] == modes == [True, True, True, False]


def test_an_ignored_last_token_does_not_count(tmp_path):
    tokens = torch.zeros(2, SEQUENCE + 1, dtype=torch.long)
    tokens[0, -1] = -100
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        recorder.validate(lambda ids: torch.zeros(*ids.shape, VOCABULARY), [tokens])
        means = recorder.checkpoint(1, 10)
    rows = written(tmp_path / "mine", 1, "iid")
    assert rows["count"].tolist() == [2, 2, 2, 2, 2, 1]
    np.testing.assert_allclose(rows["loss_sum"], rows["count"] * math.log(VOCABULARY), rtol=1e-6)
    assert means["iid"] == pytest.approx(math.log(VOCABULARY), rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_validation_that_diverged_is_no_mean_of_the_rest(tmp_path, bad):
    """Not the mean of what is finite, and no end of the training loop: a warning, and the other splits are written."""
    run = tmp_path / "mine"
    with Recorder(run, params=10, sequence=SEQUENCE) as recorder:
        for step, train in ((1, 3.0), (2, bad), (3, 5.0)):
            recorder.add(torch.full((2, SEQUENCE), train))
            recorder.add(torch.full((1, SEQUENCE), 2.0), split="iid")
            recorder.add(torch.full((1, SEQUENCE), bad if step < 3 else 4.0), split="iid")
            recorder.evaluation("skill", "accuracy", 0.5)
            if step == 3:
                means = recorder.checkpoint(step, step * 6)
                continue
            with pytest.warns(UserWarning, match="without the split iid.*task results"):
                means = recorder.checkpoint(step, step * 6)
            assert not math.isfinite(means["iid"]) and ("train" in means) == (step == 1)
        assert means == {"train": 5.0, "iid": 3.0}
    frame = tables.read(tables.POSITIONS, run)
    assert frame.groupby(["step", "split"])["loss_sum"].first().to_dict() == {
        (1, "train"): 6.0,
        (3, "iid"): 6.0,
        (3, "train"): 10.0,
    }
    assert tables.read(tables.EVALUATIONS, run)["step"].tolist() == [3]
    assert tables.read(tables.CURVES, run)["step"].tolist() == [1, 3]
    assert "NaN" not in (run / "metrics.jsonl").read_text()


def test_negative_losses_are_refused_but_for_rounding(tmp_path):
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        recorder.add(torch.full((1, SEQUENCE), -1e-7))
        assert recorder.checkpoint(1, 6) == {"train": pytest.approx(0, abs=1e-6)}
        recorder.add(torch.full((1, SEQUENCE), -2.0))  # log-probabilities
        with pytest.raises(InputError, match="losses of the split train are negative; give add"):
            recorder.checkpoint(2, 12)
    assert written(tmp_path / "mine", 1, "train")["loss_sum"].tolist() == [0.0] * SEQUENCE


def test_a_step_without_a_loss_is_skipped_by_the_curve(tmp_path):
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        for step, loss in enumerate((3.0, math.nan, 2.0), 1):
            recorder.log(step, step * 6, loss, 0.1)
        recorder.add(torch.ones(1, SEQUENCE))
        recorder.checkpoint(3, 18)
    assert tables.read(tables.CURVES, tmp_path / "mine")["loss"].tolist() == [3.0, 2.0]


def test_ranks_add_up_and_fail_together(tmp_path):
    whole = run_python("tests/recorder/recorder_rank.py", str(tmp_path / "two"), processes=2)
    assert whole.returncode == 0, whole.stderr
    assert written(tmp_path / "two", 1, "train")["loss_sum"].tolist() == [6.0] * 4
    assert written(tmp_path / "two", 1, "ood")["count"].tolist() == [1, 1]
    failed = run_python("tests/recorder/recorder_rank.py", str(tmp_path / "bad"), "also", processes=2)
    assert failed.returncode == 2 and "checkpoint 1 follows checkpoint 1" in failed.stdout, failed.stderr


def test_row_after_its_checkpoint_is_not_written_twice(tmp_path):
    """A loop that logs and saves at the same steps, the checkpoint first."""
    with Recorder(tmp_path / "run", params=10, sequence=4) as recorder:
        for step in (10, 20, 30):
            recorder.add(torch.full((2, 4), float(step)))
            recorder.checkpoint(step, 8 * step, 1e-3)
            recorder.log(step, 8 * step, 1.0, 1e-3)
    curve = tables.read(tables.CURVES, [tmp_path / "run"])
    assert curve["step"].tolist() == [10, 20, 30] and curve["loss"].tolist() == [10.0, 20.0, 30.0]


def test_rounding_below_zero_is_zero_in_every_table(tmp_path):
    with Recorder(tmp_path / "run", params=10, sequence=4) as recorder:
        recorder.add(torch.full((2, 4), -1e-4), split="iid")
        recorder.evaluation("t", "acc", 0.5)
        assert recorder.checkpoint(1, 8) == {"iid": 0.0}
    assert tables.read(tables.EVALUATIONS, tmp_path / "run")["loss"].tolist() == [0.0]


def test_negative_losses_are_dropped_with_their_error(tmp_path):
    with Recorder(tmp_path / "run", params=10, sequence=4) as recorder:
        recorder.add(torch.full((2, 4), -2.0))
        with pytest.raises(InputError, match="losses of the split train are negative"):
            recorder.checkpoint(1, 8)
        recorder.add(torch.full((2, 4), 2.0))
        assert recorder.checkpoint(1, 8) == {"train": 2.0}


@pytest.mark.parametrize("validated", [False, True])
def test_a_saved_state_carries_what_no_tables_hold(tmp_path, validated):
    """Saved at step 3, before the tables of step 3 (where there are any) or 4: each batch is in one table, once."""
    batches = [torch.rand(2, SEQUENCE) for _ in range(4)]

    def step(recorder, number):
        recorder.add(batches[number - 1])
        recorder.log(number, 12 * number, 1.0)

    def begun(step=None):
        return Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE, step=step)

    with begun() as recorder:
        for number in (1, 2, 3):
            step(recorder, number)
            if number == 1:
                recorder.checkpoint(1, 12)
        state = recorder.state_dict()
        recorder.add(torch.ones(1, SEQUENCE), split="iid")
        if validated:
            recorder.checkpoint(3, 36)
    with begun(3) as recorder:
        recorder.load_state_dict(state)
        step(recorder, 4)
        means = recorder.checkpoint(4, 48)
    expected = sum(batches[k].double().sum(0) for k in ((3,) if validated else (1, 2, 3)))
    np.testing.assert_allclose(written(tmp_path / "mine", 4, "train")["loss_sum"], expected, rtol=1e-12)
    assert means.keys() == {"train"} and "iid" not in state["sums"]


def test_a_saved_state_resumes_where_no_row_is(tmp_path):
    """Rows each 4 steps, a state at 6, killed at 7: what is on the disk then resumes at 6, and at no later step."""
    whole = Recorder(tmp_path / "whole" / "mine", params=10, sequence=SEQUENCE)
    for step in range(1, 8):
        whole.add(torch.full((1, SEQUENCE), float(step)))
        if step % 4 == 0:
            whole.log(step, 6 * step, 1.0)
        if step == 6:
            state = whole.state_dict(step)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    whole.close()
    with pytest.raises(InputError, match="rows end at step 6, so step 7 cannot be resumed; resume from a checkpoint"):
        Recorder(tmp_path / "killed" / "mine", params=10, sequence=SEQUENCE, step=7)
    with Recorder(tmp_path / "killed" / "mine", params=10, sequence=SEQUENCE, step=6) as resumed:
        resumed.load_state_dict(state)
        resumed.add(torch.full((1, SEQUENCE), 7.0))
        assert resumed.checkpoint(7, 42) == {"train": 4.0}
    assert [row["step"] for row in metrics(tmp_path / "killed" / "mine")] == [4]


def test_a_second_checkpoint_adds_splits_to_its_step(tmp_path):
    run = tmp_path / "mine"
    with Recorder(run, params=10, sequence=SEQUENCE) as recorder:
        recorder.add(torch.ones(2, SEQUENCE))
        recorder.checkpoint(3, 12)
        recorder.add(torch.full((1, SEQUENCE), 2.0), split="iid")
        recorder.evaluation("skill", "accuracy", 0.5)
        assert recorder.checkpoint(3, 12) == {"train": 1.0, "iid": 2.0}
        recorder.add(torch.ones(1, SEQUENCE))
        with pytest.raises(InputError, match="checkpoint 3 follows checkpoint 3"):
            recorder.checkpoint(3, 12)
    assert written(run, 3, "train")["loss_sum"].tolist() == [2.0] * SEQUENCE
    assert written(run, 3, "iid")["loss_sum"].tolist() == [2.0] * SEQUENCE
    assert tables.read(tables.EVALUATIONS, run)["loss"].tolist() == [2.0]
    assert [(row["step"], row["loss"]) for row in metrics(run)] == [(3, 1.0)]


def test_sums_move_to_another_split(tmp_path):
    with Recorder(tmp_path / "mine", params=10, sequence=SEQUENCE) as recorder:
        for split, to in (("a", "books"), ("b", None), ("c", "iid"), ("absent", "ood")):
            if split != "absent":
                recorder.add(torch.ones(1, SEQUENCE), split=split)
            recorder.move(split, to)
        with pytest.raises(InputError, match="the split iid has losses already"):
            recorder.move("books", "iid")
        assert recorder.checkpoint(1, 6) == {"books": 1.0, "iid": 1.0}
        recorder.add(torch.full((1, SEQUENCE), 3.0))
        state = recorder.state_dict()
        recorder.load_state_dict(state)
        recorder.add(torch.full((1, SEQUENCE), 6.0))
        recorder.move("train", "other")
        assert recorder.checkpoint(2, 12) == {"other": 4.0}


def test_a_run_stays_where_it_was_made(tmp_path, monkeypatch):
    """os.chdir after a relative path moved its tables, and then ended training as if the log had been moved."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with Recorder("runs/mine", params=10, sequence=SEQUENCE) as recorder:
        monkeypatch.chdir("elsewhere")
        recorder.add(torch.ones(1, SEQUENCE))
        assert recorder.checkpoint(1, 6) == {"train": 1.0}
    assert len(written(tmp_path / "runs" / "mine", 1, "train")) == SEQUENCE
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.filterwarnings("ignore:.*was moved, deleted or replaced")
def test_an_error_is_not_hidden_by_a_lost_log(tmp_path):
    """Nor is the lost log left open."""
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(ValueError, match="the loop's own"),
        Recorder(tmp_path / "mine", params=10, sequence=6) as recorder,
    ):
        recorder.log(1, 6, 1.5)
        shutil.rmtree(tmp_path / "mine")
        raise ValueError("the loop's own")
    assert len(os.listdir("/proc/self/fd")) == before
    recorder = Recorder(tmp_path / "mine", params=10, sequence=6)
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(RunError, match="was moved, deleted or replaced"):
        recorder.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_recorder_left_open_ends_silently(tmp_path):
    """Modules are gone when its lock ends with the interpreter, which was a traceback."""
    program = (
        "import torch\n"
        "from emergence_train.recorder import Recorder\n"
        "recorder = Recorder('mine', params=10, sequence=6)\n"
        "recorder.add(torch.ones(1, 6), split='iid')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
