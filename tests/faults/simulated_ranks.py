"""Thousands of ranks without processes: the watchdogs of all of them, over stores that count, in simulated time.

Watchdog, Relay and Heartbeats are the real ones. Replaced are torch's store (by a dictionary that counts requests and bytes), the
clock, the threads (their turns are taken here, each rank's at a moment of its own in every second) and the two gatherings at
the start. A rank that is killed takes the store that it holds with it; one that is stopped leaves it without an answer.

    python tests/faults/simulated_ranks.py --out FILE     requests a second at 64, 512 and 4,096 ranks, and how a loss ends
"""

import argparse
import contextlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "kernels")]

import torch.distributed as dist

from emergence_train.errors import RunError
from emergence_train.faults import operations, relay, watchdog
from emergence_train.faults.heartbeats import PeerVerdict
from emergence_train.faults.watchdog import Watchdog
from emergence_train.parallel.mesh import data_parallel

RUN_PORT = 1  # of the run's store


class Unanswered(BaseException):
    """A request to a store whose holder is stopped: the caller would wait for ever."""


@dataclass
class Server:
    """A store: its content, and what it was asked."""

    owner: int
    values: dict[str, bytes] = field(default_factory=dict)
    requests: Counter = field(default_factory=Counter)  # by the rank that asked
    bytes: int = 0
    connections: int = 0


class Network:
    """The clock, the stores, who is killed or stopped, and whose turn it is."""

    def __init__(self) -> None:
        self.now, self.rank = 0.0, 0
        self.servers = {RUN_PORT: Server(0)}
        self.killed: set[int] = set()
        self.stopped: set[int] = set()

    def store(self, host: str, port: int, is_master: bool = False, **_) -> "Store":
        if is_master:
            port = 1000 + self.rank
            self.servers[port] = Server(self.rank)
        elif self.servers[port].owner in self.killed | self.stopped:
            raise dist.DistNetworkError("connection refused, or no answer in time")
        self.servers[port].connections += 1
        return Store(self, port)

    def clear(self) -> None:
        for server in self.servers.values():
            server.requests.clear()
            server.bytes = 0


class Store:
    """A connection to a store, with the methods of torch's that are used."""

    def __init__(self, network: Network, port: int) -> None:
        self.network, self.port, self.server = network, port, network.servers[port]

    def _ask(self, sent: int) -> dict[str, bytes]:
        if self.server.owner in self.network.killed:
            raise dist.DistNetworkError("Connection reset by peer")
        if self.server.owner in self.network.stopped:
            raise Unanswered
        self.server.requests[self.network.rank] += 1
        self.server.bytes += sent
        return self.server.values

    def set(self, key: str, value: bytes) -> None:
        self._ask(len(key) + len(value))[key] = value

    def check(self, keys: list[str]) -> bool:
        return self._ask(sum(map(len, keys))).keys() >= set(keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        values = [self._ask(0)[key] for key in keys[:1]]
        values += [self.server.values[key] for key in keys[1:]]
        self.server.bytes += sum(map(len, [*keys, *values]))
        return values

    def add(self, key: str, amount: int) -> int:
        values = self._ask(len(key) + 8)
        values[key] = str(int(values.get(key, b"0")) + amount).encode()
        return int(values[key])


class Ranks:
    """The watchdogs of `ranks` ranks, `each` on a node."""

    def __init__(self, ranks: int, each: int, silent: float, network: Network, run: Path) -> None:
        self.network, self.beats = network, 0
        self.reported: list[int] = []  # ranks that put a verdict on the screen
        self.dogs: list[Watchdog] = []
        self.ended: dict[int, tuple[float, PeerVerdict]] = {}  # by rank, when it had a verdict, and which
        order = random.Random(ranks)
        self.phase = [order.random() for _ in range(ranks)]
        self.turns = sorted(range(ranks), key=self.phase.__getitem__)
        for rank in range(ranks):
            network.rank = rank
            mesh = data_parallel(rank, ranks, rank % each, SimpleNamespace(type="cpu"), "start", secret=bytes(32))
            self.dogs.append(Watchdog(mesh, run, silent, 1800.0))
        for dog in self.dogs:
            dog.at("forward", 1)

    def seconds(self, count: int) -> None:
        """Let `count` heartbeats of every rank go by."""
        for _ in range(count):
            self.beats += 1
            for rank in self.turns:
                if rank not in self.ended and rank not in self.network.killed | self.network.stopped:
                    self._turn(rank)

    def _turn(self, rank: int) -> None:
        """What the two threads of a rank do in a heartbeat."""
        network, dog = self.network, self.dogs[rank]
        network.rank, network.now = rank, (self.beats + self.phase[rank]) * dog.interval
        try:
            verdict = dog._turn(self.beats)
        except Unanswered:
            verdict = dog._unanswered()
            dog.stored = False
        if verdict:
            self.ended[rank] = network.now, verdict
            if dog._first_to_report():
                self.reported.append(rank)


@contextlib.contextmanager
def simulated(ranks: int, each: int = 8, silent: float = 5.0) -> Iterator[Ranks]:
    """Ranks that have begun and given their first heartbeat; their run directory is a temporary one."""
    network, nodes = Network(), [f"node {rank // each}" for rank in range(ranks)]
    leader_of = relay.leaders(nodes)
    gathered = {True: nodes, False: [1000 + rank if rank % each == 0 else 0 for rank in range(ranks)]}
    clock = SimpleNamespace(monotonic=lambda: network.now, sleep=lambda seconds: None)
    idle = SimpleNamespace(start=lambda: None, join=lambda seconds: None)

    def thread(target: Callable[[], None], name: str, daemon: bool) -> SimpleNamespace:
        return idle if name.startswith("watchdog") else SimpleNamespace(start=target, join=idle.join)

    with contextlib.ExitStack() as patches:
        for owner, name, value in (
            (relay, "dist", SimpleNamespace(TCPStore=network.store, Store=object)),
            (relay, "all_gather_objects", lambda value: gathered[isinstance(value, str)]),
            (relay, "on_every_rank", lambda make: make()),
            (relay, "leaders", lambda _: leader_of),  # worked out once, not by each
            (watchdog, "time", clock),
            (operations, "time", clock),
            (watchdog.threading, "Thread", thread),
        ):
            patches.enter_context(mock.patch.object(owner, name, value))
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(RUN_PORT)}
        patches.enter_context(mock.patch.dict(relay.os.environ, variables))
        run = Path(patches.enter_context(tempfile.TemporaryDirectory()))
        yield Ranks(ranks, each, silent, network, run)


def rates(ranks: Ranks, seconds: int = 8) -> dict:
    """Requests and bytes in a second, over a whole cycle of what heartbeats carry."""
    ranks.network.clear()
    ranks.seconds(seconds)
    run, others = (
        [server for port, server in ranks.network.servers.items() if (port == RUN_PORT) == wanted]
        for wanted in (True, False)
    )
    asked: Counter = sum((server.requests for server in [*run, *others]), Counter())
    leaders = {server.owner for server in others}
    return {
        "ranks": len(ranks.dogs),
        "nodes": 1 + len(others),
        "of_a_rank": max(count for rank, count in asked.items() if rank not in leaders) / seconds,
        "of_a_leader": max((asked[rank] for rank in leaders), default=0) / seconds,
        "of_a_nodes_store": max((server.requests.total() for server in others), default=0) / seconds,
        "of_the_runs_store": run[0].requests.total() / seconds,
        "connections_of_the_runs_store": run[0].connections,
        "kilobytes_of_a_nodes_store": max((server.bytes for server in others), default=0) / seconds / 1e3,
        "kilobytes_of_the_runs_store": run[0].bytes / seconds / 1e3,
    }


def loss(ranks: Ranks, rank: int, how: str, most: int = 20, also: Sequence[int] = ()) -> dict:
    """A rank, and `also` others, are `killed` or `stopped`: seconds until the first and the last of those left knows, what their
    verdicts name, and which of them put one on the screen."""
    network = ranks.network
    getattr(network, how).update({rank, *also})
    began = (ranks.beats + 1) * ranks.dogs[0].interval
    while len(ranks.ended) < len(ranks.dogs) - len({rank, *also}) and most:
        ranks.seconds(1)
        most -= 1
    when = [at - began for at, _ in ranks.ended.values()]
    texts = Counter(verdict.text.partition(" has ")[0].partition(" is gone")[0] for _, verdict in ranks.ended.values())
    return {
        "lost": rank,
        "how": how,
        "reached": len(ranks.ended),
        "first_seconds": min(when, default=None),
        "last_seconds": max(when, default=None),
        "named": dict(texts),
        "reported_by": ranks.reported,
        "codes": sorted({verdict.code for _, verdict in ranks.ended.values()}),
    }


def main() -> None:
    import torch

    from emergence_train import files
    from emergence_train.recorder.environment import environment
    from emergence_train.recorder.sessions import now

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows, losses = [], []
    for count in (64, 512, 4096):
        with simulated(count) as ranks:
            ranks.seconds(2)
            rows.append(rates(ranks))
        for rank, how in ((count - 3, "killed"), (count - 8, "killed"), (count - 8, "stopped"), (0, "killed")):
            with simulated(count) as ranks:
                ranks.seconds(2)
                losses.append({"ranks": count, **loss(ranks, rank, how)})
    if any(row["reached"] != row["ranks"] - 1 for row in losses):
        raise RunError("a rank was not reached")
    content = {"utc": now(), "command": sys.argv, "environment": environment(torch.device("cpu"))}
    files.write_json(arguments.out, content | {"silent_seconds": 5.0, "requests_a_second": rows, "losses": losses})


if __name__ == "__main__":
    main()
