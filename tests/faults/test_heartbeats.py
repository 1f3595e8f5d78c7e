"""What stands in the store is believed only if a process of this start wrote it."""

import json

import pytest
import torch.distributed as dist

from emergence_train.faults.heartbeats import DIGEST, Heartbeats, PeerVerdict

SECRET = bytes(range(32))


@pytest.fixture
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def test_signs_and_the_verdict_are_read_by_the_others(store):
    first, second = (Heartbeats(store, "start", SECRET, rank) for rank in (0, 1))
    assert second.read([]) == ({}, None) and first.read(range(2)) == ({}, None)
    second.beat({1: {"n": 3, "op": "forward"}})
    assert first.read(range(2)) == ({1: {"n": 3, "op": "forward"}}, None)
    first.publish(PeerVerdict("rank 1 ended: no", 2))
    assert second.read([0]) == ({}, PeerVerdict("rank 1 ended: no", 2, False))
    assert first.acknowledged() == 0
    second.acknowledge()
    assert first.acknowledged() == 1


@pytest.mark.parametrize("secret", [bytes(32), b""])
def test_what_another_writes_is_not_believed(store, secret):
    first, second = (Heartbeats(store, "start", SECRET, rank) for rank in (0, 1))
    stranger = Heartbeats(store, "start", secret, 7)
    stranger.publish(PeerVerdict("the run ends", 1))
    assert second.read([]) == ({}, None)
    store.set("emergence-train/start/verdict", json.dumps({"text": "the run ends", "code": 1, "hang": False}))
    assert second.read([]) == ({}, None)
    for content in (b"", b"short", bytes(200)):
        store.set("emergence-train/start/1", content)
        assert first.read([1])[0] == {}


def test_a_signature_holds_for_its_own_place(store):
    """One rank's signed last words are not another's, nor another start's, nor the verdict."""
    second = Heartbeats(store, "start", SECRET, 1)
    second.beat({1: {"n": -1, "words": "the disk is full", "code": 1}})
    signed = store.get("emergence-train/start/1")
    store.set("emergence-train/start/2", signed)
    store.set("emergence-train/start/verdict", signed)
    store.set("emergence-train/later/1", signed)
    signs, verdict = second.read([1, 2])
    assert signs.keys() == {1} and verdict is None
    assert Heartbeats(store, "later", SECRET, 3).read([1]) == ({}, None)
    store.set("emergence-train/start/1", signed[:DIGEST] + signed[DIGEST:].replace(b"full", b"hot!"))
    assert second.read([1]) == ({}, None)
