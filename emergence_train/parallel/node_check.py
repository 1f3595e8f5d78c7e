"""Before the first step of a run on several nodes: are they alike, and is one of them slow?

Each node's first rank reads versions and tries the disks, every rank looks at its GPU, all of them reduce a few megabytes;
rank 0 compares. Another version or another GPU ends the run before it has cost anything; a slow node is logged. What was found
is in nodes.json of the run directory. The reduction has one speed for all: a slow link shows in it, and is not named.
"""

import errno
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from emergence_train import files
from emergence_train.errors import InputError, RunError
from emergence_train.parallel.mesh import Mesh
from emergence_train.parallel.node_facts import RankFacts, rank_facts
from emergence_train.parallel.nodes import node_name
from emergence_train.parallel.ranks import (
    all_gather_objects,
    all_reduce_sum,
    broadcast_from_rank0,
    gather_on_rank0,
    on_every_rank,
)
from emergence_train.recorder.sessions import now

FILE = "nodes.json"
REDUCED = 4 << 20  # bytes
TIMES = 3
SLOW = 1 / 3  # of the median: disks that many use differ by less
FULL = (errno.ENOSPC, errno.EDQUOT)
SHOWN = 32  # lines; the file has all
# What a node may not know of itself (git or NVIDIA's management library absent, or too slow), and what it then does not know.
MAY_BE_UNKNOWN = {
    "commit": "the commit of its source",
    "driver": "the version of its driver",
    "nccl": "the version of its NCCL",
}
SPEEDS = {"write": "writes the run directory", "read": "reads the data", "clock": "may clock its GPUs"}


@dataclass(frozen=True)
class Node:
    """A node as its ranks found it."""

    host: str
    first_rank: int
    ranks: int
    gpu: str | None  # kinds, joined where they differ; None: CPUs
    visible_gpus: int  # that a rank sees
    gpu_memory: int  # bytes, of the smallest
    clock: int  # MHz, the highest of the slowest GPU; 0: not known
    versions: dict[str, str]
    write: float | None  # bytes/s
    read: float | None  # bytes/s

    @property
    def name(self) -> str:
        return f"node {self.host} (rank {self.first_rank})"

    @property
    def compared(self) -> dict[str, str]:
        """What must be the same on every node, and every node knows."""
        versions = {name: version for name, version in self.versions.items() if name not in MAY_BE_UNKNOWN}
        return versions | ({"GPU": self.gpu, "GPU memory": f"{self.gpu_memory >> 30} GiB"} if self.gpu else {})

    def known(self, name: str) -> str | None:
        """The version of one of MAY_BE_UNKNOWN, a commit without the mark of changed files; None: not known."""
        return self.versions[name].removesuffix("+") if name in self.versions else None

    def line(self) -> str:
        """For the console."""
        kinds = f"{self.ranks} x {self.gpu}, {self.gpu_memory >> 30} GiB" if self.gpu else f"{self.ranks} processes"
        clock = f", {self.clock} MHz" if self.clock else ""
        known = [
            f"{name} {self.versions[name]}" for name in ("torch", "cuda", "driver", "nccl") if name in self.versions
        ]
        disks = f"writes {_shown(self.write)}, reads {_shown(self.read)}"
        return f"{self.name}: {kinds}{clock}; {', '.join(known)}; {disks}"


def check_nodes(mesh: Mesh, run: Path, shard: Path, mode: str, log: Callable[[str], None]) -> None:
    """Compare the nodes of this start. Collective.

    Args:
        shard: a file of the prepared data. mode: faults.node_check.

    Raises:
        InputError: on every rank, where a node differs (not with mode warn); it names the node.
        RunError: on every rank, where a node cannot write the run directory or read the data.
    """
    if mode == "never" or (mesh.world.size == 1 and mode != "always"):
        return
    own = node_name()
    names = all_gather_objects(own)
    if len(set(names)) == 1 and mode != "always":
        return
    rank = mesh.world.rank
    probe = f".node-check-{mesh.launch_id}-{rank}.tmp"

    def own_facts() -> RankFacts:
        try:
            return rank_facts(own, mesh.device, names.index(own) == rank, run, shard, probe)
        except OSError as error:
            where = f"{error.filename}: {error.strerror} on {socket.gethostname()} (rank {rank})"
            if error.errno in FULL:
                raise RunError(f"{where}; make room there and run the same command again") from None
            raise RunError(f"{where}; every node must read the data and write the run directory") from None

    facts = on_every_rank(own_facts)
    reduced = reduction_speed(mesh)
    gathered = gather_on_rank0(facts)
    broadcast_from_rank0(lambda: report(nodes_of(gathered), reduced, run, mode, log))


def reduction_speed(mesh: Mesh) -> float:
    """Bytes of a tensor a second that all ranks sum over each other; collective, the median of a few times."""
    tensor, seconds = torch.ones(REDUCED // 4, device=mesh.device), []
    for _ in range(1 + TIMES):  # the first connects
        _finish(mesh.device)
        began = time.monotonic()
        all_reduce_sum(tensor, mesh.world)
        _finish(mesh.device)
        seconds.append(time.monotonic() - began)
    return REDUCED / max(statistics.median(seconds[1:]), 1e-9)


def nodes_of(facts: Sequence[RankFacts]) -> list[Node]:
    """The nodes of all ranks' facts, in the order of their first ranks."""
    members: dict[str, list[int]] = {}
    for rank, fact in enumerate(facts):
        members.setdefault(fact.node, []).append(rank)
    nodes = []
    for ranks in members.values():
        first, own = facts[ranks[0]], [facts[rank] for rank in ranks]
        kinds = sorted({fact.gpu for fact in own if fact.gpu})
        nodes.append(
            Node(
                host=first.host,
                first_rank=ranks[0],
                ranks=len(ranks),
                gpu=" and ".join(kinds) or None,
                visible_gpus=first.visible_gpus,
                gpu_memory=min(fact.gpu_memory for fact in own),
                clock=min(fact.clock for fact in own),
                versions=first.versions,
                write=first.write,
                read=first.read,
            )
        )
    return nodes


def report(nodes: list[Node], reduced: float, run: Path, mode: str, log: Callable[[str], None]) -> None:
    """Log a line a node and what is slow, write nodes.json; raises InputError as check_nodes."""
    difference = first_difference(nodes)
    warnings = [*slow_nodes(nodes), *may_differ(nodes), *([difference] if difference and mode == "warn" else [])]
    content = {
        "checked": now(),
        "all_reduce": {"bytes": REDUCED, "bytes_per_second": reduced},
        "nodes": [asdict(node) for node in nodes],
        "warnings": warnings,
    }
    files.write_json(run / FILE, content)
    for node in nodes[:SHOWN]:
        log(node.line())
    rest = f", {len(nodes) - SHOWN} more in {run / FILE}" if len(nodes) > SHOWN else ""
    log(f"{len(nodes)} nodes{rest}; {REDUCED >> 20} MB reduced over all ranks at {_shown(reduced)}")
    for warning in warnings:
        log(f"warning: {warning}")
    if difference and mode != "warn":
        raise InputError(
            f"{difference}; make the nodes alike, or set faults.node_check to warn or never if you mean it"
        )


def first_difference(nodes: list[Node]) -> str | None:
    """The first node that differs from what most have, in words; of two that differ, from rank 0's."""
    for key, group, values in _comparisons(nodes):
        counts = Counter(values)
        if len(counts) < 2:
            continue
        most = max(counts, key=lambda value: (counts[value], value == values[0]))
        odd = next(number for number, value in enumerate(values) if value != most)
        others = sum(value != most for value in values) - 1
        more = f" (and {others} more differ)" if others else ""
        usual = group[values.index(most)]
        return f"{group[odd].name} has {key} {values[odd]}, {usual.name} {most}{more}"
    return None


def _comparisons(nodes: list[Node]) -> Iterator[tuple[str, list[Node], list[str]]]:
    """What is compared, among which nodes, and what each of them has."""
    for key in sorted({key for node in nodes for key in node.compared}):
        yield key, nodes, [node.compared.get(key, "none") for node in nodes]
    for ranks in sorted({node.ranks for node in nodes}):  # a scheduler may give a node fewer GPUs, and so fewer ranks
        group = [node for node in nodes if node.ranks == ranks and node.gpu]
        yield "GPUs visible", group, [str(node.visible_gpus) for node in group]
    for name in MAY_BE_UNKNOWN:
        group = [node for node in nodes if node.known(name)]
        yield name, group, [str(node.known(name)) for node in group]


def may_differ(nodes: list[Node]) -> list[str]:
    """In words, where the nodes may differ and nothing shows that they do."""
    warnings = []
    for name, what in MAY_BE_UNKNOWN.items():
        known = [node for node in nodes if node.known(name)]
        unknown = [node for node in nodes if not node.known(name)]
        if known and unknown:  # no node of a run on CPUs has a driver
            warnings.append(f"{_named(unknown)} does not know {what}, {known[0].name} has {known[0].known(name)}")
    sources = [node for node in nodes if "commit" in node.versions]
    changed = [node for node in sources if node.versions["commit"].endswith("+")]
    if changed and len(changed) < len(sources):
        clean = next(node for node in sources if node not in changed)
        warnings.append(f"{_named(changed)} has changed files in its source, {clean.name} none")
    return warnings


def _named(nodes: list[Node]) -> str:
    return nodes[0].name + (f" (and {len(nodes) - 1} more)" if len(nodes) > 1 else "")


def slow_nodes(nodes: list[Node]) -> list[str]:
    """In words, the nodes whose speed is far below the others' median (of two nodes, the faster's)."""
    slow = []
    for key, does in SPEEDS.items():
        speeds = [getattr(node, key) for node in nodes]
        known = [speed for speed in speeds if speed]
        if len(known) < 2:
            continue
        usual, limit = statistics.median_high(known), 0.95 if key == "clock" else SLOW
        unit = (lambda value: f"{value} MHz") if key == "clock" else _shown
        for node, speed in zip(nodes, speeds):
            if speed and speed < limit * usual:
                slow.append(f"{node.name} {does} at {unit(speed)}, the others at {unit(usual)}")
    return slow


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shown(speed: float | None) -> str:
    return "n/a" if speed is None else f"{speed / 1e6:,.0f} MB/s"
