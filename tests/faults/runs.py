"""Runs of one small configuration, started by name with overrides and changes to their processes, for scenarios.py."""

import signal
import time
from pathlib import Path

import yaml

from emergence_train.recorder import tables
from faults.comparing import Wrong, compare
from faults.launch import launch  # first: it must not be imported after anything that computes
from faults.trials import prepared, trial_config

STEPS = 24


def some(cases: list, few: bool, number: int) -> list:
    """All cases, or in a short run the first ones."""
    return cases[:number] if few else cases


class Runs:
    """Runs by name under one place, all of one configuration with overrides."""

    def __init__(self, place: Path, few: bool) -> None:
        self.place, self.data, self.few = place, prepared(place), few
        tree = trial_config(self.data, place / "runs")
        tree["training"] |= {"tokens": STEPS * 12 * 32, "batch": 12}
        tree["faults"] = {"silent_seconds": 20.0}
        tree["checkpoints"] |= {"every_tokens": 6 * 12 * 32, "state_tokens": 3 * 12 * 32}
        (place / "config.yaml").write_text(yaml.safe_dump(tree))

    def start(self, name: str, *over: str, world: int = 1, patch=None, stop_at: int | None = None) -> dict:
        """One start of a run, with a stop at a step if given -> {"codes", "said", "seconds"}."""
        micro = f"training.micro_batch={12 // (2 * world)}"
        arguments = ["train", str(self.place / "config.yaml"), f"name={name}", micro, *over]
        launched = launch(arguments, world, self.place / "logs" / name, patch=patch)
        if stop_at is not None:
            while launched.poll() and f"step {stop_at}/" not in launched.output():
                time.sleep(0.002)
            launched.send(signal.SIGTERM)
        hangs = not launched.wait(90)
        launched.end()
        codes = [launched.codes[rank] for rank in range(world)]
        return {"codes": codes, "said": launched.output(), "seconds": time.monotonic() - launched.began, "hangs": hangs}

    def path(self, name: str) -> Path:
        return self.place / "runs" / name

    def rows(self, name: str, kind: str) -> list[dict]:
        return [row for row in tables.read_metrics(self.path(name)) if row["kind"] == kind]

    def differs(self, first: str, second: str) -> str | None:
        try:
            compare(self.path(first), self.path(second))
        except Wrong as wrong:
            return str(wrong)
        return None
