"""MLflow's file store: deleted runs, and values that were logged without steps."""

import pytest

from emergence_train.analysis import logs
from emergence_train.analysis.logs import LogOptions
from emergence_train.errors import InputError

ROWS = [(step, round(2 + 5 * step**-0.3, 4)) for step in range(100, 3001, 100)]


def run(store, name, stage="active", steps=True, **metrics):
    folder = store / "0" / name
    (folder / "metrics").mkdir(parents=True)
    (folder / "meta.yaml").write_text(f"artifact_uri: x\nlifecycle_stage: {stage}\nrun_id: {name}\nrun_name: {name}\n")
    (folder / "metrics" / "loss").write_text("".join(f"17 {x} {s if steps else 0}\n" for s, x in ROWS))
    for metric, text in metrics.items():
        (folder / "metrics" / metric).write_text(text)
    return folder


def test_what_is_no_store(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n1,3\n")
    with pytest.raises(InputError, match="no run of MLflow's file store; name mlruns"):
        logs.read(tmp_path / "log.csv", LogOptions(format="mlflow"))


@pytest.mark.parametrize("stage", ["deleted", "'deleted'"])
def test_deleted_runs_are_left_out(stage, tmp_path):
    gone = run(tmp_path, "gone", stage)
    for path in (tmp_path, gone):
        with pytest.raises(InputError, match="its runs are deleted; restore one with mlflow runs restore"):
            logs.read(path, LogOptions())
    run(tmp_path, "kept")
    (curve,) = logs.read(tmp_path, LogOptions())
    assert curve.run == "kept" and "deleted runs left out: 1" in curve.notes


def test_losses_without_steps_are_refused(tmp_path):
    run(tmp_path, "r", steps=False)
    with pytest.raises(InputError, match="loss: values were logged without steps; log them with"):
        logs.read(tmp_path, LogOptions())


def test_another_metric_without_steps_is_none_of_the_rows(tmp_path):
    """Results of two evaluations, and a gauge."""
    run(tmp_path, "r", test_loss="17 2.5 0\n18 2.4 0\n", memory="17 3 0\n17 4 0\n")
    (curve,) = logs.read(tmp_path, LogOptions())
    assert list(zip(curve.frame["step"], curve.frame["loss"])) == ROWS
