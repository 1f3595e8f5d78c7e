"""The check of nodes by real processes, each with a node's name given to it; prints what each rank is left with, by case.

python tests/parallel/node_check_worker.py RUN SHARD, with the variables of a launcher: ranks 0, 1 | 2, 3 are two nodes.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from emergence_train.errors import exit_code
from emergence_train.parallel import node_check
from emergence_train.parallel.ranks import leave, start


def outcomes(run: Path, shard: Path) -> dict:
    mesh, plain, lines = start(1), node_check.rank_facts, []
    rank, cases = mesh.world.rank, {}

    def facts_with(change):
        def facts(*given):
            return change(plain(*given))

        return facts

    def otherwise(facts):
        versions = {name: "0" if name == "torch" else version for name, version in facts.versions.items()}
        return replace(facts, versions=versions)

    def fail(facts):
        raise PermissionError(13, "Permission denied", str(run))

    changes = {
        "torch": otherwise,
        "gpu": lambda facts: replace(facts, gpu="A100", gpu_memory=40 << 30),
        "disk": fail,
        "slow": lambda facts: replace(facts, write=facts.write and 1e-3),
    }

    def outcome(name: str, mode: str) -> None:
        lines.clear()
        try:
            node_check.check_nodes(mesh, run, shard, mode, lines.append)
            cases[name] = [0, "", [line for line in lines if "warning" in line]]
        except Exception as error:
            cases[name] = [exit_code(error), str(error), []]

    node_check.node_name = lambda: f"node {rank // 2}"
    for name, change in changes.items():
        for odd in range(mesh.world.size):
            node_check.rank_facts = facts_with(change) if rank == odd else plain
            outcome(f"{name} {odd}", "auto")
    node_check.rank_facts = facts_with(otherwise) if rank == 2 else plain
    outcome("warned of", "warn")
    outcome("left out", "never")
    node_check.node_name = lambda: "the only node"
    outcome("one node", "auto")
    return {"rank": rank, "cases": cases}


if __name__ == "__main__":
    print(json.dumps(outcomes(Path(sys.argv[1]), Path(sys.argv[2]))), flush=True)
    leave(0)
