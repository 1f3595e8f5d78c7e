"""The coordination of 4,096 ranks, with the real classes and nothing to train: what a rank does must not grow with them."""

import itertools
import math
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from emergence_train.checkpoint.pieces import Index
from emergence_train.data import sampling
from emergence_train.data.sampling import Sampler
from emergence_train.errors import InputError, OneLine, PeerLost
from emergence_train.faults.anomalies import SkippedBatches
from emergence_train.faults.heartbeats import PeerVerdict
from emergence_train.parallel import ranks as distributed
from emergence_train.parallel.mesh import data_parallel
from emergence_train.training.samples import Samples
from faults.simulated_ranks import loss, rates, simulated

RANKS = (64, 512, 4096)
SILENT = 5.0
LATEST = SILENT + 4  # docs/how-to/faults.md: four heartbeats after the silence every rank knows


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    rows = []
    for count in RANKS:
        with simulated(count) as ranks:
            ranks.seconds(1)  # the first finds out which keys are there
            rows.append(rates(ranks, 1))
    return rows


def test_requests_of_a_rank_do_not_grow_with_ranks(measured):
    for row in measured:
        assert row["of_a_rank"] == 2, "a heartbeat and a look"
        assert row["of_a_leader"] == 4, "the same of its node's store"
        assert row["of_a_nodes_store"] == 16
    sizes = [row["kilobytes_of_a_nodes_store"] for row in measured]
    assert max(sizes) < 1.1 * min(sizes)


def test_requests_to_the_runs_store_grow_with_nodes_alone(measured):
    """Two of each leader and of each rank of rank 0's node; a store that served every rank would have two of each."""
    for row in measured:
        assert row["of_the_runs_store"] == 2 * (8 + row["nodes"] - 1)
        assert row["connections_of_the_runs_store"] == 8 + row["nodes"] - 1
    # Every rank's heartbeat comes through it: under 300 bytes each.
    assert all(1e3 * row["kilobytes_of_the_runs_store"] < 300 * row["ranks"] + 1000 for row in measured)


def rank_of(text: str) -> int:
    return int(re.match(r"rank (\d+)", text)[1])


@pytest.mark.parametrize(
    ("lost", "how", "first"),
    [
        (509, "killed", SILENT),  # a rank that a leader speaks for
        (504, "killed", 0),  # a leader: its node sees its store break
        (504, "stopped", SILENT),
        (0, "killed", 0),
        pytest.param(0, "stopped", SILENT, marks=pytest.mark.slow),
        (3, "killed", SILENT),  # a rank of rank 0's node
    ],
)
def test_a_loss_reaches_every_rank_in_time(lost, how, first):
    with simulated(512, silent=SILENT) as ranks:
        ranks.seconds(2)
        end = loss(ranks, lost, how)
    assert end["reached"] == 511 and end["codes"] == [76]
    assert first - 1 <= end["first_seconds"] and end["last_seconds"] <= LATEST
    assert {rank_of(text) for text in end["named"]} == {lost}, end


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize(
    "lost",
    [
        range(1),
        range(2),  # who spoke for rank 0
        range(4),  # rank 0's node
        range(9),  # and the next one, and the leader after it
        [*range(4), 12],
        [4],
        [5, 6],
        range(1, 4),
        range(13),  # no leader is left, and nobody holds a store
    ],
    ids=str,
)
def test_whatever_is_lost_one_of_the_others_reports(lost, how):
    """Sixteen ranks on four nodes."""
    with simulated(16, each=4, silent=SILENT) as ranks:
        ranks.seconds(2)
        end = loss(ranks, lost[0], how, also=lost)
        left = set(range(16)) - set(lost)
    assert end["reached"] == len(left) and end["codes"] == [76]
    assert len(end["reported_by"]) == 1 and set(end["reported_by"]) <= left
    assert rank_of(ranks.ended[end["reported_by"][0]][1].text) in lost


@pytest.mark.slow
@pytest.mark.parametrize("lost", [4093, 4088, 0])
def test_a_loss_among_4096_reaches_every_rank_in_time(lost):
    with simulated(4096, silent=SILENT) as ranks:
        ranks.seconds(2)
        end = loss(ranks, lost, "killed")
    assert end["reached"] == 4095 and end["last_seconds"] <= LATEST
    assert {rank_of(text) for text in end["named"]} == {lost}, end


def test_a_stopped_rank_that_wakes_up_does_not_report_again():
    """The others have ended, and their store with them, when it goes on."""
    with simulated(2) as ranks:
        ranks.network.stopped.add(1)
        ranks.seconds(10)
        assert ranks.reported == [0]
        ranks.network.stopped.clear()
        ranks.network.killed.add(0)
        ranks.seconds(12)
        assert ranks.ended.keys() == {0, 1} and ranks.reported == [0]


def test_the_main_thread_goes_no_further_than_the_verdict():
    """A stopped rank may go on before the others have ended: no further step is trained or saved."""
    with simulated(2) as ranks:
        dog = ranks.dogs[0]
        dog.verdict = PeerVerdict("rank 1 has sent no heartbeat for 6 s")
        with pytest.raises(PeerLost, match="rank 1 has sent no heartbeat"):
            dog.at("saving", 16)
        assert dog.operations.sign()["op"] == "forward"
        dog.ending.set()
        dog.at("the end", 16)


def test_ranks_without_a_loss_stay_silent():
    with simulated(64, silent=SILENT) as ranks:
        ranks.seconds(40)
    assert ranks.ended == {}


# -------------------------------------------------------------------------------------------------------- agreement


class Collectives:
    """torch.distributed for ranks that are threads; counts each rank's calls."""

    ReduceOp = SimpleNamespace(MIN="min")

    def __init__(self, world: int) -> None:
        self.world, self.own = world, threading.local()
        self.barrier, self.values = threading.Barrier(world), [None] * world
        self.calls: list[list[str]] = [[] for _ in range(world)]

    def get_rank(self) -> int:
        return self.own.rank

    def get_world_size(self) -> int:
        return self.world

    def _shared(self, name: str, value: object) -> list:
        self.calls[self.own.rank].append(name)
        self.values[self.own.rank] = value
        self.barrier.wait(60)
        values = list(self.values)
        self.barrier.wait(60)
        return values

    def all_reduce(self, tensor, op) -> None:
        tensor.fill_(min(int(value) for value in self._shared("all_reduce", tensor.clone())))

    def broadcast_object_list(self, values, src, group=None) -> None:
        values[:] = self._shared("broadcast", list(values))[src]


@pytest.mark.parametrize("world", [8, 256])
def test_an_error_is_raised_by_all_after_two_collectives(world, monkeypatch):
    """Whatever the number of ranks: one reduction, and where a rank failed one broadcast of its line."""
    collectives = Collectives(world)
    monkeypatch.setattr(distributed, "dist", collectives)
    ends: list[list] = [[] for _ in range(world)]

    def fail(rank: int, wrong: set[int]) -> int:
        if rank in wrong:
            raise InputError(f"rank {rank} cannot")
        return rank

    def live(rank: int) -> None:
        collectives.own.rank = rank
        ends[rank].append(distributed.on_every_rank(lambda: fail(rank, set())))
        for call in (
            lambda: distributed.on_every_rank(lambda: fail(rank, {world - 1, world // 2})),
            lambda: distributed.broadcast_from_rank0(lambda: fail(rank, {0})),
        ):
            try:
                call()
            except OneLine as error:
                ends[rank].append((type(error), str(error), error.already_reported))

    threads = [threading.Thread(target=live, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    calls = ["all_reduce", "all_reduce", "broadcast", "broadcast"]
    assert all(own == calls for own in collectives.calls)
    first = f"rank {world // 2} cannot"
    for rank, (own, failed, of_rank0) in enumerate(ends):
        assert own == rank
        assert failed == (InputError, first, rank != world // 2)
        assert of_rank0 == (InputError, "rank 0 cannot", rank != 0)


# ------------------------------------------------------------------------------------- samples, pieces of a checkpoint


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_work_for_a_sample_does_not_grow_with_ranks(micro_batch, monkeypatch):
    """Sixteen sequences of each rank a step: blocks that a rank works out, at most one a micro-batch and one more."""
    blocks: list[int] = []
    plain = sampling._order
    monkeypatch.setattr(sampling, "_order", lambda *given: blocks.append(1) or plain(*given))
    for world in RANKS:
        sampler = Sampler([10**9, 10**8], [2.0, 1.0], 32, seed=5)
        dataset = SimpleNamespace(sequence=32, sample=lambda index, sampler=sampler: window(sampler[index]))
        mesh = data_parallel(world // 3, world, 0, SimpleNamespace(type="cpu"))
        given = {"batch": 16 * world, "micro_batch": micro_batch, "document_mask": False, "ahead": False}
        samples = Samples(dataset, SkippedBatches(Path("none")), mesh, **given)
        blocks.clear()
        read = samples._read(7)
        assert len(read) == 16 // micro_batch
        assert len(blocks) <= len(read) + 1, "no more than the micro-batches lie in"


def window(sample: sampling.Window):
    return np.full(33, sample.start)


def test_files_that_a_rank_opens_do_not_grow_with_ranks():
    """A checkpoint of `saved` ranks, resumed by twice and by half as many: the index names what a rank needs."""
    elements = 10_000_000
    for saved in RANKS:
        bounds = [elements * rank // saved for rank in range(saved + 1)]
        held = {
            f"shard-{rank:05d}": [(f"weights|{begin}|w", end - begin)]
            for rank, (begin, end) in enumerate(itertools.pairwise(bounds))
        }
        index = Index.of(held)
        for ranks in (2 * saved, saved // 2, saved - 1):
            for rank in (0, ranks // 2, ranks - 1):
                begin, end = elements * rank // ranks, elements * (rank + 1) // ranks
                spans = index.spans("weights", "w", begin, end)
                assert len({span.file for span in spans}) <= math.ceil(saved / ranks) + 1
                assert min(span.begin for span in spans) <= begin and max(span.end for span in spans) >= end
