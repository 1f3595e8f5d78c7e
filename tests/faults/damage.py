"""Damage the newest checkpoint of a run, as a bad disk or a careless hand would."""

import random
from pathlib import Path

from emergence_train.checkpoint import format as checkpoints

WAYS = ("flip", "truncate", "delete", "manifest", "no manifest", "pointer", "stale pointer")


def damage(there: list[Path], chance: random.Random) -> str:
    """Damage the last of these checkpoints, or the pointer to it, in one of WAYS -> which."""
    how, path = chance.choice(WAYS), there[-1]
    if how == "pointer":
        (path.parent / checkpoints.POINTER).write_text("step-9999999999\n")
    elif how == "stale pointer":
        (path.parent / checkpoints.POINTER).write_text(f"{there[0].name}\n")
    elif how == "no manifest":
        (path / checkpoints.MANIFEST).unlink()
    else:
        victim = path / checkpoints.MANIFEST
        if how != "manifest":
            victim = chance.choice(sorted(p for p in path.iterdir() if p.name != checkpoints.MANIFEST))
        data = bytearray(victim.read_bytes())
        place = chance.randrange(len(data))
        if how == "delete":
            victim.unlink()
        elif how == "truncate" or how == "manifest" and chance.random() < 0.5:
            victim.write_bytes(data[:place])
        else:
            data[place] ^= 1 << chance.randrange(8)
            victim.write_bytes(data)
    return how
