"""The table of exit codes, for every rank: what fails on one rank ends all of them with the same code and its one line."""

import functools
import json
from pathlib import Path

import pytest

from faults import exit_codes
from support import run_python

SCRIPT = Path(__file__).parent / "exit_codes.py"
# (name in exit_codes.CASES, its exit code, whether only rank 0 can fail so)
CASES = [
    ("configuration", 2, False),
    ("device", 2, False),
    ("sizes", 2, True),
    ("directory", 2, True),
    ("disk at the start", 1, True),
    ("data", 2, False),
    ("identity", 2, True),
    ("tasks", 2, False),
    ("engine", 1, False),
    ("session", 1, False),
    ("rewinds", 2, True),
    ("listing", 1, True),
    ("environment", 1, True),
    ("log", 1, True),
    ("W&B", 1, True),
    ("verifying again", 1, False),
    ("loading again", 2, False),
    ("log again", 2, True),
    ("samples", 1, False),
    ("wrong input in the loop", 2, False),
    ("interrupted", 1, False),
    ("rows", 1, True),
    ("tables", 1, True),
    ("forecast", 1, True),
    ("last rows", 1, True),
    ("log deleted", 1, True),
    ("run moved", 1, True),
    ("signal at the start", 75, False),
    ("signal in a step", 75, False),
    ("kill at the start", 76, False),
    ("kill in a step", 76, False),
    ("nothing", 0, True),
]
NODE_CASES = [("another GPU", 2), ("node's disk", 1), ("kill while nodes are checked", 76)]  # of several nodes alone
# Of four: the first, neither first nor last, the last. Three have no more ways.
RANKS = {1: (0,), 2: (0, 1), 4: (0, 1, 3)}
EVERY = [
    (name, world, rank) for name, _, rank0 in CASES for world in RANKS for rank in (RANKS[world] if not rank0 else (0,))
]
QUICK = [
    ("configuration", 2, 1),
    ("data", 3, 2),
    ("engine", 2, 1),
    ("log again", 2, 0),
    ("W&B", 2, 0),
    ("samples", 2, 1),
    ("rows", 2, 0),
    ("run moved", 2, 0),
    ("signal at the start", 2, 1),
]


@pytest.fixture(scope="module")
def ended(data_path, tmp_path_factory):
    """A function: how the runs of a list of cases ended."""

    @functools.cache
    def ended(cases: tuple, timeout: float) -> list[dict]:
        place = tmp_path_factory.mktemp("runs")
        (place / "data").symlink_to(data_path)
        (place / "cases.json").write_text(json.dumps(cases))
        done = run_python(str(SCRIPT), str(place), str(place / "cases.json"), timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return ended


# Two ranks a node but for rank 0's: nodes (0), (1, 2), (3). A leader, a rank behind it, and rank 0.
NODES = [
    (name, 4, rank, 2)
    for name in (
        *("samples", "wrong input in the loop", "kill in a step", "signal in a step", "nothing"),
        *(name for name, _ in NODE_CASES),
    )
    for rank in range(4)
]
QUICK_NODES = [
    ("another GPU", 3, 2, 2),
    ("samples", 3, 2, 2),
    ("samples", 3, 1, 2),
    ("kill in a step", 3, 2, 2),
    ("nothing", 3, 0, 2),
]


def check(case: tuple, end: dict) -> None:
    name, world, rank, *_ = case
    code = next(code for known, code, *_ in [*CASES, *NODE_CASES] if known == name)
    killed = name.startswith("kill")
    assert end["codes"] == [-9 if killed and r == rank else code for r in range(world)], (case, end["said"][-2000:])
    lines = [line for line in end["said"].splitlines() if line.startswith("emergence-train:")]
    # The rank that fails says why; where no collective has told the others, one of them names it.
    assert len(lines) in ((0,) if code == 0 or killed and world == 1 else (1, 2)), (case, lines)
    assert len(set(lines)) == len(lines) and "Traceback" not in end["said"], (case, end["said"][-2000:])


def check_all(cases: list[tuple], ends: list[dict]) -> None:
    """All that is wrong, not the first alone: the runs take a quarter of an hour."""
    wrong = []
    for case, end in zip(cases, ends, strict=True):
        try:
            check(case, end)
        except AssertionError as error:
            wrong.append(f"{case}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("number", range(len(QUICK)), ids=[f"{name}-{world}-{rank}" for name, world, rank in QUICK])
def test_every_rank_ends_with_the_same_code(ended, number):
    check(QUICK[number], ended(tuple(QUICK), 240)[number])


def test_what_a_failure_replaces_exists():
    """A patch of what has moved would end its process before anything could fail."""
    places = [patch.place for patch in exit_codes.CASES.values() if hasattr(patch, "place")]
    missing = [place for place in places if not hasattr(*exit_codes.target(place))]
    assert len(places) > 20 and missing == []


@pytest.mark.slow
def test_every_rank_ends_with_the_same_code_for_every_failure(ended):
    """Each failure on one, two and four processes."""
    check_all(EVERY, ended(tuple(EVERY), 3600))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(QUICK_NODES)))
def test_every_rank_of_every_node_ends_with_the_same_code(ended, number):
    """Where a node's ranks have their heartbeats passed on: the failure of one of them, of the one that passes them on, none."""
    check(QUICK_NODES[number], ended(tuple(QUICK_NODES), 240)[number])


@pytest.mark.slow
def test_every_node_ends_with_the_same_code_for_every_failure(ended):
    check_all(NODES, ended(tuple(NODES), 1200))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2])
def test_a_stopped_rank_of_a_node_is_named(ended, rank):
    """Also where it is the one that passes on the others' heartbeats: of those nothing is known then."""
    (end,) = ended((("stopped in a step", 4, rank, 2),), 240)
    assert end["codes"] is None, "it is stopped"
    lines = [line for line in end["said"].splitlines() if line.startswith("emergence-train:")]
    assert len(lines) == 1 and f"rank {rank} has sent no heartbeat" in lines[0], end["said"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(0, 1), (0, 1, 2)])
def test_a_lost_node_of_rank_0_is_reported_by_one_rank(ended, lost):
    """Nodes (0), (1, 2), (3, 4), (5): the run's store goes with rank 0, and the second loses its leader or all too."""
    (end,) = ended((("kill in a step", 6, lost, 2),), 240)
    assert end["codes"] == [-9 if rank in lost else 76 for rank in range(6)], end["said"][-2000:]
    lines = [line for line in end["said"].splitlines() if line.startswith("emergence-train:")]
    assert len(lines) == 1 and any(f"rank {rank}" in lines[0] for rank in lost), end["said"]
