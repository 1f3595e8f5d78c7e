"""Nodes are compared before the first step: what differs ends every rank with one line, what is slow is a warning."""

import errno
import json
import os
from pathlib import Path

import pytest

from emergence_train.errors import InputError, RunError
from emergence_train.parallel import node_check, node_facts
from emergence_train.parallel.node_check import (
    Node,
    check_nodes,
    first_difference,
    may_differ,
    nodes_of,
    report,
    slow_nodes,
)
from emergence_train.parallel.node_facts import RankFacts, rank_facts, read_speed, write_speed
from support import run_python

WORKER = Path(__file__).parent / "node_check_worker.py"


def node(host: str, rank: int, **changes) -> Node:
    facts = {"ranks": 8, "gpu": "H100", "visible_gpus": 8, "gpu_memory": 80 << 30, "clock": 1980}
    return Node(host, rank, **facts | {"versions": {"torch": "2.13"}, "write": 1e9, "read": 2e9} | changes)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What each of four ranks on two nodes is left with, by case; and nodes.json of the last check that wrote one."""
    place = tmp_path_factory.mktemp("nodes")
    (place / "shard").write_bytes(bytes(100_000))
    done = run_python(str(WORKER), str(place), str(place / "shard"), processes=4)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda row: row["rank"])
    assert [row["rank"] for row in ranks] == [0, 1, 2, 3]
    assert [path.name for path in place.glob(".*")] == [], "what was written to try the disk is left"
    return [row["cases"] for row in ranks], json.loads((place / "nodes.json").read_text())


@pytest.mark.parametrize(("fault", "code"), [("torch", 2), ("gpu", 2), ("disk", 1)])
@pytest.mark.parametrize("odd", range(4))
def test_a_failure_on_one_rank_ends_all_with_one_line(ended, fault, code, odd):
    """A node's versions are its first rank's to say: of another rank they are not asked."""
    cases, _ = ended
    got = [rank[f"{fault} {odd}"] for rank in cases]
    if fault == "torch" and odd % 2:
        assert all(outcome[0] == 0 for outcome in got)
        return
    assert [outcome[0] for outcome in got] == [code] * 4
    assert len({outcome[1] for outcome in got}) == 1, "every rank has the same words"
    text = got[0][1]
    if fault == "disk":
        assert f"rank {odd}" in text and "Permission denied" in text
    else:
        # Of two nodes none is in the majority: rank 0's counts.
        assert "(rank 2) has" in text and "faults.node_check" in text and "\n" not in text


def test_a_slow_disk_is_a_warning_of_rank_0(ended):
    cases, _ = ended
    for odd, name in ((0, "(rank 0)"), (2, "(rank 2)")):
        assert all(rank[f"slow {odd}"][0] == 0 for rank in cases)
        (line,) = [line for line in cases[0][f"slow {odd}"][2] if "writes the run directory at 0 MB/s" in line]
        assert name in line
        assert not any(rank[f"slow {odd}"][2] for rank in cases[1:])


def test_modes_warn_never_and_one_node(ended):
    cases, written = ended
    assert all(rank[name][0] == 0 for rank in cases for name in ("warned of", "left out", "one node"))
    (line,) = [line for line in cases[0]["warned of"][2] if "torch" in line]
    assert "(rank 2) has torch 0" in line
    assert cases[0]["left out"][2] == cases[0]["one node"][2] == []
    assert [row["first_rank"] for row in written["nodes"]] == [0, 2]
    assert any("has torch 0" in line for line in written["warnings"]), "the later checks wrote none"
    assert written["all_reduce"]["bytes_per_second"] > 0 and written["nodes"][1]["write"] > 0


def test_the_odd_node_is_named_and_not_the_majority():
    nodes = [node("a", 0, versions={"torch": "2.12"}), node("b", 8), node("c", 16)]
    assert first_difference(nodes) == "node a (rank 0) has torch 2.12, node b (rank 8) 2.13"
    assert first_difference(nodes[1:]) is None
    odd = [node("a", 0), node("b", 8, versions={}), node("c", 16, versions={"torch": "3"}), node("d", 24)]
    assert first_difference(odd) == "node b (rank 8) has torch none, node a (rank 0) 2.13 (and 1 more differ)"
    for change in ({"gpu": "A100"}, {"visible_gpus": 7}, {"gpu_memory": 40 << 30}):
        assert first_difference([node("a", 0), node("b", 8, **change)]).startswith("node b (rank 8) has GPU")


def test_a_commit_is_compared_where_it_is_known(tmp_path):
    def of(*commits: str | None) -> list[Node]:
        versions = [{"commit": commit} if commit else {} for commit in commits]
        return [node(f"n{number}", 8 * number, versions=known) for number, known in enumerate(versions)]

    assert first_difference(of("abc", None, "abd")) == "node n2 (rank 16) has commit abd, node n0 (rank 0) abc"
    for commits, warning in (
        (("abc", "abc"), None),
        ((None, None), None),
        ((None, "abc", None), "node n0 (rank 0) (and 1 more) does not know the commit of its source"),
        (("abc", "abc+"), "node n1 (rank 8) has changed files in its source, node n0 (rank 0) none"),
        (("abc+", "abc+"), None),
    ):
        lines: list[str] = []
        report(of(*commits), 1e9, tmp_path, "auto", lines.append)
        warned = [line for line in lines if line.startswith("warning")]
        assert len(warned) == (warning is not None) and all(str(warning) in line for line in warned), commits
    assert len(may_differ(of("abc+", "abc", None))) == 2


@pytest.mark.parametrize(("name", "what"), [("driver", "driver"), ("nccl", "NCCL")])
def test_a_version_is_compared_among_nodes_that_know_it(tmp_path, name, what):
    """Where NVIDIA's library for management is absent on a node its driver's version is unknown, not another one."""

    def of(*given: str | None) -> list[Node]:
        versions = [{"torch": "2.13"} | ({name: value} if value else {}) for value in given]
        return [node(f"n{number}", 8 * number, versions=known) for number, known in enumerate(versions)]

    for given, warning in (
        ((None, "570", "570"), f"n0 (rank 0) does not know the version of its {what}, node n1 (rank 8) has 570"),
        (
            ("570", None, None),
            f"n1 (rank 8) (and 1 more) does not know the version of its {what}, node n0 (rank 0) has",
        ),
        ((None, None), None),
        (("570", "570"), None),
    ):
        lines: list[str] = []
        report(of(*given), 1e9, tmp_path, "auto", lines.append)
        warned = [line for line in lines if line.startswith("warning")]
        assert len(warned) == (warning is not None) and all(str(warning) in line for line in warned), given
    difference = f"node n3 (rank 24) has {name} 560, node n1 (rank 8) 570"
    with pytest.raises(InputError) as failed:
        report(of(None, "570", "570", "560"), 1e9, tmp_path, "auto", lambda line: None)
    assert str(failed.value).startswith(difference)
    report(of(None, "570", "570", "560"), 1e9, tmp_path, "warn", lines.append)
    assert f"warning: {difference}" in lines


def test_visible_gpus_are_compared_among_nodes_of_as_many_ranks():
    nodes = [node("a", 0), node("b", 8, ranks=4, visible_gpus=4), node("c", 12, ranks=4, visible_gpus=4)]
    assert first_difference(nodes) is None
    nodes.append(node("d", 16, ranks=4, visible_gpus=1))
    assert first_difference(nodes) == "node d (rank 16) has GPUs visible 1, node b (rank 8) 4"


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "; make room there"), (errno.EIO, "; every node must read the data")]
)
@pytest.mark.parametrize("call", ["write", "fsync", "read"])
def test_an_error_of_a_handle_names_the_file(tmp_path, monkeypatch, call, number, remedy):
    """What os.write raises has no name of a file."""
    from emergence_train.parallel.ranks import start

    (tmp_path / "shard").write_bytes(bytes(1 << 20))
    mesh = start(1)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(node_facts.os, call, fail)
    with pytest.raises(RunError) as failed:
        check_nodes(mesh, tmp_path, tmp_path / "shard", "always", lambda line: None)
    monkeypatch.undo()
    path = tmp_path / ("shard" if call == "read" else ".node-check")
    assert str(failed.value).startswith(str(path)) and f"{os.strerror(number)} on " in str(failed.value)
    assert remedy in str(failed.value) and not list(tmp_path.glob(".node-check*"))


def test_a_slow_node_is_one_far_below_the_median():
    usual = [node(name, 8 * rank) for rank, name in enumerate("abcd")]
    assert slow_nodes([*usual, node("e", 32, write=0.4e9)]) == []
    assert slow_nodes([*usual, node("e", 32, write=0.3e9)]) == [
        "node e (rank 32) writes the run directory at 300 MB/s, the others at 1,000 MB/s"
    ]
    assert slow_nodes([*usual, node("e", 32, clock=1410)]) == [
        "node e (rank 32) may clock its GPUs at 1410 MHz, the others at 1980 MHz"
    ]
    assert slow_nodes([node("a", 0, read=None), node("b", 8, read=1.0)]) == []


def test_ranks_of_a_node_are_one_line_whatever_their_order():
    facts = [RankFacts(name, f"host-{name}", gpu="H100", clock=clock) for name, clock in zip("abab", (4, 3, 2, 1))]
    nodes = nodes_of(facts)
    assert [(row.host, row.first_rank, row.ranks, row.clock) for row in nodes] == [
        ("host-a", 0, 2, 2),
        ("host-b", 1, 2, 1),
    ]


def test_many_nodes_have_a_bounded_log_and_all_are_in_the_file(tmp_path):
    lines = []
    report([node(f"n{rank}", 8 * rank) for rank in range(100)], 1e9, tmp_path, "auto", lines.append)
    assert len(lines) == node_check.SHOWN + 1 and "68 more in" in lines[-1]
    assert len(json.loads((tmp_path / "nodes.json").read_text())["nodes"]) == 100
    with pytest.raises(InputError, match="make the nodes alike"):
        report([node("a", 0), node("b", 8, gpu="A100")], 1e9, tmp_path, "auto", lines.append)


def test_speeds_are_bytes_over_seconds(tmp_path, monkeypatch):
    ticks = iter([0.0, 10.0, 10.0, 10.5, 20.0, 20.0, 20.0, 20.25, *[30.0] * 4])
    monkeypatch.setattr(node_facts.time, "monotonic", lambda: next(ticks))
    monkeypatch.setattr(node_facts, "BYTES", 1 << 20)
    assert write_speed(tmp_path, "probe") == (1 << 20) / 0.5
    assert not (tmp_path / "probe").exists()
    (tmp_path / "shard").write_bytes(bytes(1 << 20))
    assert read_speed(tmp_path / "shard") == (1 << 20) / 0.25
    (tmp_path / "shard").write_bytes(bytes(1000))
    assert read_speed(tmp_path / "shard") is None, "too small to tell"


def test_facts_of_this_machine_name_what_must_be_alike(tmp_path):
    import torch

    (tmp_path / "shard").write_bytes(b"tokens" * 200_000)
    device = torch.device("cpu")
    facts = rank_facts("here", device, True, tmp_path, tmp_path / "shard", "probe")
    assert facts.versions["torch"] == torch.__version__ and "wandb" not in facts.versions and facts.gpu is None
    assert facts.write > 0 and facts.read > 0
    assert rank_facts("here", device, False, tmp_path / "absent", tmp_path / "absent", "probe").versions == {}
