"""What the heartbeats of a large run cost its store: requests a second, with and without a leader that passes on a node's.

    python benchmarks/speed/heartbeats.py [--ranks 4096] [--per-node 8] [--rounds 8] [--out FILE]

A round is what the watchdogs of all ranks ask in a second: each beats and looks once. The ranks are objects of this process, with
the watchdog's own code from the heartbeat to the request; the run's store is a TCPStore in a process of its own, whose CPU time
is read. Stores of nodes are dictionaries here: they are on other machines. Network and waiting are not simulated.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch.distributed as dist

from emergence_train.faults.heartbeats import Heartbeats
from emergence_train.faults.operations import Operations
from emergence_train.faults.relay import Relay, leaders
from emergence_train.faults.watchdog import TIMES_EVERY

SERVER = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


class Counted:
    """A store that counts the requests and the bytes it is sent and asked for, by kind."""

    def __init__(self, store) -> None:
        self.store, self.requests, self.bytes = store, Counter(), Counter()

    def set(self, key: str, value: bytes) -> None:
        self.requests["set"] += 1
        self.bytes["written"] += len(value)
        self.store.set(key, value)

    def check(self, keys: list[str]) -> bool:
        self.requests["check"] += 1
        return self.store.check(keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self.requests["multi_get"] += 1
        values = self.store.multi_get(keys)
        self.bytes["read"] += sum(map(len, values))
        return values


class Dictionary(dict):
    """A node's store."""

    set = dict.__setitem__

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self[key] for key in keys]


def relays(nodes: list[str], store) -> list[Relay]:
    """The relays of all ranks, without the collectives of their constructor."""
    leader_of, secret = leaders(nodes), bytes(32)
    direct, ranks = sorted(set(leader_of)), []
    members: dict[int, list[int]] = {}
    for rank, leader in enumerate(leader_of):
        if leader != rank:
            members.setdefault(leader, []).append(rank)
    stores = {leader: Dictionary() for leader in members}
    for rank, leader in enumerate(leader_of):
        relay = object.__new__(Relay)
        relay.rank, relay.leader_of, relay.leader, relay.direct = rank, leader_of, leader, direct
        relay.members, relay.held = members.get(rank, []), {}
        relay.up = Heartbeats(store if leader == rank else stores[leader], "start", secret, rank)
        relay.down = Heartbeats(stores[rank], "start", secret, rank) if rank in stores else None
        for own in (relay.up if rank == 0 else None, relay.down):
            if own:
                own.publish(None)
        ranks.append(relay)
    return ranks


def measure(nodes: list[str], rounds: int) -> dict:
    """Requests, bytes and CPU seconds of the run's store in a second of all watchdogs."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout and server.stdin
    store = Counted(dist.TCPStore("127.0.0.1", int(server.stdout.readline()), is_master=False))
    ranks, operations = relays(nodes, store), Operations()
    for operation in ("loading samples", "forward", "backward", "optimizer step", "reducing the loss", "writing rows"):
        operations.begin(operation, 1)

    def beat(number: int) -> None:
        for relay in reversed(ranks):  # a node's others come before their leader
            sign = {"n": number, **operations.sign()}
            if number % TIMES_EVERY == 0:
                sign["times"] = operations.times.copy()
            relay.beat(sign)

    beat(0)
    signs, _ = ranks[0].read()
    assert len(signs) == len(nodes)
    for relay in ranks:
        relay.read()
    store.requests.clear(), store.bytes.clear()
    before, began, rank0 = cpu(server.pid), time.process_time(), 0.0
    for number in range(1, rounds + 1):
        beat(number)
        looked = time.process_time()
        ranks[0].read()
        rank0 += time.process_time() - looked
        for relay in ranks[1:]:
            relay.read()
    took, clients = cpu(server.pid) - before, time.process_time() - began
    server.stdin.close()
    server.wait()
    return {
        "connections": len(ranks[0].direct),
        "requests_per_second": sum(store.requests.values()) / rounds,
        "by_kind": {kind: count / rounds for kind, count in sorted(store.requests.items())},
        "kilobytes_per_second": {kind: round(count / rounds / 1e3, 1) for kind, count in sorted(store.bytes.items())},
        "store_cpu_seconds_per_second": round(took / rounds, 3),
        "rank0_look_cpu_seconds": round(rank0 / rounds, 3),
        "all_clients_cpu_seconds_per_second": round(clients / rounds, 3),
    }


def cpu(process: int) -> float:
    """User and system seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=4096)
    parser.add_argument("--per-node", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu" / "heartbeats.json")
    arguments = parser.parse_args()
    import torch

    from emergence_train.recorder.environment import environment

    nodes = [f"node {rank // arguments.per_node}" for rank in range(arguments.ranks)]
    record = {
        "utc": datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S"),
        "command": ["python", Path(sys.argv[0]).name, *sys.argv[1:]],
        "environment": environment(torch.device("cpu")),
        "load_average": round(os.getloadavg()[0], 1),
        "ranks": arguments.ranks,
        "nodes": len(set(nodes)),
        "rows": [
            {"what": "every rank by itself", **measure(["one node"] * arguments.ranks, arguments.rounds)},
            {"what": "a leader for each node", **measure(nodes, arguments.rounds)},
        ],
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["rows"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
