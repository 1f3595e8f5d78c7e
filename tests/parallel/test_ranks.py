"""Rendezvous of processes over a store that may outlive them."""

import threading

import pytest
import torch.distributed as dist

from emergence_train.errors import InputError, PeerLost
from emergence_train.parallel.ranks import rendezvous, this_start


def names(store, delays: dict[int, float], world: int) -> list[str]:
    """The name that each rank of one start accepts, the ranks starting after `delays` seconds."""
    started: list[str] = [""] * world

    def come(rank: int) -> None:
        started[rank] = this_start(store.clone(), rank, world)

    threads = [threading.Timer(delays.get(rank, 0.0), come, [rank]) for rank in range(world)]
    for thread in threads:
        thread.daemon = True
        thread.start()
    for thread in threads:
        thread.join(30)
    return started


def test_every_start_has_its_own_name_in_any_order():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    seen = set()
    for delays in ({}, {0: 0.4}, {1: 0.3, 2: 0.1}, {0: 0.2, 2: 0.5}):  # rank 0 last: the others read the name before
        started = names(store, delays, 3)
        assert len(set(started)) == 1 and started[0] and started[0] not in seen, started
        seen.add(started[0])


def test_start_killed_during_rendezvous_is_ignored():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True)
    store.set("emergence-train/start", "dead")  # rank 0 had written its name, and no one had answered all of it
    store.set("dead/1", "gone")
    started = names(store, {0: 0.3}, 2)
    assert started[0] == started[1] not in ("", "dead")


@pytest.mark.parametrize(
    "error",
    [
        # Errors of gloo and torch's store where a peer's address is stale (trial 196 of kill_one).
        RuntimeError(
            "Gloo connectFullMesh failed with [pair.cc:152] timed out connecting:\nSO_ERROR: Connection refused"
        ),
        dist.DistNetworkError("The client socket has failed to connect"),
    ],
)
def test_process_lost_during_rendezvous_is_a_lost_peer(error):
    with pytest.raises(PeerLost, match="during the rendezvous") as raised, rendezvous():
        raise error
    assert raised.value.code == 76 and "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [InputError("training.batch"), RuntimeError("a bug"), ValueError("connection")])
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as raised, rendezvous():
        raise error
    assert raised.value is error
