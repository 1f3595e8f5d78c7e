"""Reading parts of a log: what seeking gives is what reading all of it gives."""

import json

import pytest

from emergence_train.errors import InputError
from emergence_train.recorder.log_file import LogFile


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """5,000 steps in 0.6 MB, with rows of several kinds and lengths after some of them."""
    folder = tmp_path_factory.mktemp("log")
    rows = [{"kind": "run", "run": "r"}]
    for step in range(1, 5001):
        rows.append({"kind": "train", "step": step, "tokens": 8 * step, "loss": 1 / step, "pad": "x" * (step % 97)})
        if step % 500 == 0:
            rows.append({"kind": "validation", "step": step, "loss": {"iid": 2.0}})
            rows.append({"kind": "forecast", "step": step, "loss": 1.5})
        if step % 777 == 0:
            rows.append({"kind": "spike", "step": step, "reason": "y" * 3000})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, rows


def test_the_rows_of_a_step_are_those_of_the_whole_file(run):
    folder, rows = run
    with LogFile(folder) as log:
        assert log.header() == rows[0]
        for step in (1, 2, 499, 500, 777, 2500, 2501, 4662, 4999, 5000):
            assert log.rows_at(step) == [row for row in rows if row.get("step") == step], step
        assert log.rows_at(6000) == []


def test_the_end_is_whole_lines_of_the_last_bytes(run):
    folder, rows = run
    with LogFile(folder) as log:
        for most in (0, 10, 1000, 50_000, 10_000_000):
            lines = log.end(most)
            assert [json.loads(line) for line in lines] == (rows[-len(lines) :] if lines else [])
            assert sum(len(line) + 1 for line in lines) <= most
        assert len(log.end(10_000_000)) == len(rows)


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "run"}\n{"kind": "train", "step": 1}\n{"kind": "trai')
    with LogFile(tmp_path) as log:
        assert log.rows_at(1) == [{"kind": "train", "step": 1}] and len(log.end(1000)) == 2


def test_rows_along_the_log_begin_and_end_it(run):
    folder, _ = run
    with LogFile(folder) as log:
        steps = [row["step"] for row in log.train_rows_along(20)]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == 5000 and len(steps) < 2500


def test_a_directory_without_a_log_is_named(tmp_path):
    with pytest.raises(InputError, match="is not a run that has begun"):
        LogFile(tmp_path)
