"""Training over a network that breaks: two nodes that are namespaces, torchrun on each."""

import json

import pytest

from faults.network import may_make_nodes
from faults.two_nodes import configure, trial
from support import ROOT

# Of fp32 sums taken in another order: the bounds are some ten times what benchmarks/results/cpu/two_nodes.json has.
EARLY, ALL = 1e-6, 2e-4


def check(row: dict) -> None:
    assert row["difference_from_one_process"]["early"] < EARLY and row["difference_from_one_process"]["all"] < ALL
    assert row["equal_after_the_cut"] and row["resumed"] >= 1 and row["nodes_checked"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_two_nodes_train_as_one_process_and_survive_a_cut(data_path, tmp_path, stage):
    if not may_make_nodes():
        pytest.skip("network namespaces cannot be made")
    check(trial(configure(data_path, tmp_path), stage))


def test_recorded_trials_are_within_the_bounds():
    rows = json.loads((ROOT / "benchmarks" / "results" / "cpu" / "two_nodes.json").read_text())["rows"]
    assert [row["stage"] for row in rows] == [1, 3]
    for row in rows:
        check(row)
