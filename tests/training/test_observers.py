"""Observers of a run: adding one is a class and a line, without a change of the session."""

import pytest

from emergence_train import config as configs
from emergence_train.errors import describe
from emergence_train.faults.anomalies import Event
from emergence_train.training import recording
from emergence_train.training.observers import Observer
from emergence_train.training.recording import NullWriter
from emergence_train.training.run import train
from emergence_train.watch.progress import progress
from support import metrics


class Witness(Observer):
    """Records every call, and adds a row and a note."""

    calls: list[tuple] = []

    def on_restore(self, step, metrics):
        self.calls.append(("restore", step, len(metrics.train("step"))))

    def on_step(self, step):
        self.calls.append(("step", step.step, step.tokens))

    def on_checkpoint(self, measurement):
        assert set(measurement.means) == {"train", "iid", "ood", "manuals", "speeches"}
        self.context.write("witness", step=measurement.step, tokens=measurement.tokens)
        measurement.notes.append("seen")
        self.calls.append(("checkpoint", measurement.step, len(measurement.table)))

    def on_row(self, row):
        if row["kind"] == "witness":
            self.calls.append(("row", row["step"], row["tokens"]))

    def on_close(self, *, stopped):
        self.calls.append(("close", stopped, 0))


@pytest.fixture
def witness(monkeypatch):
    monkeypatch.setattr(Witness, "calls", [])
    monkeypatch.setattr(recording, "OBSERVERS", [Witness, *recording.OBSERVERS])  # the one line
    return Witness


def test_an_observer_sees_the_whole_run(config_file, tmp_path, witness):
    lines: list[str] = []
    train(configs.load(config_file, ["training.tokens=2048", "checkpoints.every_tokens=1024"]), lines.append)
    rows = 5 * 32  # five splits of 32 positions
    assert witness.calls == [
        ("restore", 0, 0),
        *[("step", step, step * 256) for step in (1, 2, 3, 4)],
        ("row", 4, 1024),
        ("checkpoint", 4, rows),
        *[("step", step, step * 256) for step in (5, 6, 7, 8)],
        ("row", 8, 2048),
        ("checkpoint", 8, rows),
        ("close", False, 0),
    ]
    assert [row["step"] for row in metrics(tmp_path / "runs" / "run", "witness")] == [4, 8]
    assert sum("  seen  " in line for line in lines if line.startswith("checkpoint  step")) == 2


@pytest.mark.parametrize(("last", "states", "then"), [(3, [], 0), (6, [4], 4)])
def test_an_interrupt_tells_where_the_run_resumes(config_file, tmp_path, monkeypatch, last, states, then):
    """No state is saved at those of log_spaced_start: said in their lines, by the interrupt, by `watch`, and then true."""
    lines: list[str] = []
    config = configs.load(config_file, ["checkpoints.log_spaced_start=true", "training.tokens=2048"])
    step = Witness.on_step

    def interrupted(self, done):
        if done.step == last:
            raise KeyboardInterrupt
        step(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Witness, "on_step", interrupted)
        patch.setattr(recording, "OBSERVERS", [Witness, *recording.OBSERVERS])
        with pytest.raises(KeyboardInterrupt) as ended:
            train(config, lines.append)
    checkpoints = [line for line in lines if line.startswith("checkpoint  step")]
    unsaved = [int(line.split()[2]) for line in checkpoints if line.endswith("; no state saved)")]
    assert unsaved == [1, 2] and len(checkpoints) == 2 + len(states)
    remedy = f"it resumes from step {then}" if then else "it starts over, as no state is saved"
    assert describe(ended.value) == f"interrupted; run the same command again ({remedy})"
    seen = progress(tmp_path / "runs" / "run")
    assert seen.reason == describe(ended.value) and seen.saved_step == then
    again: list[str] = []
    train(config, again.append)
    assert any("the run starts over" in line for line in again) == (not then)
    assert len(metrics(tmp_path / "runs" / "run")) == 8


def test_other_ranks_record_nothing():
    writer = NullWriter()
    assert writer.restore(3, [], set()) == [] and writer.best is None
    assert writer.flush() is None and writer.close() is None
    writer.write("spike", step=1, reason=Event("spike", "log", "reason").reason)
