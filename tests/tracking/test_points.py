"""Rows of metrics.jsonl under trackers' names."""

import pytest

from emergence_train.tracking.points import name_of, points, view
from watch import run_files

AT = {"step": 9, "tokens": 64}


@pytest.mark.parametrize(
    ("row", "values"),
    [
        (
            {"kind": "train", "loss": 2.0, "grad_norm": None, "lr": 0.1, "tokens_per_second": 50.0},
            {"train/loss": 2.0, "train/lr": 0.1, "perf/tokens_per_second": 50.0, "perf/mfu": 0.5},
        ),
        (
            {
                "kind": "validation",
                "seconds": 1.0,
                "memory": 2_000_000_000,
                "loss": {"iid": 3.0},
                "bits_per_byte": {"iid": 1.5},
            },
            {"val/iid/loss": 3.0, "val/iid/bits_per_byte": 1.5, "perf/memory": 2.0},
        ),
        (
            {"kind": "evaluation", "seconds": 1.0, "share_of_training": 0.2, "value": {"copying/acc": 0.5}},
            {"tasks/copying/acc": 0.5, "perf/share_of_tasks": 0.2},
        ),
        (
            {"kind": "straggler", "rank": 3, "operation": "forward", "seconds": 0.5, "share": 0.3},
            {"straggler/rank": 3, "straggler/seconds": 0.5, "straggler/share": 0.3},
        ),
        ({"kind": "forecast", "loss": 2.0, "low95": 1.0}, {"forecast/loss": 2.0, "forecast/low95": 1.0}),
        ({"kind": "abilities", "value": {"t/tokens": None, "t/probability": 0.1}}, {"abilities/t/probability": 0.1}),
        ({"kind": "forecast", "reason": "too early"}, None),
        ({"kind": "spike", "reason": "x"}, None),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) and "kind" in value else "",
)
def test_what_is_shown_of_a_row(row, values):
    assert view(row | AT, mfu_of_rate=0.01) == (None if values is None else AT | values)


def test_a_long_history_is_thinned_and_ends_where_it_is_told(tmp_path):
    run = run_files.write(tmp_path / "r", 100, every=50)
    rows = [point for point in points(run, until=60, steps=6) if isinstance(point, dict)]
    assert [row["step"] for row in rows if name_of(row) == "train/loss"] == [10, 20, 30, 40, 50, 60]
    assert [row["step"] for row in rows if name_of(row) == "val/train/loss"] == [50]
