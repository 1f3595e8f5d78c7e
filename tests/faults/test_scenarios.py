"""The outcomes of scenarios.py: elastic and exact resumption, anomalies, processes that hang."""

import functools
import json
import os
from pathlib import Path

import pytest

from support import run_python

FEW = not os.environ.get("FAULTS_ALL")  # make fault-trials runs every case


@pytest.fixture(scope="module")
def outcome_of(data_path, tmp_path_factory):
    """A function: the outcome of a scenario by name, which one process finds by forking the runs."""
    place = tmp_path_factory.mktemp("runs")
    (place / "data").symlink_to(data_path)

    @functools.cache
    def outcome_of(name: str) -> dict:
        script = Path(__file__).parent / "scenarios.py"
        options = [*(["--few"] if FEW else []), name]
        done = run_python(str(script), str(place), *options, timeout=300 if FEW else 2400)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])[name]

    return outcome_of


@pytest.mark.parametrize(("precision", "loss", "table"), [("fp32", 1e-6, 1e-5), ("bf16", 2e-3, 0.03)])
def test_another_world_size_stage_and_micro_batch_at_every_start(outcome_of, precision, loss, table):
    """4 -> 2 -> 1 -> 3 processes and stage 1 -> 3 -> 2 -> 1: the same samples, losses equal up to rounding."""
    if FEW and precision == "bf16":
        pytest.skip("with FAULTS_ALL=1")
    elastic = outcome_of("elastic")[precision]
    assert elastic["codes"] == [[0], [75] * 4, [75] * 2, [75], [0] * 3], elastic["said"]
    assert elastic["rows"] == [24, 24] and elastic["counts_equal"], elastic["said"]
    assert elastic["loss_difference"] < loss and elastic["table_difference"] < table


def test_stopped_and_started_again_leaves_no_trace(outcome_of):
    """Exactly, in fp32 and bf16, at every stage, also with asynchronous saves."""
    result = outcome_of("exact")
    assert len(result) == (1 if FEW else 6)
    for key, outcome in result.items():
        assert [set(codes) for codes in outcome["codes"]] == [{0}, {75}, {0}], (key, outcome)
        assert outcome["differs"] is None, (key, outcome["differs"])


def test_measurements_that_were_put_off_are_there_once(outcome_of):
    """Whatever ends the start that makes them, as often as it does."""
    result = outcome_of("deferred")
    assert result["codes"] == [[75], [9], [9], [0]], result["said"]
    assert result["differs"] is None, result["differs"]


@pytest.mark.slow
def test_copies_on_the_nodes_are_taken_where_they_are_whole(outcome_of):
    """By the manifest of the run directory: what was altered is fetched from the other node, or read there."""
    result = outcome_of("copies")
    shards = [f"shard-{rank:05d}-of-00004.safetensors" for rank in range(4)]
    assert [set(codes) for codes in result["codes"]] == [
        {0},
        {75},
        {75},
        {75},
        *[{75}] * (0 if FEW else 4),
        {0},
        {75},
        {0},
    ]
    expected = {"a node replaced": 4, "both copies altered": 3}
    expected |= {} if FEW else {"a copy altered": 4, "a copy cut": 4, "nothing": 4, "all gone": 0}
    expected |= {"as saved": 4, "fewer ranks": 0}
    assert {name: taken[0] for name, taken in result["taken"].items()} == expected, result["said"]
    assert result["held"] == [[node, shard] for node in "01" for shard in shards]
    assert result["differs"] is None and result["left"] == []


def test_rewind_equals_a_run_without_the_batches(outcome_of):
    result = outcome_of("rewind")
    assert len(result) == (1 if FEW else 3)
    for key, outcome in result.items():
        assert all(code == 0 for codes in outcome["codes"] for code in codes), (key, outcome["said"])
        (event,) = outcome["rewinds"]
        assert (event["step"], event["failed_step"], event["first_batch"], event["last_batch"]) == (18, 20, 18, 19)
        assert outcome["differs"] is None, (key, outcome["differs"])


def test_a_bad_step_is_skipped_at_every_stage(outcome_of):
    result = outcome_of("skip")
    assert len(result) == (2 if FEW else 7)
    for key, outcome in result.items():
        spike = key.endswith("30.0")
        assert set(outcome["codes"]) == {0}, (key, outcome)
        assert [row["step"] for row in outcome["skipped"]] == [20], key
        assert outcome["skipped"][0]["reason"].startswith("loss 136" if spike else "loss not finite")
        before, bad, *after = outcome["losses"][18:]
        assert bad is None if not spike else bad > 100
        assert all(abs(loss - before) < 0.15 for loss in after), "the weights are unchanged"
        assert outcome["curve_steps"] == (24 if spike else 23) and outcome["tables"] == 4 * 5 * 32


def test_a_replica_that_drifts_by_one_bit_is_named(outcome_of):
    drift = outcome_of("drift")
    assert drift["codes"] == [1] * 4 and drift["calm"] == [0, 0]
    assert "step 6: the weights of rank 1 differ" in drift["events"][0]["reason"] + drift["said"]
    assert drift["said"].count("emergence-train:") == 1 and "Traceback" not in drift["said"]


def test_a_rank_that_hangs_or_fails_is_named_by_the_others(outcome_of):
    result = outcome_of("hang")
    hang, broken = result["hang"], result["broken"]
    assert hang["codes"] == [76] * 3 and hang["seconds"] < 40
    assert hang["said"].count("emergence-train:") == 1 and "rank 1 is waited for by 2 others" in hang["said"]
    assert "'loading samples' of step 5" in hang["said"]
    assert len(result["stacks"]) == 3 and "in loading" in result["stacks"]["rank-1.txt"]
    # By torch's flight recorder two ranks are in a collective that the third has not begun.
    assert result["open_calls"] == [["gloo:all_reduce"], [], ["gloo:all_reduce"]] and "stacks/flight-" in hang["said"]
    assert broken["codes"] == [1] * 3 and broken["seconds"] < 40
    assert "rank 1 (process" in broken["said"] and "Input/output error" in broken["said"]


@pytest.mark.slow  # by the clock: on a busy machine the others are as slow
def test_a_rank_that_the_others_wait_for_is_named(outcome_of):
    slow = outcome_of("slow")
    assert slow["codes"] == [0, 0] and slow["rows"], slow["said"]
    for row in slow["rows"]:
        assert row.keys() == {"kind", "step", "tokens", "rank", "operation", "seconds", "share"}
        assert (row["rank"], row["operation"]) == (1, "loading samples")
        # The window's ends are signs of up to a second before, so a step of few may count at one end only.
        assert 0.12 < row["seconds"] < 0.6 and row["share"] > 0.2
    assert "rank 1 is" in slow["said"] and "behind the others" in slow["said"]


def test_a_signal_in_any_phase_is_answered(outcome_of):
    """To one rank of two in each phase of a step, in validation and while saving; and while a process starts."""
    phases = outcome_of("phases")
    assert len(phases) == (4 if FEW else 11)
    for phase, outcome in phases.items():
        assert outcome["seconds"] < 30, phase
        if "differs" not in outcome:  # nothing to save: it leaves at once
            assert outcome["codes"] == [[75]] and "nothing trained since" in outcome["said"], (phase, outcome)
            continue
        assert outcome["codes"] == [[75, 75], [0, 0]], (phase, outcome)
        assert outcome["last"] <= 7, (phase, outcome["last"])
        assert outcome["differs"] is None, (phase, outcome["differs"])


@pytest.mark.slow
def test_a_signal_breaks_off_a_compilation(outcome_of):
    """The compilation is aborted, and the state of the step before is saved."""
    result = outcome_of("compiling")
    assert len(result) == (2 if FEW else 3)
    for key, outcome in result.items():
        assert [set(codes) for codes in outcome["codes"]] == [{0}, {75}, {0}], (key, outcome)
        assert "saved at step 6" in outcome["said"] and "Traceback" not in outcome["said"], (key, outcome)
        assert outcome["answered"] < 15 and outcome["differs"] is None, (key, outcome)


def test_retention(outcome_of):
    pinned = outcome_of("pinned")
    assert pinned["codes"] == [[75], [0]]
    assert pinned["left"] == sorted({pinned["pinned"], "step-0000000012", "step-0000000024"})
