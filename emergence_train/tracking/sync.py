"""Update Weights & Biases from a run's own files, after a failure of network, disk or machine.

Online, the points missing on the server are sent; the x-axis of every chart is tokens, so their order does not matter.
Offline, the whole run is written as a new offline run, which `wandb sync` uploads, in the place of those before it.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from emergence_train.config import Config, file_of
from emergence_train.errors import InputError, RunError
from emergence_train.input_files import read_text
from emergence_train.recorder import tables
from emergence_train.recorder.sessions import alive, read_sessions
from emergence_train.tracking.points import BY_POSITION, Point, name_of, points, tokens_of
from emergence_train.tracking.references import References
from emergence_train.tracking.summary import Summary
from emergence_train.tracking.wandb import (
    INIT_SECONDS,
    chosen_mode,
    define_axes,
    init_settings,
    log_point,
    own_folders,
    quiet_logging,
    reason_of,
    remove_older,
    wandb_options,
)

VALIDATION = "val/"


def sync(run: Path, log: Callable[[str], None]) -> dict:
    """Send the points of `run` that are missing in W&B; return {"run", "mode", "sent"}, sent being their number."""
    path = file_of(run)
    try:
        config = Config.model_validate(yaml.safe_load(read_text(path)))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); restore it") from None
    mode = chosen_mode(config.logging.wandb.mode)
    if mode == "disabled":
        raise InputError(
            f"{run}: W&B is disabled (logging.wandb of its config.yaml, or WANDB_MODE); set it to offline or online"
        )
    keys, summary = [], Summary()
    for point in points(run):  # the points themselves are read again: tables
        keys.append((name_of(point), tokens_of(point)))
        if isinstance(point, dict):
            summary.add(point)
    header = next((row for row in tables.read_metrics(run) if row["kind"] == "run"), {})
    shown = config.model_dump(mode="json") | {key: value for key, value in header.items() if key != "kind"}
    settings = init_settings(config.logging.wandb, config.name, run, shown, mode)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        known = _known(wandb, settings, {name for name, _ in keys}) if mode == "online" else set()
        missing = sum(key not in known for key in keys)
        if not missing:
            log(f"{run}: W&B is up to date ({len(keys):,} points)")
            return {"run": str(run), "mode": mode, "sent": 0}
        unsent = (point for point in points(run) if (name_of(point), tokens_of(point)) not in known)
        references = References(run) if config.logging.wandb.checkpoints else None
        with own_folders(Path(settings["dir"]) / "wandb"), quiet_logging():
            folder = _send(wandb, settings, unsent, summary, references)
    except (Exception, SystemExit) as error:  # any error of W&B: the run's files are untouched
        when = "when it can be reached" if mode == "online" else "when that is fixed"
        raise RunError(f"{run}: W&B was not updated ({reason_of(error)}); try again {when}") from None
    done = "up to date"
    if mode == "offline":
        done = f"upload it with: wandb sync {folder}"
        sessions = read_sessions(run)
        if not sessions or "ended" in sessions[-1] or alive(sessions[-1]) is False:  # no process writes to the others
            remove_older(run, settings["id"], folder)
    log(f"{run}: {missing:,} of {len(keys):,} points sent, {mode}; {done}")
    return {"run": str(run), "mode": mode, "sent": missing}


def _send(
    wandb: Any, settings: dict, missing: Iterable[Point], summary: Summary, references: References | None
) -> Path:
    """Send points; return W&B's own directory of them. This machine is not that of the run: its use is not sent."""
    remote = wandb.init(**settings, settings=wandb_options(wandb, system=False))
    define_axes(remote)
    for point in missing:
        log_point(remote, point)
    remote.summary.update(summary.values())
    if references is not None:
        references.send(remote)
    folder = Path(remote.dir).parent
    remote.finish()
    return folder


def _known(wandb: Any, settings: dict, names: set[str]) -> set[tuple[str, int]]:
    """The (name, tokens) of `names` that the server has; none where it has no such run."""
    api = wandb.Api(timeout=INIT_SECONDS)
    owner = settings.get("entity") or api.default_entity
    path = f"{settings['project']}/{settings['id']}"
    try:
        remote = api.run(f"{owner}/{path}" if owner else path)
    except (ValueError, wandb.errors.CommError) as error:
        if "not find" in str(error).lower() or "not found" in str(error).lower():
            return set()
        raise
    known = set()
    for name in sorted(names - {BY_POSITION}):
        known |= {(name, row["tokens"]) for row in remote.scan_history(keys=["tokens", name])}
    # A chart is a table with its own key, sent with its checkpoint's validation row.
    return known | {(BY_POSITION, tokens) for name, tokens in known if name.startswith(VALIDATION)}
