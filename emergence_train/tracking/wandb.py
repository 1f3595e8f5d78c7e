"""Mirror a run to Weights & Biases. The run's files are the source of truth; the mirror may fail.

W&B runs in a thread of its own behind a bounded queue, so a slow or broken network does not delay training: rows that do not fit
are dropped from the mirror and remain in the run's files.
"""

import contextlib
import hashlib
import json
import os
import queue
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.config import Logging
from emergence_train.errors import RunError
from emergence_train.files import write_json

QUEUE = 10_000
ID_FILE = "wandb.json"  # in the run directory
CURVE_POINTS = 64
INIT_SECONDS = 20  # seconds for the server to answer
PATIENCE_SECONDS = 45  # seconds at the end for queued rows


class Mirror:
    """The mirror, on rank 0. With `mode` disabled every method does nothing."""

    def __init__(self, logging: Logging, run: str, directory: Path, shown: dict, log: Callable[[str], None]) -> None:
        self.log = log
        self.rows: queue.Queue = queue.Queue(QUEUE)
        self.dropped = 0
        self.thread = None
        mode = chosen_mode(logging.wandb)
        if mode == "disabled":
            return
        settings = init_settings(logging.wandb_project, run, directory, shown, mode)
        self.thread = threading.Thread(target=self._work, args=(settings,), daemon=True, name="wandb")
        self.thread.start()

    def send(self, values: dict) -> None:
        """Queue values at `values["tokens"]`, the x-axis of every chart."""
        self._put(values)

    def positions(self, table: pd.DataFrame) -> None:
        """Queue a chart of a checkpoint's loss by position, a line per split."""
        self._put(table)

    def close(self, patience: float | None = None) -> None:
        """Wait for queued rows, for at most the given seconds."""
        patience = PATIENCE_SECONDS if patience is None else patience
        if self.thread is None:
            return
        self._put(None)
        self.thread.join(patience)
        if self.thread.is_alive():
            self.log(f"W&B did not finish in {patience:g} s and was abandoned; the run's own files are complete")
        if self.dropped:
            self.log(f"W&B was too slow for {self.dropped} rows; the run's own files have them")

    def _put(self, item: dict | pd.DataFrame | None) -> None:
        if self.thread is None or not self.thread.is_alive():
            return
        try:
            self.rows.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def _start(self, wandb: Any, settings: dict) -> Any:
        """Start a W&B run; offline where the server does not answer in time (`wandb sync` uploads it later)."""
        options = wandb.Settings(init_timeout=INIT_SECONDS, _disable_stats=True, console="off")
        try:
            return wandb.init(**settings, settings=options)
        except Exception as error:
            if settings["mode"] != "online":
                raise
            reason = " ".join(str(error).split())[:160]
            self.log(f"W&B cannot be reached ({reason}); it is kept offline under {settings['dir']}/wandb")
            return wandb.init(**settings | {"mode": "offline", "resume": None}, settings=options)

    def _work(self, settings: dict) -> None:
        try:
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb

            run = self._start(wandb, settings)
            against_tokens(run)
            while (item := self.rows.get()) is not None:
                if isinstance(item, pd.DataFrame):
                    run.log({"tokens": int(item["tokens"].iloc[0]), "loss_by_position": chart(item)})
                else:
                    run.log(item)
            run.finish()
        except Exception as error:
            self.log(
                f"W&B stopped ({' '.join(str(error).split())[:200]}); training continues, the run's files are complete"
            )


def init_settings(project: str, run: str, directory: Path, shown: dict, mode: str) -> dict:
    """Arguments of wandb.init for the run of this name; `shown` is its configuration there."""
    return {
        "project": project,
        # A run that was moved from where its name says is not to be taken for the one that is there now.
        "name": run if directory.resolve().name == run else f"{run} ({directory.resolve().name})",
        "id": run_id(directory),
        "resume": "allow" if mode == "online" else None,
        "dir": str(directory),
        "mode": mode,
        "config": shown,
    }


def run_id(directory: Path) -> str:
    """The run's id in W&B, made once and kept in its directory: a restart resumes the W&B run, a moved directory stays the
    same run, and a copy beside its original, or another run at its old place, is another."""
    file, here = directory / ID_FILE, str(directory.resolve())
    known = _known_id(file)
    if known is not None:
        origin = Path(known["path"])
        if str(origin) == here or (_known_id(origin / ID_FILE) or {}).get("id") != known["id"]:
            return known["id"]
        chosen = secrets.token_hex(8)
    elif (directory / "wandb").is_dir():  # begun before the id was kept, when it was made of the path
        chosen = hashlib.sha256(here.encode()).hexdigest()[:16]
    else:
        chosen = secrets.token_hex(8)
    with contextlib.suppress(RunError, OSError):  # W&B stops no run
        write_json(file, {"id": chosen, "path": here})
    return chosen


def _known_id(file: Path) -> dict | None:
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {"id": str(known["id"]), "path": str(known["path"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def view(row: dict) -> dict | None:
    """The charts of a line of metrics.jsonl as {chart: value} with its tokens; None where it has none."""
    kind = row["kind"]
    if kind == "train":
        return {key: value for key, value in row.items() if key not in ("kind", "step")}
    if kind == "validation":
        folder, values = "validation", row["loss"]
    elif kind == "evaluation":
        folder, values = "tasks", row["value"]
        if row.get("share_of_training") is not None:
            values = values | {"share_of_training": row["share_of_training"]}
    elif kind == "abilities":  # tokens are null where the ability is not gained before the end
        folder, values = "abilities", {name: value for name, value in row["value"].items() if value is not None}
    elif kind == "straggler":
        folder, values = "straggler", {name: row[name] for name in ("rank", "seconds", "share")}
    elif kind == "forecast" and "loss" in row:
        folder, values = "forecast", {k: value for k, value in row.items() if k not in ("kind", "step", "tokens")}
    else:
        return None
    return {"tokens": row["tokens"]} | {f"{folder}/{name}": value for name, value in values.items()}


def against_tokens(run: Any) -> None:
    """Set tokens as the x-axis of every chart, so that late rows are placed correctly."""
    run.define_metric("tokens")
    run.define_metric("*", step_metric="tokens")


def chosen_mode(wanted: str) -> str:
    if wanted != "auto":
        return wanted
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return mode
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        known = bool(os.environ.get("WANDB_API_KEY")) or (netrc.is_file() and "wandb" in netrc.read_text())
    except (OSError, ValueError):
        known = False
    return "online" if known else "offline"


def chart(table: pd.DataFrame) -> Any:
    import wandb

    lines, keys = [], []
    for split, rows in table.groupby("split", sort=False):
        loss = (rows["loss_sum"] / rows["count"]).to_numpy()
        at = sorted({round(len(loss) ** (i / (CURVE_POINTS - 1))) - 1 for i in range(CURVE_POINTS)})
        at = [i for i in at if i < len(loss)]
        lines.append((rows["position"].to_numpy()[at].tolist(), loss[at].tolist()))
        keys.append(str(split))
    title = f"loss by position at {int(table['tokens'].iloc[0]):,} tokens"
    return wandb.plot.line_series([xs for xs, _ in lines], [ys for _, ys in lines], keys=keys, title=title)
