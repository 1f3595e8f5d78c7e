"""Heartbeats of many nodes: the ranks of a node give theirs to its first rank, the leader, which passes them on together.

The run's store then answers two requests a second of each node, not of each rank (benchmarks/speed/heartbeats.py counts
them). A leader holds a store of its own for its node, in which the others see its sign and the verdict as it has read it: they
watch the leader as the leader watches rank 0. The ranks of rank 0's node, and so those of a run on one node, use the run's store
themselves.
"""

import datetime
import os
from typing import Any

import torch.distributed as dist

from emergence_train.faults.heartbeats import Heartbeats, PeerVerdict
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.nodes import node_name
from emergence_train.parallel.ranks import all_gather_objects, on_every_rank

LOCAL = "127.0.0.1"
SECONDS = 3.0  # for the run's store to answer a rank whose leader is lost


def _run_store() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def leaders(nodes: list[str]) -> list[int]:
    """For each rank, by the name of its node, the rank that passes its heartbeats on: itself where it uses the run's store."""
    first: dict[str, int] = {}
    for rank, node in enumerate(nodes):
        first.setdefault(node, rank)
    return [rank if node == nodes[0] else first[node] for rank, node in enumerate(nodes)]


class Relay:
    """This rank's way to the run's store. The constructor is collective: all ranks call it."""

    def __init__(self, mesh: Mesh, timeout: datetime.timedelta) -> None:
        self.rank = mesh.world.rank
        nodes = all_gather_objects(node_name())
        self.leader_of = leaders(nodes)
        self.leader = self.leader_of[self.rank]
        # Who speaks where nothing can be agreed over: a rank of rank 0's node, and one of another.
        self.fallbacks = {1, next((leader for rank, leader in enumerate(self.leader_of) if leader != rank), 1)}
        members = enumerate(self.leader_of) if self.leader == self.rank else ()
        self.members = [rank for rank, leader in members if leader == self.rank != rank]
        # The ranks that use the run's store, which rank 0 reads.
        self.direct = sorted(set(self.leader_of)) if self.rank == 0 else []
        held = on_every_rank(self._node_store)
        port = all_gather_objects(held.port if held else 0)[self.leader]

        def heartbeats(store: dist.Store) -> Heartbeats:
            # A store may outlive its processes (torchrun's does), so what is written there has a name of its own.
            return Heartbeats(store, mesh.launch_id, mesh.secret, self.rank)

        def connected(host: str, port: int) -> Heartbeats:
            # A connection of its own: the main thread may be waiting on the other.
            return heartbeats(dist.TCPStore(host, port, is_master=False, timeout=timeout))

        if self.leader == self.rank:
            self.up = connected(*_run_store())
            self.holder = f"rank 0 or its launcher on {nodes[0].split()[0]}"
        else:
            self.up = connected(LOCAL, port)
            self.holder = f"rank {self.leader}, which holds the store of this node,"
        self.down = heartbeats(held) if held else None
        self.held: dict[int, dict[str, Any]] = {}  # of each member what its signs have said so far
        for store in (self.up if self.rank == 0 else None, self.down):
            if store:
                store.publish(None)

    def _node_store(self) -> dist.TCPStore | None:
        return dist.TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False) if self.members else None

    @property
    def watched(self) -> list[int]:
        """The ranks whose signs this rank is to judge."""
        return list(range(len(self.leader_of))) if self.rank == 0 else [0 if self.leader == self.rank else self.leader]

    def beat(self, sign: dict[str, Any]) -> None:
        """This rank's heartbeat, and those of its node that it passes on."""
        signs = {self.rank: sign}
        if self.down:
            self.down.beat(signs)
            for rank, news in self.down.read(self.members)[0].items():
                self.held[rank] = self.held.get(rank, {}) | news
                # What the operations took is most of a sign, and goes with this rank's own.
                left_out = () if "times" in sign else ("times",)
                signs[rank] = {name: value for name, value in self.held[rank].items() if name not in left_out}
        self.up.beat(signs)

    def read(self) -> tuple[dict[int, dict[str, Any]], PeerVerdict | None]:
        """The signs of `watched`, without those that gave none yet, and the verdict if there is one."""
        watched = self.watched
        signs, verdict = self.up.read(self.direct if self.rank == 0 else watched)
        if verdict and self.down:
            self.down.publish(verdict)
        return {rank: signs[rank] for rank in watched if rank in signs}, verdict

    def publish(self, verdict: PeerVerdict) -> None:
        """Rank 0's verdict is everyone's; one that a leader comes to alone is its node's."""
        for store in (self.up if self.rank == 0 else None, self.down):
            if store:
                store.publish(verdict)

    def acknowledge(self) -> None:
        """This rank ends, and needs no store of another more."""
        self.up.acknowledge()

    def needed(self) -> bool:
        """Whether ranks may still read the store that this rank holds: the run's may be rank 0's."""
        missing = self.rank == 0 and self.up.acknowledged() < len(self.direct)
        return missing or (self.down is not None and self.down.acknowledged() < len(self.members))

    def speaks(self) -> bool:
        """Whether this rank, whose store is lost, may put that on the screen.

        One whose leader is lost leaves it to rank 0 as long as the run's store answers.
        """
        if self.leader == self.rank:
            return True
        try:
            dist.TCPStore(*_run_store(), is_master=False, timeout=datetime.timedelta(seconds=SECONDS))
        except Exception:
            return True
        return False

    def first_to_report(self) -> bool:
        """Whether this rank is the one to put the verdict on the screen."""
        return self.leader == self.rank and self.up.first_to_report()
