"""Update Weights & Biases from a run's own files, after a failure of network, disk or machine.

Online, the points missing on the server are sent; the x-axis of every chart is tokens, so their order does not matter.
Offline, the whole run is written as a new offline run, which `wandb sync` uploads.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from emergence_train.config import Config
from emergence_train.errors import InputError, RunError
from emergence_train.recorder import tables
from emergence_train.tracking.wandb import INIT_SECONDS, against_tokens, chart, chosen_mode, init_settings, view

# The chart that identifies a kind of row on the server; rows of tasks by their first one.
CHARTS = {"train": "loss", "validation": "validation/iid", "forecast": "forecast/loss"}
BY_POSITION = "loss_by_position"


def sync(run: Path, log: Callable[[str], None]) -> dict:
    """Send the points of `run` that are missing in W&B; return {"run", "mode", "sent"}, sent being their number."""
    try:
        config = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{run / 'config.yaml'}: cannot be read ({' '.join(str(error).split())[:200]}); is this a run directory?"
        ) from None
    mode = chosen_mode(config.logging.wandb)
    if mode == "disabled":
        raise InputError(
            f"{run}: W&B is disabled (logging.wandb of its config.yaml, or WANDB_MODE); set it to offline or online"
        )
    points = list(_points(run))
    header = next((row for row in tables.read_metrics(run) if row["kind"] == "run"), {})
    shown = config.model_dump(mode="json") | {key: value for key, value in header.items() if key != "kind"}
    settings = init_settings(config.logging.wandb_project, config.name, run, shown, mode)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        known = _known(wandb, settings, {known_by for (known_by, _), _ in points}) if mode == "online" else set()
        missing = [values for key, values in points if key not in known]
        if not missing:
            log(f"{run}: W&B is up to date ({len(points):,} points)")
            return {"run": str(run), "mode": mode, "sent": 0}
        remote = wandb.init(
            **settings, settings=wandb.Settings(init_timeout=INIT_SECONDS, _disable_stats=True, console="off")
        )
        against_tokens(remote)
        for values in missing:
            remote.log({name: value() if callable(value) else value for name, value in values.items()})
        folder = Path(remote.dir).parent
        remote.finish()
    except Exception as error:  # any error of W&B: the run's files are untouched
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{run}: W&B was not updated ({reason}); try again when it can be reached") from None
    done = f"upload it with: wandb sync {folder}" if mode == "offline" else "up to date"
    log(f"{run}: {len(missing):,} of {len(points):,} points sent, {mode}; {done}")
    return {"run": str(run), "mode": mode, "sent": len(missing)}


def _points(run: Path) -> Iterator[tuple[tuple[str, int], dict]]:
    """((chart, tokens), values) as training sends them (wandb.view); for a table a function that returns its chart."""
    for row in tables.read_metrics(run):
        if (values := view(row)) is not None:
            known_by = CHARTS.get(row["kind"]) or next(name for name in values if name != "tokens")
            yield (known_by, values["tokens"]), values
    for path in sorted((run / "positions").glob("step-*.parquet")):
        table = tables.read(tables.POSITIONS, path)
        tokens = int(table["tokens"].iloc[0])
        yield (BY_POSITION, tokens), {"tokens": tokens, BY_POSITION: lambda table=table: chart(table)}


def _known(wandb: Any, settings: dict, charts: set[str]) -> set[tuple[str, int]]:
    """The (chart, tokens) of `charts` that the server has; none where it has no such run."""
    api = wandb.Api(timeout=INIT_SECONDS)
    path = f"{settings['project']}/{settings['id']}"
    try:
        remote = api.run(path if not api.default_entity else f"{api.default_entity}/{path}")
    except (ValueError, wandb.errors.CommError) as error:
        if "not find" in str(error).lower() or "not found" in str(error).lower():
            return set()
        raise
    known = set()
    for name in sorted(charts - {BY_POSITION}):
        known |= {(name, row["tokens"]) for row in remote.scan_history(keys=["tokens", name])}
    # A chart is a table with its own key, sent with its checkpoint's validation row.
    return known | {(BY_POSITION, tokens) for name, tokens in known if name == CHARTS["validation"]}
