"""Mirror a run to Weights & Biases. The run's files are the source of truth; the mirror may fail.

W&B runs in a thread of its own behind a bounded queue, so a slow or broken network does not delay training: rows that do not fit
are dropped from the mirror and remain in the run's files.
"""

import contextlib
import json
import logging
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from emergence_train.errors import RunError
from emergence_train.files import writable, write_json
from emergence_train.input_files import read_text
from emergence_train.logging_config import Wandb
from emergence_train.tracking import AXES
from emergence_train.tracking.points import BY_POSITION, Point
from emergence_train.tracking.references import References
from emergence_train.tracking.summary import HELD_OUT, Summary

QUEUE = 10_000
ID_FILE = "wandb.json"  # in the run directory
PROJECT = "emergence-train"
CURVE_POINTS = 64
INIT_SECONDS = 20  # seconds for the server to answer
LONGEST = 200  # letters of an error that the log shows
PATIENCE_SECONDS = 45  # seconds at the end for queued rows


class Mirror:
    """The mirror, on rank 0. With the mode disabled every method does nothing.

    `history`: what was sent before this start. W&B begins another directory at each offline start; it gets the whole run, and the
    earlier ones are removed, so that there is one to upload.
    """

    def __init__(
        self,
        wandb: Wandb,
        run: str,
        directory: Path,
        shown: dict,
        log: Callable[[str], None],
        history: Callable[[], Iterable[Point]] | None = None,
        summary: Summary | None = None,
    ) -> None:
        """`summary`: of what was logged before this start."""
        self.log, self.directory, self.history = log, directory, history
        self.summary = summary or Summary()
        self.references = References(directory) if wandb.checkpoints else None
        self.rows: queue.Queue = queue.Queue(QUEUE)
        self.dropped = 0
        self.problem: str | None = None  # that ended the thread, until the log has it
        self.thread = None
        mode = chosen_mode(wandb.mode)
        if mode == "disabled":
            return
        settings = init_settings(wandb, run, directory, shown, mode)
        self.thread = threading.Thread(target=self._work, args=(settings, wandb.system), daemon=True, name="wandb")
        self.thread.start()

    def send(self, point: Point | Summary) -> None:
        """Queue values with their step and tokens, a checkpoint's positions table for a chart of loss by position, or, after a
        rewind, the summary of what is left."""
        if self.problem is not None:  # logged here: where a Ctrl-C ended both W&B and training, there is no next row
            self._log_problem("training continues without it")
        if self.thread is None or not self.thread.is_alive():
            return
        try:
            self.rows.put_nowait(point)
        except queue.Full:
            self.dropped += 1

    def close(self, patience: float | None = None) -> None:
        """Wait for queued rows, for at most the given seconds."""
        patience = PATIENCE_SECONDS if patience is None else patience
        if self.thread is None:
            return
        with contextlib.suppress(queue.Full):
            self.rows.put_nowait(None)
        self.thread.join(patience)
        if self.thread.is_alive():
            self.log(f"W&B did not finish in {patience:g} s and was abandoned; the run's own files are complete")
        if self.problem is not None:
            self._log_problem("")
        if self.dropped:
            self.log(f"W&B was too slow for {self.dropped} rows; the run's own files have them")

    def _start(self, wandb: Any, settings: dict, system: bool) -> Any:
        """Start a W&B run; offline where the server does not answer in time (`wandb sync` uploads it later)."""
        options = wandb_options(wandb, system)
        try:
            return wandb.init(**settings, settings=options)
        except Exception as error:
            if settings["mode"] != "online":
                raise
            reason = " ".join(str(error).split())[:160]
            self.log(f"W&B cannot be reached ({reason}); it is kept offline under {settings['dir']}/wandb")
            wandb.teardown()  # its own process keeps the id of a run that it could not begin, and would refuse it
            return wandb.init(**settings | {"mode": "offline", "resume": None}, settings=options)

    def _work(self, settings: dict, system: bool) -> None:
        try:
            with own_folders(self.directory / "wandb"), quiet_logging():
                self._mirror(settings, system)
        except BaseException as error:  # its SystemExit too
            self.problem = reason_of(error)

    def _log_problem(self, goes_on: str) -> None:
        rest = [goes_on] * bool(goes_on) + [f"emergence-train sync {self.directory} updates it later"]
        self.log(f"W&B stopped ({self.problem}); {', '.join(rest)}")
        self.problem = None

    def _mirror(self, settings: dict, system: bool) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        run = self._start(wandb, settings, system)
        define_axes(run)
        if self.history is not None and settings["mode"] == "offline":
            for point in self.history():
                log_point(run, point)
            remove_older(self.directory, settings["id"], Path(run.dir).parent)
        while (point := self.rows.get()) is not None:
            self._log(run, point)
        self._summarise(run)
        run.finish()

    def _log(self, run: Any, point: Point | Summary) -> None:
        if not self.directory.is_dir():
            return  # W&B would make it again, and a run directory that is put back would land in it
        if isinstance(point, Summary):
            self.summary = point
            return
        log_point(run, point)
        if isinstance(point, dict):
            self.summary.add(point)
            if HELD_OUT in point:
                self._summarise(run)

    def _summarise(self, run: Any) -> None:
        run.summary.update(self.summary.values())
        if self.references is not None:
            self.references.send(run)


def reason_of(error: BaseException) -> str:
    """The error in a few words; its kind where it has none, or a number, as SystemExit."""
    words = " ".join(str(error).split())
    if len(words) > LONGEST:
        words = f"{words[:LONGEST].rpartition(' ')[0] or words[:LONGEST]} ..."
    return words if isinstance(error, Exception) and words else f"{type(error).__name__} {words}".strip()


@contextlib.contextmanager
def own_folders(folder: Path) -> Iterator[None]:
    """In the block W&B keeps its data, cache and settings in `folder`, each where nothing says where and its place under the
    user's home cannot be written (compute nodes, containers). Elsewhere they stay: the settings may name a server."""
    named = []
    for kind, home in (("DATA", "~/.local/share"), ("CACHE", "~/.cache"), ("CONFIG", "~/.config")):
        if f"WANDB_{kind}_DIR" in os.environ:
            continue
        try:
            usual = Path(os.environ.get(f"XDG_{kind}_HOME") or home).expanduser() / "wandb"
            usual.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=usual).close()
        except (OSError, RuntimeError):  # RuntimeError: no home is known
            named.append(f"WANDB_{kind}_DIR")
            os.environ[named[-1]] = str(folder / kind.lower())
    try:
        yield
    finally:  # the next run of this process has folders of its own
        for name in named:
            os.environ.pop(name, None)


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """In the block and after it W&B's log on a full disk does not fill the console with tracebacks."""
    logger = logging.getLogger("wandb")
    users = [*logger.handlers]
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before
        for handler in logger.handlers:  # W&B's own, whose threads write to the end of the process
            if handler not in users:
                handler.handleError = lambda record: None  # type: ignore[method-assign]


def init_settings(wandb: Wandb, run: str, directory: Path, shown: dict, mode: str) -> dict:
    """Arguments of wandb.init for the run of this name; `shown` is its configuration there. What the section leaves open is
    not among them, so that W&B's environment variables decide."""
    given = {name: getattr(wandb, name) for name in ("entity", "group", "tags", "notes", "job_type")}
    return {
        "project": wandb.project or os.environ.get("WANDB_PROJECT") or PROJECT,
        **{name: value for name, value in given.items() if value},
        # A run that was moved from where its name says is not to be taken for the one that is there now.
        "name": run if directory.resolve().name == run else f"{run} ({directory.resolve().name})",
        "id": run_id(directory),
        "resume": "allow" if mode == "online" else None,
        "dir": str(_place(directory)),
        "mode": mode,
        "config": shown,
    }


def _place(directory: Path) -> Path:
    """Where W&B's files go: the run's directory, or a new one where this user may not write there (W&B would take the one of all
    users that it has in the temporary directory, which is whose came first)."""
    if not writable(directory / "wandb"):
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="emergence-train-"))
    return directory


def wandb_options(wandb: Any, system: bool) -> Any:
    return wandb.Settings(init_timeout=INIT_SECONDS, x_disable_stats=not system, console="off")


def run_id(directory: Path) -> str:
    """The run's id in W&B, made once and kept in its directory: a restart resumes the W&B run, a moved directory stays the
    same run, and a copy beside its original, or another run at its old place, is another. Of a sweep, the agent's."""
    file, here = directory / ID_FILE, str(directory.resolve())
    known = _known_id(file)
    if known is not None:
        origin = Path(known["path"])
        if str(origin) == here or (_known_id(origin / ID_FILE) or {}).get("id") != known["id"]:
            return known["id"]
        chosen = secrets.token_hex(8)
    else:
        chosen = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8)
    with contextlib.suppress(RunError, OSError):  # W&B stops no run
        write_json(file, {"id": chosen, "path": here})
    return chosen


def _known_id(file: Path) -> dict | None:
    try:
        known = json.loads(read_text(file))
        return {"id": str(known["id"]), "path": str(known["path"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_older(directory: Path, id: str, kept: Path) -> None:
    """Remove the directories of earlier offline starts of the run: `kept` has all that they have."""
    for path in (directory / "wandb").glob(f"offline-run-*-{id}"):
        if path.resolve() != kept.resolve():
            shutil.rmtree(path, ignore_errors=True)


def define_axes(run: Any) -> None:
    """Set tokens as the x-axis of every chart, so that late rows are placed correctly; step may be chosen in its place."""
    for name in AXES:
        run.define_metric(name)
    run.define_metric("*", step_metric="tokens")


def log_point(run: Any, point: Point) -> None:
    """Send a point: a positions table as a chart, samples as a table."""
    if isinstance(point, pd.DataFrame):
        axes = {name: int(point[name].iloc[0]) for name in AXES}
        run.log(axes | {BY_POSITION: chart(point)})
        return
    values = dict(point)
    if "samples" in values:
        import wandb

        rows = [[sample["prompt"], sample["text"]] for sample in values["samples"]]
        values["samples"] = wandb.Table(columns=["prompt", "text"], data=rows)
    run.log(values)


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
