"""Who passes on whose heartbeats, and what of them reaches rank 0."""

import datetime
import threading

import pytest
import torch.distributed as dist

from emergence_train.faults import relay
from emergence_train.faults.heartbeats import PeerVerdict
from emergence_train.faults.relay import Relay, leaders
from emergence_train.parallel.mesh import data_parallel


def test_leaders_are_the_first_of_a_node_but_in_rank_0s():
    assert leaders(["a", "a", "b", "c", "b", "a", "c"]) == [0, 1, 2, 3, 2, 5, 3]
    assert leaders(["a"] * 3) == [0, 1, 2]


@pytest.fixture
def relays(monkeypatch):
    """A function: the relays of ranks on nodes, in threads instead of processes, over a store of their own."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))

    def relays(nodes: str) -> list[Relay]:
        gathered = [[None] * len(nodes) for _ in range(2)]  # what each rank gives to each of the two collectives
        turn, barrier, built = threading.local(), threading.Barrier(len(nodes)), [None] * len(nodes)

        def gather(value):
            number = turn.number = getattr(turn, "number", -1) + 1
            gathered[number][turn.rank] = value
            barrier.wait(20)
            return list(gathered[number])

        def make(rank: int) -> None:
            turn.rank = rank
            mesh = data_parallel(rank, len(nodes), rank, "cpu", "start", secret=bytes(32))
            built[rank] = Relay(mesh, datetime.timedelta(seconds=10))

        monkeypatch.setattr(relay, "all_gather_objects", gather)
        monkeypatch.setattr(relay, "on_every_rank", lambda make: make())
        monkeypatch.setattr(relay, "node_name", lambda: nodes[turn.rank])
        threads = [threading.Thread(target=make, args=(rank,)) for rank in range(len(nodes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return built

    yield relays
    del store


def test_rank_0_reads_every_rank_and_the_others_the_verdict(relays):
    ranks = relays("aabbb")
    assert ranks[0].direct == [0, 1, 2] and ranks[2].members == [3, 4] and ranks[4].watched == [2]
    for rank in reversed(ranks):  # those that are passed on first
        rank.beat({"n": 1, "op": f"of {rank.rank}"})
    signs, verdict = ranks[0].read()
    assert signs == {rank: {"n": 1, "op": f"of {rank}"} for rank in range(5)} and verdict is None
    assert ranks[2].read() == ({0: signs[0]}, None) and ranks[4].read() == ({2: signs[2]}, None)
    ranks[0].publish(PeerVerdict("rank 3 ended: no", 2))
    assert ranks[4].read()[1] is None, "not before its leader has read it"
    for rank in (1, 2, 3, 4):
        assert ranks[rank].read()[1] == PeerVerdict("rank 3 ended: no", 2)
    assert [rank.first_to_report() for rank in reversed(ranks)] == [False, False, True, False, False]


def test_a_store_is_needed_until_its_readers_have_acknowledged(relays):
    ranks = relays("abb")
    needed = []
    for rank in (0, 2, 1):
        ranks[rank].acknowledge()
        needed.append([other.needed() for other in ranks])
    assert needed == [[True, True, False], [True, False, False], [False, False, False]]


def test_what_operations_took_travels_with_the_leaders_own(relays):
    _, leader, member = relays("abb")
    member.beat({"n": 8, "times": {"forward": [1, 2.0, 2.0]}, "host": "h"})
    leader.beat({"n": 8})
    member.beat({"n": 9})
    leader.beat({"n": 9})
    signs = leader.up.read([1])[0]
    assert signs[2] == {"n": 9, "host": "h"}
    leader.beat({"n": 16, "times": {}})
    assert leader.up.read([1])[0][2] == {"n": 9, "times": {"forward": [1, 2.0, 2.0]}, "host": "h"}
